"""Several sidecars of one agent, as in the pods of one deployment: its limits, labels and keys are one agent's."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from edge.shared import MARGIN_S
from gateway.statements import Statements
from loadtests.servers import Redis
from sidecar.app import Sidecar
from sidecar.config import SidecarConfig
from tests.mesh import SEGMENT, Answer, Mesh, policy_files
from tests.stories.test_replicas import eventually, url
from trust.ledger import entries
from trust.reasons import Reason, Unverifiable

pytestmark = pytest.mark.slow
READ, WRITE, LIST = "workbench/read_file", "workbench/write_file", "workbench/list_directory"
LIMITS = """
@id("five-a-day") @reason("five a day") @owner("tests")
forbid (principal, action == Action::"workbench/read_file", resource)
when { context.run.id like "limited*" && context.rate.tool_day >= 5 };

@id("private-asks") @reason("who has read may not write") @owner("tests")
@approval("of=operations ttl=1h")
forbid (principal, action == Action::"workbench/write_file", resource)
when { context.run.labels.contains("private") } unless { context.approved };

@id("three-refusals") @reason("enough") @owner("tests")
forbid (principal, action == Action::"workbench/list_directory", resource)
when { context.run.denied >= 3 };
"""


class Pair:
    """Two sidecars of the agent ``demo``; over two gateways each asks another one."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.pods: list[Sidecar] = []

    async def start(self, instance: str) -> Sidecar:
        mesh, home = self.mesh, self.mesh.home / instance
        if not home.exists():
            home.mkdir()
            for name in ("identity.key", "enrolment.json"):
                shutil.copy(mesh.home / "sidecar" / name, home / name)
        gateway = list(mesh.replicas.values())[-1] if mesh.replicas else mesh.gateway
        config = SidecarConfig(
            home=home,
            port=0,
            gateway_url=url(gateway),
            gateway_fallbacks=(mesh.gateway_url,) if mesh.replicas else (),
            instance=instance,
            segment_bytes=SEGMENT,
            hold_wait_s=1.0,
        )
        made = Sidecar(config)
        await made.start()
        self.pods.append(made)
        await eventually(lambda: all(made.checks().values()))
        return made

    async def stop(self) -> None:
        for one in self.pods:
            await one.stop()

    async def call(self, which: int, tool: str, args: dict[str, Any] | None = None, **more: Any) -> Answer:
        """Through the first sidecar (0) or another."""
        sidecar = self.pods[which - 1] if which else self.mesh.sidecar
        return await self.mesh.act(sidecar, tool, args or {"path": "notes.txt"}, **more)


async def started(mesh: Mesh) -> Pair:
    (mesh.sandbox / "notes.txt").write_text("hello")
    pair = Pair(mesh)
    await pair.start("pod-b")
    return pair


def policies() -> dict[str, str]:
    plain = {name: text for name, text in policy_files().items() if not name.startswith("cases/")}
    return {**plain, "limits.cedar": LIMITS}


@pytest.fixture(params=["one gateway", "two gateways"])
async def pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    more = {}
    if request.param == "two gateways":
        more["database"] = request.getfixturevalue("database")
        more["redis"] = request.getfixturevalue("redis").url
    async with Mesh(tmp_path / "mesh", policies=policies(), **more) as mesh:
        made = await started(mesh)
        try:
            yield made
        finally:
            await made.stop()


async def test_a_limit_is_one_for_all_sidecars(pair: Pair) -> None:
    for number in range(5):
        assert (await pair.call(number % 2, READ, run="limited")).status == 200
    for number in range(4):
        answer = await pair.call(number % 2, READ, run="limited")
        assert (answer.status, answer.json["reason"], answer.json["policy_ids"]) == (
            403,
            "policy_forbids",
            ["five-a-day"],
        )


async def test_of_many_at_once_through_both_as_many_pass_as_may(pair: Pair) -> None:
    await pair.call(0, READ, run="limited")
    answers = await asyncio.gather(*(pair.call(number % 2, READ, run=f"limited{number}") for number in range(16)))
    told = Counter(answer.status if answer.status == 200 else answer.json["reason"] for answer in answers)
    assert told[200] <= 4, told
    assert set(told) <= {200, "policy_forbids", "stale_facts"}
    # Whoever met the others in the same moment asks again, and then nobody was refused for nothing.
    for _ in range(4):
        await pair.call(1, READ, run="limited")
    done = sum(
        isinstance(entry, entries.Dispatch) and entry.tool == "read_file"
        for gateway in (pair.mesh.gateway, *pair.mesh.replicas.values())
        for _, line in gateway.ledger.lines()
        for entry in [line.entry]
    )
    assert done == 5


