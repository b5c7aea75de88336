"""What breaks while a fleet works: each part killed, cut off, made slow, with wrong clocks. Real processes throughout."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from gateway.store import Store
from licet import ledgers
from loadtests.fleet import Fleet
from trust.ledger import entries
from trust.ledger.entries import AnyEntry, Line
from trust.ledger.verify import verify

pytestmark = pytest.mark.slow
CALLERS: Final = 3
"""Of each sidecar."""
READ: Final[dict[str, Any]] = {"tool": "workbench/read_file", "args": {"path": "notes.txt"}}
CALLS: Final = (
    READ,
    {"tool": "workbench/list_directory", "args": {"path": "."}},
    {**READ, "place": {"pin": "nowhere"}},
    {"tool": "workbench/delete_file", "args": {"path": "notes.txt"}},
)
TOLD: Final = {
    "circuit_open",
    "gateway_unreachable",
    "killed",
    "ledger_unavailable",
    "no_eligible_node",
    "no_policy_permits",
    "node_unreachable",
    "outcome_unknown",
    "overloaded",
    "policy_forbids",
    "replay_unknown",
    "stale_facts",
    "ticket_invalid",
    "unauthenticated",
    "unwitnessed",
}
"""Reasons that say what is wrong, or that policy said no."""


@dataclass
class Seen:
    """What callers were answered."""

    answered: dict[str, set[str]] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    strange: list[str] = field(default_factory=list)
    done: list[tuple[float, str]] = field(default_factory=list)
    """When something was done, and for which agent."""

    def note(self, agent: str, status: int, told: dict[str, Any]) -> None:
        if "decision_id" in told:
            self.answered.setdefault(agent, set()).add(told["decision_id"])
        if status == 200:
            self.done.append((time.monotonic(), agent))
        elif status != 202:
            reason = str(told.get("reason"))
            self.reasons[reason] += 1
            if reason not in TOLD or not told.get("detail"):
                self.strange.append(f"{status}: {told}")


async def _calls(
    fleet: Fleet, agent: str, number: int, seen: Seen, http: aiohttp.ClientSession, pause_s: float
) -> None:
    url, headers = fleet.parts[agent].url + "/v1/actions", {"Authorization": f"Bearer {fleet.tokens[agent]}"}
    while True:
        for call in CALLS if number == 0 else (READ,):
            try:
                async with http.post(url, json=call, headers=headers) as reply:
                    seen.note(agent, reply.status, await reply.json(content_type=None))
            except (aiohttp.ClientError, ConnectionError, TimeoutError):
                seen.reasons["no sidecar"] += 1
                await asyncio.sleep(0.05)
        await asyncio.sleep(pause_s)


@asynccontextmanager
async def load(fleet: Fleet, pause_s: float = 0.05) -> AsyncIterator[Seen]:
    """Without a *pause_s* as much as the machine can; with it, as much as is needed to see what goes wrong."""
    seen = Seen()
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(timeout=timeout) as http:
        tasks = [
            asyncio.create_task(_calls(fleet, part.name, number, seen, http, pause_s))
            for part in fleet.of("agent-")
            for number in range(CALLERS)
        ]
        try:
            yield seen
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
    assert not seen.strange, seen.strange[:5]


async def goes_on(fleet: Fleet, seen: Seen, within_s: float = 30.0) -> float:
    """Until every agent got something done again, three times; how long that took."""
    begin = time.monotonic()
    while True:
        counts = Counter(agent for at, agent in seen.done if at > begin)
        if all(counts[part.name] >= 3 for part in fleet.of("agent-")):
            return time.monotonic() - begin
        assert time.monotonic() - begin < within_s, (counts, seen.reasons, *(p.said() for p in fleet.of("gateway")))
        await asyncio.sleep(0.05)


async def asked(fleet: Fleet, *arguments: Any, **named: Any) -> Any:
    return await asyncio.to_thread(fleet.call, *arguments, **named)


# What must be true afterwards


def lines(home: Path) -> list[Line]:
    """Everything in one part's own log, which has ended."""
    return [line for _, line in ledgers.lines(home / "ledger")]


def of_kind(home: Path, kind: type[AnyEntry]) -> list[Any]:
    return [line.entry for line in lines(home) if isinstance(line.entry, kind)]


