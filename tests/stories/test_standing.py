"""Standing in a running mesh: what agents do moves it, it moves what they may do, and a replay gives the same."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.config import BreakerConfig
from gateway.fold import Shelf
from tests.mesh import Mesh, policy_files
from trust.ledger import entries
from trust.ledger.entries import Breaker, Outcome, Reported
from trust.ledger.entries import Standing as Moved
from trust.standing.fold import Replayed
from trust.standing.score import Book

READ, NOTES = "workbench/read_file", {"path": "notes.txt"}
WRITE = "workbench/write_file"


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with Mesh(tmp_path) as made:
        (made.sandbox / "notes.txt").write_text("hello")
        yield made


async def story(mesh: Mesh, agent: str = "demo") -> dict[str, Any]:
    told: dict[str, Any] = (await mesh.admin("GET", f"/v1/agents/{agent}/standing")).json
    return told


async def reported(mesh: Mesh, count: int, agent: str = "demo") -> None:
    """Until the sidecar has told of so many refusals in all."""

    def heard() -> int:
        found = [e for e in mesh.entries("gateway") if isinstance(e, Reported) and e.agent == agent]
        return sum(refused.count for e in found for refused in e.refusals)

    async with asyncio.timeout(30):
        while heard() < count:
            await asyncio.sleep(0.05)
    await mesh.gateway.standings.drain()


def replayed(mesh: Mesh) -> Replayed:
    made = Replayed()
    for index, line in mesh.gateway.ledger.lines():
        made.read(index, line)
    return made


def stored(mesh: Mesh) -> list[Book]:
    return Shelf(mesh.gateway._store).books()


async def refuse_severely(mesh: Mesh, agent: str = "demo", severity: str = "severe", origin: str = "x") -> None:
    kind = entries.Refusals("policy_forbids", "workbench", 1, severity, ["p"])
    first = mesh.gateway.standings.heard(agent, origin) + 1
    await mesh.gateway.standings.refused(entries.Reported(agent, origin, first, first, [kind]))
    await mesh.gateway.standings.drain()


@pytest.mark.slow
async def test_outcomes_earn_by_the_risk_of_the_tool_up_to_the_days_cap(mesh: Mesh) -> None:
    for _ in range(8):
        assert (await mesh.call(READ, NOTES)).status == 200
    for number in range(2):
        assert (await mesh.call(WRITE, {"path": "x", "content": str(number)})).status == 200
    assert (await mesh.call(READ, {"path": "missing.txt"})).status == 200
    told = await story(mesh)
    assert [(m["rule"], m.get("risk", 0)) for m in told["moved"][1:]] == [("outcome", 0)] * 5 + [("outcome", 1)] * 2
    assert told["earned_today"] == [50, 100, 0, 0]
    outcomes = [e for e in mesh.entries("gateway") if isinstance(e, Outcome)]
    assert [e.status for e in outcomes].count("tool_error") == 1
    lines = dict(mesh.gateway.ledger.lines())
    for moved in told["moved"][1:]:
        assert isinstance(lines[moved["cause"]].entry, Outcome)


@pytest.mark.slow
async def test_refusals_cost_by_their_policys_severity_and_only_their_own_agent(mesh: Mesh) -> None:
    helper = await mesh.add_agent("helper", "bob")
    severe = '@id("severe") @severity("severe") forbid (principal, action in Action::"fs", resource) when { context.args has path && context.args.path == "trap.txt" };'
    assert (await mesh.activate({**policy_files(), "x.cedar": severe})).status == 200
    await mesh.ready()
    assert (await mesh.call(READ, {"path": "trap.txt"})).status == 403
    assert (await mesh.call(READ, {"path": "server.pem"})).status == 403
    stranger = {"tool": READ, "args": {"path": "trap.txt"}}
    assert (await mesh.request("POST", f"{mesh.url}/v1/actions", token="x" * 40, json=stranger)).status == 401
    await reported(mesh, 2)
    told = await story(mesh)
    assert [(m["severity"], m["policy"], m["count"]) for m in told["moved"][1:]] == [
        ("severe", "severe", 1),
        ("minor", "no-key-files", 1),
    ]
    assert (told["score"], told["tier"]) == (1000 * 8000 // 40_500, "untrusted")
    assert (await story(mesh, "helper"))["score"] == 400, "nobody can defame another"
    async with asyncio.timeout(30):
        while mesh.sidecar.world.facts.standing.level:
            await asyncio.sleep(0.02)
    answer = await mesh.call(WRITE, {"path": "x", "content": ""})
    assert answer.json["reason"] in ("policy_forbids", "no_policy_permits")
    assert (await mesh.call(READ, NOTES)).status == 200, "an untrusted agent may read"
    assert (await mesh.act(helper, WRITE, {"path": "x", "content": ""})).status == 200


@pytest.mark.slow
async def test_each_refusal_is_told_once_over_restarts_of_both(mesh: Mesh) -> None:
    mesh.sidecar._tasks[2].cancel()  # what tells
    for _ in range(3):
        assert (await mesh.call(READ, {"path": "server.pem"})).status == 403
    await mesh.stop("sidecar")
    await mesh.start_sidecar()
    await reported(mesh, 3)
    assert (await mesh.call(READ, {"path": "server.pem"})).status == 403
    await reported(mesh, 4)
    await mesh.stop("sidecar")
    await mesh.stop("gateway")
    await mesh.start_gateway()
    await mesh.start_sidecar()
    await asyncio.sleep(1.5)
    told = [m for m in (await story(mesh))["moved"] if m["rule"] == "refusal"]
    assert sum(m["count"] for m in told) == 4


@pytest.mark.slow
async def test_replay_gives_the_stored_books_and_a_crash_in_between_is_made_up_for(mesh: Mesh) -> None:
    await mesh.add_agent("helper", "ada")
    for _ in range(3):
        await mesh.call(READ, NOTES)
        await mesh.call(READ, {"path": "server.pem"})
    await reported(mesh, 3)
    assert replayed(mesh).books() == stored(mesh)
    # The gateway dies after it wrote what it observed and before it wrote what follows.
    mesh.gateway._tasks[2].cancel()
    await asyncio.sleep(0)
    assert (await mesh.call(WRITE, {"path": "x", "content": ""})).status == 200
    kind = entries.Refusals("policy_forbids", "workbench", 3, "minor", ["p"])
    first = mesh.gateway.standings.heard("demo", "x") + 1
    await mesh.gateway.standings.refused(entries.Reported("demo", "x", first, first, [kind, kind]))
    before = replayed(mesh)
    assert len(before.missing) == 3
    assert before.books() != stored(mesh)
    await mesh.stop("gateway")
    await mesh.start_gateway()
    after = replayed(mesh)
    assert not after.missing
    assert not after.wrong
    assert after.books() == stored(mesh) == before.books()
    await mesh.stop("gateway")
    await mesh.start_gateway()
    assert replayed(mesh).moved == after.moved, "and once is enough"


@pytest.mark.slow
async def test_the_database_is_a_projection_of_standing_too(mesh: Mesh) -> None:
    await mesh.call(READ, NOTES)
    await refuse_severely(mesh, severity="critical")
    await mesh.admin("POST", "/v1/agents/demo/clear", {"reason": "looked at it"})
    before = mesh.gateway._store.dump()
    await mesh.stop("gateway")
    for path in (mesh.home / "gateway").glob("state.sqlite*"):
        path.unlink()
    await mesh.start_gateway()
    assert [row for row in mesh.gateway._store.dump() if row[0] == "Book"] == [
        row for row in before if row[0] == "Book"
    ]
    assert replayed(mesh).books() == stored(mesh)


@pytest.mark.slow
async def test_people_clear_grant_and_vouch_with_a_reason_and_by_name(mesh: Mesh) -> None:
    await mesh.add_agent("helper", "bob")
    await refuse_severely(mesh, severity="critical")
    assert (await story(mesh))["evidence"]["cap"] == 299
    for path, body, expected in (
        ("demo/clear", {"reason": " "}, "say why"),
        ("helper/clear", {"reason": "x"}, "under no cap"),
        ("helper/grant", {"allowed": True, "reason": "x"}, "not attested"),
        ("helper/vouch", {"voucher": "demo", "milli": 10, "reason": "x"}, "vouching needs 700"),
        ("nobody/clear", {"reason": "x"}, "no agent"),
    ):
        answer = await mesh.admin("POST", f"/v1/agents/{path}", body)
        assert expected in answer.json["detail"], answer.body
    denied = await mesh.admin("POST", "/v1/agents/demo/clear", {"reason": "x"}, "approver-1")
    assert denied.json["reason"] == "not_yours", "only operators"
    assert (await mesh.admin("POST", "/v1/agents/demo/clear", {"reason": "a false alarm"})).json["evidence"][
        "cap"
    ] == 899
    last = [e for e in mesh.entries("gateway") if isinstance(e, Moved)][-1]
    assert (last.rule, last.by, last.reason) == ("cleared", "operator", "a false alarm")


@pytest.mark.slow
async def test_a_vouch_lifts_and_something_severe_burns_it(mesh: Mesh) -> None:
    await mesh.add_agent("helper", "bob")
    book = Shelf(mesh.gateway._store).book("demo")
    assert book is not None
    from trust.standing import decay

    strong = msgspec.structs.replace(book, earned=decay.add("0", 60_000, 30, book.day))
    mesh.gateway._store.begin()
    Shelf(mesh.gateway._store).keep(strong)
    mesh.gateway._store.commit(mesh.gateway.ledger.origin, mesh.gateway.ledger.size)
    vouch = {"voucher": "demo", "milli": 10_000, "reason": "known for years"}
    told = (await mesh.admin("POST", "/v1/agents/helper/vouch", vouch)).json
    assert told["score"] == 500
    assert [m["rule"] for m in (await story(mesh))["moved"]] == ["registered", "staked"]
    again = await mesh.admin("POST", "/v1/agents/helper/vouch", vouch)
    assert "already" in again.json["detail"]
    await refuse_severely(mesh, "helper")
    assert [m["rule"] for m in (await story(mesh, "helper"))["moved"]] == [
        "registered",
        "vouched",
        "refusal",
        "unvouched",
    ]
    assert [m["rule"] for m in (await story(mesh))["moved"]] == ["registered", "staked", "burned"]
    assert (await story(mesh))["evidence"]["earned"] == 50_000


@pytest.mark.slow
async def test_a_new_agent_of_the_same_principal_does_not_begin_clean(mesh: Mesh) -> None:
    await refuse_severely(mesh)
    for name, owner, expected in (("second", "ada", 1000 * 8000 // 40_000), ("third", "bob", 400)):
        await mesh.admin("POST", "/v1/agents", {"name": name, "owner": owner})
        told = await story(mesh, name)
        assert told["score"] == expected
        first = told["moved"][0]
        assert (first["rule"], first["other"], first["before"], first["after"]) == ("registered", owner, 400, expected)


@pytest.mark.slow
async def test_a_score_that_somebody_sends_is_not_believed(mesh: Mesh) -> None:
    """The facts of a compromised sidecar say 1000; the gateway's own word decides."""
    from tests.attacks.test_forgery import dispatch, statement

    await refuse_severely(mesh)
    made, body = statement(mesh, "write_file", {"path": "x", "content": ""})
    facts = json.loads(json.dumps(made.facts))
    facts["context"]["trust"] = {"score": 1000, "tier": "verified", "ring": 0}
    answer = await dispatch(mesh, msgspec.structs.replace(made, facts=facts), body)
    assert answer.status == 403
    await mesh.gateway.standings.drain()
    assert (await story(mesh))["moved"][-1]["rule"] == "refusal", "and that it was tried counts"


