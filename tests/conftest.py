"""Options and fixtures that all tests share."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

from loadtests.servers import Postgres, Redis
from tests.mesh import Mesh

settings.register_profile(
    "quick",
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile("soak", max_examples=3000, deadline=None, suppress_health_check=list(HealthCheck))


TOGETHER = {
    "test_bad_input": "bad input",
    "test_go_sumdb": "go",
    "test_chaos": "fleets",
    "test_partitions": "fleets",
    "test_processes": "processes",
    "test_mesh_programs": "processes",
    "test_browser_and_sandbox": "browser",
}
"""Files whose tests run in one process and in their order, with those of the same name: they share what they started, or
would be in each other's way. (The marks that pytest-xdist has for this do nothing with this version of pytest.)"""


class Together(LoadScopeScheduling):
    """Each test for itself, but for those of :data:`TOGETHER`."""

    def _split_scope(self, nodeid: str) -> str:
        return TOGETHER.get(Path(nodeid.partition("::")[0]).stem, nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Together:
    return Together(config, log)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="run the long versions")


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("soak" if config.getoption("--soak") else "quick")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked soak run only when asked for; they are left out, not skipped."""
    if not config.getoption("--soak"):
        items[:] = [item for item in items if "soak" not in item.keywords]


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A server for all tests of this process; each takes a database of its own."""
    made = Postgres()
    made.start()
    yield made
    made.remove()


@pytest.fixture
def database(postgres: Postgres) -> Iterator[str]:
    """The URL of an empty database."""
    name = f"t{uuid.uuid4().hex}"
    yield postgres.database(name)
    postgres.drop(name)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    made = Redis(tmp_path)
    made.start()
    yield made
    made.stop()


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    """A running mesh over a sandbox with one file."""
    async with Mesh(tmp_path) as running:
        (running.sandbox / "notes.txt").write_text("hello")
        yield running
