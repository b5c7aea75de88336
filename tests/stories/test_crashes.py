"""kill -9 of a sidecar under load, again and again, on one log: looked at from outside after each death."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from edge.judging import Judge
from licet import ledgers
from licet.settings import free_port
from tests.mesh import REPOSITORY, Mesh
from trust.ledger.entries import Dispatch, Intent, Outcome, Start
from trust.ledger.verify import verify

CALLERS = 12
CALLS = (
    {"tool": "workbench/list_directory", "args": {"path": "."}},
    {"tool": "workbench/read_file", "args": {"path": "notes.txt"}},
    {"tool": "workbench/read_file", "args": {"path": "server.pem"}},
    {"tool": "workbench/delete_file", "args": {"path": "notes.txt"}},
)


class Killed:
    """A sidecar as a process of its own, in front of a mesh that lives on."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self.port = free_port("127.0.0.1", 20_000 + random.randrange(20_000))
        self.answered: set[str] = set()

    async def start(self) -> asyncio.subprocess.Process:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("LICET_")}
        settings = {
            "LICET_HOME": str(self._mesh.home),
            "LICET_SIDECAR__HOME": str(self._mesh.home / "sidecar"),
            "LICET_SIDECAR__PORT": str(self.port),
            "LICET_SIDECAR__GATEWAY_URL": self._mesh.gateway_url,
            "LICET_SIDECAR__SEGMENT_BYTES": str(1 << 20),
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "licet", "sidecar", cwd=REPOSITORY, env={**inherited, **settings},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        assert process.stdout is not None
        async with asyncio.timeout(30):
            while b"listens" not in await process.stdout.readline():
                continue
        return process

    async def _call(self, http: aiohttp.ClientSession, chance: random.Random) -> None:
        while True:
            try:
                url = f"http://127.0.0.1:{self.port}/v1/actions"
                async with http.post(url, json=chance.choice(CALLS)) as reply:
                    told: dict[str, Any] = await reply.json(content_type=None)
                    self.answered.add(told["decision_id"])
            except (aiohttp.ClientError, ConnectionError, KeyError, ValueError):
                await asyncio.sleep(0.01)

    async def die(self, process: asyncio.subprocess.Process, after_s: float, chance: random.Random) -> None:
        """Under load, after so many seconds."""
        token = (self._mesh.home / "sidecar" / "agent.token").read_text().strip()
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as http:
            callers = [asyncio.create_task(self._call(http, chance)) for _ in range(CALLERS)]
            await asyncio.sleep(after_s)
            process.send_signal(signal.SIGKILL)
            await process.wait()
            for caller in callers:
                caller.cancel()
            await asyncio.wait(callers)


def look(home: Path, answered: set[str]) -> tuple[int, int]:
    """After a restart: (intents, outcomes that are unknown); every promise looked at from outside."""
    root = home / "sidecar" / "ledger"
    report = verify(root, judge=Judge(root.parent))
    assert report.faults == []
    assert report.holds
    found = [line.entry for _, line in ledgers.lines(root)]
    assert answered <= {ledgers.decision_of(entry) for entry in found}, "an answered decision was lost"
    intents = [entry.deed.action_id for entry in found if isinstance(entry, Intent)]
    outcomes = [entry.action_id for entry in found if isinstance(entry, Outcome)]
    assert len(outcomes) == len(set(outcomes)), "two outcomes of one action"
    assert set(outcomes) <= set(intents)
    executed = [line.entry for _, line in ledgers.lines(home / "node" / "ledger") if isinstance(line.entry, Dispatch)]
    assert {entry.action_id for entry in executed} <= set(intents), "an action ran without an intent"
    return len(intents), sum(isinstance(e, Outcome) and e.status == "unknown" for e in found)


async def many_deaths(mesh: Mesh, deaths: int, seed: int) -> None:
    chance = random.Random(seed)
    await mesh.stop("sidecar")
    (mesh.home / "sandbox" / "notes.txt").write_text("hello")
    killed = Killed(mesh)
    unknown = 0
    for number in range(deaths):
        process = await killed.start()
        if number:
            # What the last life left open was closed before this one answered anybody.
            intents, unknown = await asyncio.to_thread(look, mesh.home, killed.answered)
            found = [line.entry for _, line in ledgers.lines(mesh.home / "sidecar" / "ledger")]
            ended = {entry.action_id for entry in found if isinstance(entry, Outcome)}
            last = max(i for i, entry in enumerate(found) if isinstance(entry, Start))
            before = {entry.deed.action_id for entry in found[:last] if isinstance(entry, Intent)}
            assert before <= ended, "an intent without an outcome"
            assert intents
        await killed.die(process, 0.05 + chance.random() * 0.6, chance)
    assert len(killed.answered) > 10 * deaths
    assert unknown > 0, "some actions must have been caught in the middle"
    wrong = [log.wrong for log in mesh.gateway.witness.logs() if log.wrong]
    assert wrong == [], "the witness saw a contradiction where there was none"


@pytest.mark.slow
async def test_a_sidecar_dies_six_times_under_load(mesh: Mesh) -> None:
    await many_deaths(mesh, 6, seed=3)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(4, 8))
async def test_a_sidecar_dies_fifty_times_under_load_and_that_four_times(mesh: Mesh, seed: int) -> None:
    """Two hundred deaths; on one log each look at all of it would take longer and longer."""
    await many_deaths(mesh, 50, seed)