# Circuit breakers


@pytest.mark.slow
async def test_a_loop_is_stopped_for_a_while_and_then_goes_on(tmp_path: Path) -> None:
    async with Mesh(tmp_path, breaker=BreakerConfig(loop=5, open_s=2)) as mesh:
        (mesh.sandbox / "notes.txt").write_text("hello")
        answers = [await mesh.call(READ, NOTES) for _ in range(8)]
        assert [a.status for a in answers] == [200] * 4 + [503] * 4
        assert answers[-1].json["reason"] == "circuit_open"
        assert 1 <= int(answers[-1].headers["Retry-After"]) <= 3
        trips = [e for e in mesh.entries("gateway") if isinstance(e, Breaker)]
        assert [(t.target, t.rule, t.count) for t in trips] == [("agent:demo", "loop", 5)]
        assert len([e for e in mesh.entries("node") if isinstance(e, entries.Dispatch)]) == 4
        await mesh.stop("gateway")
        await mesh.start_gateway()
        assert (await mesh.gateway.standings.drain()) is None
        await asyncio.sleep(2.2)
        await mesh.ready()
        async with asyncio.timeout(30):
            while (await mesh.call(READ, NOTES)).status != 200:
                await asyncio.sleep(0.1)


@pytest.mark.slow
async def test_a_server_that_fails_for_everybody_is_stopped_for_everybody(tmp_path: Path) -> None:
    async with Mesh(tmp_path, breaker=BreakerConfig(failures=3, open_s=30)) as mesh:
        other = await mesh.add_agent("other", "bob")
        from sidecar.node.upstream import UpstreamFailed

        upstream: Any = mesh.node.offers.upstreams["workbench"]

        def fail(*_: Any) -> Any:
            raise UpstreamFailed("no")

        upstream.exchange = fail
        seen = []
        for number in range(8):
            sidecar = (mesh.sidecar, other)[number % 2]
            seen.append((await mesh.act(sidecar, READ, {"path": f"{number}.txt"})).json["reason"])
        trips = {e.target: e.rule for e in mesh.entries("gateway") if isinstance(e, Breaker)}
        assert trips == {"agent:demo": "failures", "server:workbench": "failures"}
        assert seen[-1] == "circuit_open"