def settle(fleet: Fleet, seen: list[Seen]) -> None:
    """Everything ends; then the promises are looked for in the logs, from outside."""
    for part in fleet.parts.values():
        part.signal(signal.SIGCONT)
        part.stop()
    for part in fleet.parts.values():
        if part.process is not None:
            part.process.wait(30)
    sidecars = [part.name for part in fleet.of("agent-")]
    nodes = [part.name for part in fleet.of("node-")]
    gateways = [part.name for part in fleet.of("gateway-")]
    for name in (*sidecars, *nodes, *gateways):
        report = verify(fleet.home / name / "ledger")
        assert not report.faults, (name, report.faults[:3])
    # Nothing ran without an intent, and each answered decision is recorded.
    intents = {one.deed.action_id for name in sidecars for one in of_kind(fleet.home / name, entries.Intent)}
    ran = [one for name in nodes for one in of_kind(fleet.home / name, entries.Dispatch)]
    assert {one.action_id for one in ran} <= intents
    for name in sidecars:
        recorded = set()
        for line in lines(fleet.home / name):
            deed = getattr(line.entry, "deed", None)
            recorded.add(deed.decision_id if deed is not None else getattr(line.entry, "decision_id", ""))
        for one in seen:
            assert one.answered.get(name, set()) <= recorded
    # No approval was used twice, whoever of the gateways was asked.
    void = {(name, entry.seq) for name in gateways for entry in of_kind(fleet.home / name, entries.Void)}
    claims: Counter[str] = Counter()
    for name in gateways:
        for line in lines(fleet.home / name):
            if isinstance(line.entry, entries.Approval) and line.entry.event == "claimed":
                claims[line.entry.approval] += (name, line.stamp.seq) not in void
    assert all(count == 1 for count in claims.values()), claims
    deletions = Counter(one.action_id for one in ran if one.tool == "delete_file" and one.attempt == 1)
    assert all(count == 1 for count in deletions.values())
    # Both gateways have the same state.
    dumps = []
    for name in gateways:
        store = Store(fleet.home / name / "state.sqlite")
        dumps.append(store.dump())
        store.close()
    turns = [int(_last_turn(fleet.home / name)) for name in gateways]
    assert dumps[0] == dumps[1] or turns[0] != turns[1]


def _last_turn(home: Path) -> int:
    import sqlite3

    with sqlite3.connect(home / "state.sqlite") as db:
        return int(db.execute("SELECT next FROM progress").fetchone()[0])


# The fleet, and what happens to it


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with Fleet(tmp_path_factory.mktemp("fleet"), sidecars=2, nodes=2) as running:
        yield running


@asynccontextmanager
async def trouble(fleet: Fleet, pause_s: float = 0.05) -> AsyncIterator[Seen]:
    """Load from before until after."""
    async with load(fleet, pause_s) as seen:
        fleet.seen.append(seen)
        await goes_on(fleet, seen)
        try:
            yield seen
        finally:
            for part in fleet.parts.values():
                part.signal(signal.SIGCONT)
        took = await goes_on(fleet, seen)
        print(f"went on after {took:.1f} s; told meanwhile: {dict(seen.reasons)}")


async def test_a_gateway_is_killed(fleet: Fleet) -> None:
    for name in ("gateway-b", "gateway-a"):
        async with trouble(fleet) as seen:
            fleet.parts[name].kill()
            await goes_on(fleet, seen)
            fleet.parts[name].start()
            await asyncio.to_thread(fleet.parts[name].ready)


async def test_a_gateway_is_frozen(fleet: Fleet) -> None:
    async with trouble(fleet) as seen:
        fleet.parts["gateway-a"].signal(signal.SIGSTOP)
        await goes_on(fleet, seen)
        await asyncio.sleep(5)
        fleet.parts["gateway-a"].signal(signal.SIGCONT)


async def test_a_sidecar_is_killed(fleet: Fleet) -> None:
    async with trouble(fleet):
        fleet.parts["agent-1"].kill()
        await asyncio.sleep(0.5)
        fleet.parts["agent-1"].start()
        await asyncio.to_thread(fleet.parts["agent-1"].ready)


async def test_a_node_is_killed(fleet: Fleet) -> None:
    async with trouble(fleet) as seen:
        fleet.parts["node-1"].kill()
        await goes_on(fleet, seen)
        fleet.parts["node-1"].start()
        await asyncio.to_thread(fleet.parts["node-1"].ready)


async def test_redis_is_killed(fleet: Fleet) -> None:
    async with trouble(fleet) as seen:
        fleet.redis.stop()
        await asyncio.sleep(3)
        assert seen.reasons["replay_unknown"]
        fleet.redis.start("--appendonly", "yes")