async def test_what_one_sidecar_saw_the_other_knows_and_a_person_is_asked(pair: Pair) -> None:
    write = {"path": "out.txt", "content": "x"}
    assert (await pair.call(1, WRITE, write)).status == 200
    assert (await pair.call(0, READ)).status == 200
    held = await pair.call(1, WRITE, write)
    assert held.status == 202, held.json
    approval = held.json["approval"]
    await eventually(lambda: pair.mesh.gateway.desk.find(approval) is not None)
    assert (await pair.mesh.vote(approval)).status == 200
    claim = f"http://127.0.0.1:{pair.pods[0].port}/v1/approvals/{approval}/claim"
    answer = await pair.mesh.request("POST", claim, token=pair.pods[0].token)
    assert answer.status == 200, answer.json
    [told] = [e for e in (line.entry for _, line in pair.pods[0].ledger.lines()) if isinstance(e, entries.Hold)]
    assert told.judgement.facts["context"]["run"]["labels"] == ["private"]


async def test_refusals_are_known_to_both(pair: Pair) -> None:
    assert (await pair.call(1, LIST, {"path": "."})).status == 200
    for _ in range(3):
        assert (await pair.call(0, READ, {"path": "/etc/passwd"})).status == 403

    async def refused() -> bool:
        return (await pair.call(1, LIST, {"path": "."})).status == 403

    async with asyncio.timeout(30):
        while not await refused():
            await asyncio.sleep(0.2)


async def test_a_key_is_one_action_through_whatever_sidecar(pair: Pair) -> None:
    write = {"path": "once.txt", "content": "x"}
    assert (await pair.call(0, WRITE, write, idempotency_key="k1")).status == 200
    (pair.mesh.sandbox / "once.txt").unlink()
    again = await pair.call(1, WRITE, write, idempotency_key="k1")
    assert (again.status, again.json["reason"]) == (401, "replayed"), again.json
    assert not (pair.mesh.sandbox / "once.txt").exists()
    racing = await asyncio.gather(*(pair.call(which, WRITE, write, idempotency_key="k2") for which in (0, 1)))
    assert sorted(answer.status for answer in racing) == [200, 401]
    assert (await pair.call(1, WRITE, write, idempotency_key="k3")).status == 200
    assert (await pair.call(1, WRITE, write, idempotency_key="k3")).status == 200  # answered again
    assert (await pair.call(0, WRITE, write, idempotency_key="k3")).status == 401


async def test_a_key_of_what_did_not_happen_is_free(pair: Pair) -> None:
    write = {"path": "later.txt", "content": "x"}
    nowhere = await pair.call(0, WRITE, write, idempotency_key="k", place={"pin": "nowhere"})
    assert (nowhere.status, nowhere.json["reason"]) == (403, "no_eligible_node")
    assert (await pair.call(1, WRITE, write, idempotency_key="k")).status == 200


async def test_a_key_of_what_no_node_took_is_free(pair: Pair) -> None:
    write = {"path": "later.txt", "content": "x"}
    await pair.mesh.stop("node")
    away = await pair.call(0, WRITE, write, idempotency_key="k")
    assert away.json["reason"] in ("node_unreachable", "no_eligible_node"), away.json
    await pair.mesh.start_node()
    async with asyncio.timeout(30):
        while (answer := await pair.call(1, WRITE, write, idempotency_key="k")).status != 200:
            assert answer.json["reason"] in ("node_unreachable", "no_eligible_node"), answer.json
            await asyncio.sleep(0.1)