# 100,000 actions


@pytest.mark.soak
def test_replay_of_a_hundred_thousand_actions_gives_the_same_books(tmp_path: Path) -> None:
    """A gateway's own ledger and state, filled through its own services, then replayed from the files."""
    asyncio.run(_hundred_thousand(tmp_path))


async def _hundred_thousand(home: Path) -> None:
    from gateway.app import Gateway
    from gateway.config import GatewayConfig
    from gateway.registry import NewAgent
    from licet import ledgers

    gateway = Gateway(GatewayConfig(home=home / "gateway", port=0))
    await gateway.start()
    for number in range(10):
        await gateway.registry.register_agent(NewAgent(f"a{number}", f"p{number % 3}"), "test")
    begin = time.monotonic()
    for number in range(100_000):
        agent = f"a{number % 10}"
        if number % 7:
            await gateway.standings.ended(
                Outcome("a", "d", "r", "done" if number % 11 else "failed", step=8, agent=agent, risk=number % 4)
            )
        else:
            kind = entries.Refusals("policy_forbids", f"s{number % 5}", 1 + number % 3, "benign", [f"p{number % 13}"])
            await gateway.standings.refused(entries.Reported(agent, "o", number, number, [kind]))
        if number % 5000 == 0:
            await gateway.standings.drain()
    await gateway.standings.drain()
    wrote = time.monotonic() - begin
    books = Shelf(gateway._store).books()
    await gateway.stop()
    begin = time.monotonic()
    again = Replayed()
    for index, line in ledgers.lines(home / "gateway" / "ledger"):
        again.read(index, line)
    print(
        f"wrote in {wrote:.1f} s; replayed {again.observed} observations, {again.moved} changes in {time.monotonic() - begin:.1f} s"
    )
    assert not again.wrong
    assert not again.missing
    assert again.books() == books
    assert again.observed == 100_000