async def test_redis_fails_over_and_has_lost_what_was_written(fleet: Fleet) -> None:
    async with trouble(fleet):
        fleet.redis.stop()
        shutil.rmtree(fleet.redis.home / "appendonlydir", ignore_errors=True)
        fleet.redis.start("--appendonly", "yes")


async def test_postgres_is_killed(fleet: Fleet) -> None:
    async with trouble(fleet) as seen:
        fleet.postgres.kill()
        await asyncio.sleep(7)
        assert seen.reasons["stale_facts"], seen.reasons
        fleet.postgres.start()


async def test_postgres_hangs(fleet: Fleet) -> None:
    async with trouble(fleet):
        fleet.postgres.pause()
        await asyncio.sleep(4)
        fleet.postgres.resume()


async def test_the_kill_reaches_everybody_within_a_second_under_load(fleet: Fleet) -> None:
    async with trouble(fleet, pause_s=0.0) as seen:
        for at in ("gateway-a", "gateway-b"):
            await asked(fleet, "POST", "/v1/kills", {"target": "all", "reason": "drill"}, at=at)
            stopped = time.monotonic()
            await asyncio.sleep(3)
            last = max(when for when, _ in seen.done)
            print(f"the last action ended {last - stopped:+.3f} s after the kill was answered by {at}")
            assert last - stopped < 1.0
            assert seen.reasons["killed"]
            await asked(fleet, "POST", "/v1/kills/lift", {"target": "all", "reason": "drill"}, at=at)
            await goes_on(fleet, seen)


async def test_who_is_killed_while_a_gateway_is_cut_off_stops_within_the_bound(fleet: Fleet) -> None:
    """The gateway that its sidecar asks does not hear of it: frozen with its connections open."""
    async with trouble(fleet) as seen:
        await asyncio.to_thread(os.kill, fleet.parts["gateway-a"].process.pid, signal.SIGSTOP)  # type: ignore[union-attr]
        await asked(fleet, "POST", "/v1/kills", {"target": "agent-1", "reason": "drill"}, at="gateway-b")
        stopped = time.monotonic()
        await asyncio.sleep(8)
        last = max(when for when, agent in seen.done if agent == "agent-1")
        assert last - stopped < 6.0
        fleet.parts["gateway-a"].signal(signal.SIGCONT)
        await asyncio.sleep(1)
        assert max(when for when, agent in seen.done if agent == "agent-1") == last
        await asked(fleet, "POST", "/v1/kills/lift", {"target": "agent-1", "reason": "drill"}, at="gateway-b")


async def test_approvals_are_used_once_while_gateways_die(fleet: Fleet) -> None:
    """Claims at both, while each is killed and started."""
    async with trouble(fleet), aiohttp.ClientSession() as http:
        url = fleet.parts["agent-2"].url
        headers = {"Authorization": f"Bearer {fleet.tokens['agent-2']}"}
        held: list[str] = []
        for n in range(6):
            (fleet.sandbox / f"old-{n}.txt").write_text("x")
            call = {"tool": "workbench/delete_file", "args": {"path": f"old-{n}.txt"}}
            while len(held) <= n:  # what broke before may still be told of for a moment
                async with http.post(url + "/v1/actions", json=call, headers=headers) as reply:
                    told = await reply.json(content_type=None)
                    held += [told["approval"]] if reply.status == 202 else []
        for approval in held:
            shown = await asked(fleet, "GET", f"/v1/approvals/{approval}", who="approver-1")
            ballot = {"decision": "approve", "reason": "", "presented": shown["presented"]}
            await asked(fleet, "POST", f"/v1/approvals/{approval}/votes", ballot, who="approver-1")

        async def claim(approval: str) -> int:
            try:
                async with http.post(f"{url}/v1/approvals/{approval}/claim", headers=headers) as reply:
                    return reply.status
            except aiohttp.ClientError:
                return 0

        claims = [asyncio.create_task(claim(approval)) for approval in held for _ in range(10)]
        await asyncio.sleep(0.05)
        fleet.parts["gateway-a"].kill()
        answers = Counter(await asyncio.gather(*claims))
        assert answers[200] <= len(held)
        fleet.parts["gateway-a"].start()
        await asyncio.to_thread(fleet.parts["gateway-a"].ready)


def test_afterwards_everything_is_in_the_logs(fleet: Fleet) -> None:
    assert fleet.seen
    settle(fleet, fleet.seen)