async def test_a_key_of_what_was_not_sent_after_all_is_free(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Policy changed between its dispatch entry and its sending."""

    def changed(_self: Statements, _asked: Any) -> None:
        raise Unverifiable(Reason.PERMIT_INVALID, "policy was changed while this waited; ask again")

    write = {"path": "later.txt", "content": "x"}
    monkeypatch.setattr(Statements, "require_unchanged", changed)
    assert (await pair.call(0, WRITE, write, idempotency_key="k")).json["reason"] == "permit_invalid"
    monkeypatch.undo()
    await eventually_indexed(pair)
    assert (await pair.call(1, WRITE, write, idempotency_key="k")).status == 200


async def eventually_indexed(pair: Pair) -> None:
    """What the gateways dispatched so far is searchable at each of them."""
    gateways = (pair.mesh.gateway, *pair.mesh.replicas.values())
    sent = sum(isinstance(line.entry, entries.Dispatch) for one in gateways for _, line in one.ledger.lines())
    async with asyncio.timeout(30):
        for one in gateways:
            asked = "SELECT count(*) FROM entry WHERE kind = 'dispatch' AND step = 8"
            while await one.ledgers.index.ask(asked) < [(sent,)]:
                await asyncio.sleep(0.1)


async def test_who_is_told_that_a_limit_is_reached_reaches_no_other(pair: Pair) -> None:
    """What a gateway did not send counts at no sidecar, so trying in vain uses nothing up."""
    for _ in range(5):
        assert (await pair.call(0, READ, run="limited")).status == 200
    memory = pair.pods[0]._journal.memories.of("demo")
    for _ in range(4):
        assert (await pair.call(1, READ, run="limited")).status == 403
        assert memory.rate(READ, time.time()).tool_day >= 5, "for a moment it knows"
        memory.others.clear()
    assert memory.rate(READ, time.time()).tool_day == 0


async def test_a_pod_that_takes_the_place_of_another_begins_where_that_ended(pair: Pair) -> None:
    for _ in range(4):
        assert (await pair.call(1, READ, run="limited")).status == 200
    await pair.pods.pop().stop()
    await pair.start("pod-c")
    assert (await pair.call(1, READ, run="limited-2")).status == 200
    assert (await pair.call(1, READ, run="limited-2")).status == 403


async def test_a_gateway_that_starts_again_knows_what_was_done(tmp_path: Path) -> None:
    async with Mesh(tmp_path / "mesh", policies=policies()) as mesh:
        pair = await started(mesh)
        try:
            assert (await pair.call(0, LIST, {"path": "."}, idempotency_key="k")).status == 200
            for number in range(4):
                assert (await pair.call(number % 2, READ, run="limited")).status == 200
            await mesh.stop("gateway")
            await mesh.start_gateway()
            await mesh.ready()
            await eventually(lambda: all(pair.pods[0].checks().values()))
            async with asyncio.timeout(30):
                while (answer := await pair.call(1, READ, run="limited")).json.get("reason") != "policy_forbids":
                    assert answer.status == 200 or answer.json["retryable"], answer.json
                    await asyncio.sleep(0.1)
                while not mesh.gateway.fleet.candidates()[0].alive:
                    await asyncio.sleep(0.05)
            dispatched = [e for e in mesh.entries("gateway") if isinstance(e, entries.Dispatch)]
            assert sum(e.tool == "read_file" for e in dispatched) in (4, 5)  # what was tried in vain counts too
            assert (await pair.call(1, LIST, {"path": "."}, idempotency_key="k")).json["reason"] == "replayed"
        finally:
            await pair.stop()


async def test_a_redis_that_lost_everything_is_told_again(tmp_path: Path, database: str, redis: Redis) -> None:
    async with Mesh(tmp_path / "mesh", policies=policies(), database=database, redis=redis.url) as mesh:
        pair = await started(mesh)
        try:
            assert (await pair.call(0, LIST, {"path": "."}, idempotency_key="k")).status == 200
            for number in range(5):
                assert (await pair.call(number % 2, READ, run="limited")).status == 200
            indices = [gateway.ledgers.index for gateway in (mesh.gateway, *mesh.replicas.values())]
            async with asyncio.timeout(30):
                for index in indices:
                    while await index.ask("SELECT count(*) FROM entry WHERE kind = 'dispatch' AND step = 8") < [(6,)]:
                        await asyncio.sleep(0.1)
            redis.stop()
            redis.start()
            await asyncio.sleep(MARGIN_S + 1.1)  # what may have been signed before is refused, and refusals count
            async with asyncio.timeout(30):
                while (answer := await pair.call(1, READ, run="limited")).json["reason"] != "policy_forbids":
                    assert answer.json["reason"] in ("replay_unknown", "unauthenticated", "gateway_unreachable")
                    await asyncio.sleep(0.1)
            assert answer.json["policy_ids"] == ["five-a-day"]
            assert (await pair.call(1, LIST, {"path": "."}, idempotency_key="k")).json["reason"] == "replayed"
        finally:
            await pair.stop()
