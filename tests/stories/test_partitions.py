"""Wires between the parts of a fleet are cut or slow, and clocks jump: network namespaces and faketime."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from loadtests.fleet import DATABASE, GATEWAY_A, GATEWAY_B, PEOPLE, REDIS, Fleet
from loadtests.net import Island
from tests.stories.test_chaos import asked, goes_on, settle, trouble

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root makes network namespaces"),
]
FAKETIME: Final = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), Path("missing"))


def lying(home: Path) -> dict[str, str]:
    """A process whose clock is what stands in a file; its monotonic clock is true."""
    (home / "clock").write_text("+0")
    return {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(home / "clock"),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Gateway b is on an island, and its clock lies."""
    assert FAKETIME.exists(), "make debian installs faketime"
    home = tmp_path_factory.mktemp("island")
    environment = {"gateway-b": lying(home)}
    with Fleet(home, sidecars=2, nodes=2, remote="gateway-b", environment=environment) as running:
        yield running


def island(fleet: Fleet) -> Island:
    assert fleet.island is not None
    return fleet.island


@pytest.mark.parametrize(
    ("cut", "for_s"),
    [((REDIS,), 6.0), ((DATABASE,), 8.0), ((GATEWAY_A,), 4.0), ((PEOPLE,), 6.0), ((REDIS, DATABASE, GATEWAY_A), 8.0)],
    ids=["redis", "postgres", "the other gateway", "everybody who asks", "all but who asks"],
)
async def test_a_gateway_is_cut_off_from(fleet: Fleet, cut: tuple[int, ...], for_s: float) -> None:
    """Whoever asks it is told so or asks the other; the other goes on."""
    async with trouble(fleet) as seen:
        for one in cut:
            island(fleet).cut(one)
        await goes_on(fleet, seen)
        await asyncio.sleep(for_s)
        await goes_on(fleet, seen)
        for one in cut:
            island(fleet).heal(one)
        await asyncio.to_thread(fleet.parts["gateway-b"].ready)


async def test_who_is_killed_stops_though_its_gateway_is_cut_off_from_the_order(fleet: Fleet) -> None:
    async with trouble(fleet) as seen:
        island(fleet).cut(DATABASE)
        await asked(fleet, "POST", "/v1/kills", {"target": "all", "reason": "drill"}, at="gateway-a")
        stopped = time.monotonic()
        await asyncio.sleep(8)
        last = max(when for when, _ in seen.done)
        print(f"the last action ended {last - stopped:+.3f} s after the kill was answered")
        assert last - stopped < 6.0
        island(fleet).heal(DATABASE)
        await asyncio.sleep(2)
        assert max(when for when, _ in seen.done) == last
        await asked(fleet, "POST", "/v1/kills/lift", {"target": "all", "reason": "drill"}, at="gateway-a")


async def test_postgres_is_slow(fleet: Fleet) -> None:
    """For one gateway: its decisions take longer, and nothing else changes."""
    async with trouble(fleet) as seen:
        fleet.wire.delay_s = 0.3
        await asyncio.sleep(5)
        await goes_on(fleet, seen)
        await asked(fleet, "POST", "/v1/people", {"name": "slow", "roles": ["auditor"]}, at="gateway-b")
        fleet.wire.delay_s = 2.0
        await asyncio.sleep(6)
        await goes_on(fleet, seen)
        fleet.wire.delay_s = 0.0


@pytest.mark.parametrize("jump", ["+3600", "-3600", "+4", "-4"])
async def test_the_clock_of_a_gateway_jumps(fleet: Fleet, jump: str) -> None:
    async with trouble(fleet) as seen:
        (fleet.home / "clock").write_text(jump)
        await asyncio.sleep(4)
        await goes_on(fleet, seen)
        (fleet.home / "clock").write_text("+0")
        await asyncio.sleep(2)
        await goes_on(fleet, seen)


def test_afterwards_everything_is_in_the_logs(fleet: Fleet) -> None:
    assert fleet.seen
    settle(fleet, fleet.seen)


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A sidecar is on an island, and its clock lies."""
    home = tmp_path_factory.mktemp("far")
    with Fleet(home, sidecars=2, nodes=1, remote="agent-1", environment={"agent-1": lying(home)}) as running:
        yield running


async def test_a_sidecar_is_cut_off_from_one_gateway(far: Fleet) -> None:
    async with trouble(far) as seen:
        for one in (GATEWAY_A, GATEWAY_B):
            island(far).cut(one)
            await goes_on(far, seen, 30.0)
            await asyncio.sleep(2)
            island(far).heal(one)


async def test_a_sidecar_that_is_cut_off_from_all_says_so_and_a_kill_holds(far: Fleet) -> None:
    async with trouble(far) as seen:
        for one in (GATEWAY_A, GATEWAY_B):
            island(far).cut(one)
        await asyncio.sleep(2)  # so that something is on its way when the kill comes, on a wire that still brings it
        await asked(far, "POST", "/v1/kills", {"target": "agent-1", "reason": "drill"})
        stopped = time.monotonic()
        await asyncio.sleep(12)
        last = max((when for when, agent in seen.done if agent == "agent-1"), default=0.0)
        assert last - stopped < 6.0
        assert seen.reasons.keys() & {"gateway_unreachable", "stale_facts", "outcome_unknown"}, seen.reasons
        for one in (GATEWAY_A, GATEWAY_B):
            island(far).heal(one)
        await asyncio.sleep(4)
        assert max((when for when, agent in seen.done if agent == "agent-1"), default=0.0) == last
        await asked(far, "POST", "/v1/kills/lift", {"target": "agent-1", "reason": "drill"})


@pytest.mark.parametrize("jump", ["+3600", "-3600"])
async def test_the_clock_of_a_sidecar_jumps_and_comes_back(far: Fleet, jump: str) -> None:
    async with trouble(far) as seen:
        (far.home / "clock").write_text(jump)
        await asyncio.sleep(8)
        assert seen.reasons.keys() & {"stale_facts", "stale_bundle", "unauthenticated"}, seen.reasons
        (far.home / "clock").write_text("+0")
        await goes_on(far, seen)


def test_afterwards_everything_is_in_the_logs_of_the_far_ones_too(far: Fleet) -> None:
    assert far.seen
    settle(far, far.seen)
