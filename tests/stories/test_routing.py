"""Several nodes: which one runs what, what never moves, and what happens when they fail."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from gateway.router import trace
from sidecar.config import ToolServer
from tests.mesh import Answer, Mesh, policy_files
from tests.wire import Wire
from trust.ledger.entries import Dispatch, Node, Outcome, Refusal

pytestmark = pytest.mark.slow

# A tool server that says where it runs, keeps a log, and is slow or large when asked.
SERVER = """
import json, sys, time
name, log = sys.argv[1:]
held = {}
for line in sys.stdin:
    asked = json.loads(line)
    if "id" not in asked:
        continue
    answer = {"jsonrpc": "2.0", "id": asked["id"]}
    if asked["method"] == "initialize":
        answer["result"] = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {"name": "f", "version": "1"}}
    elif asked["method"] == "tools/list":
        schema = {"type": "object", "properties": {"text": {"type": "string"}, "slow": {"type": "integer"}, "size": {"type": "integer"}}}
        answer["result"] = {"tools": [{"name": one, "description": one, "inputSchema": schema} for one in ("look", "pay", "train", "big")]}
    else:
        tool, args = asked["params"]["name"], asked["params"].get("arguments", {})
        with open(log, "a") as out:
            out.write(json.dumps([name, tool, args.get("text", "")]) + "\\n")
        time.sleep(args.get("slow", 0) / 1000)
        held[args.get("text", "")] = held.get(args.get("text", ""), 0) + 1
        text = "x" * args["size"] if "size" in args else f"{name} {held}"
        answer["result"] = {"content": [{"type": "text", "text": text}]}
    print(json.dumps(answer), flush=True)
"""
MANIFEST = """
[tools.look]
category = "data"
effect = "read"
privileged = false
risk = 0
idempotent = true
[tools.pay]
category = "data"
effect = "write"
privileged = false
risk = 1
[tools.train]
category = "data"
effect = "read"
privileged = false
risk = 0
requires = ["gpu"]
[tools.big]
category = "data"
effect = "read"
privileged = false
risk = 0
limits = { bytes = 1000, seconds = 1, at_once = 1 }
"""
PERMIT = '@id("all") permit (principal, action in Action::"data", resource);'


class Bank:
    """One tool server on several nodes; each keeps its own log."""

    def __init__(self, home: Path, name: str = "bank", seen: str = "", **more: Any) -> None:
        """*seen*: what a run has seen that has looked here."""
        self.home, self.name, self.more = home / name, name, more
        self.home.mkdir(parents=True, exist_ok=True)
        (self.home / "server.py").write_text(SERVER)
        (self.home / "manifest.toml").write_text(
            MANIFEST.replace("[tools.look]", f"[tools.look]\nlabels = {json.dumps([seen] if seen else [])}")
        )

    def on(self, node: str) -> ToolServer:
        command = (sys.executable, "-S", str(self.home / "server.py"), node, str(self.home / f"{node}.log"))
        return ToolServer(name=self.name, command=command, manifest=self.home / "manifest.toml", **self.more)

    def ran(self, node: str) -> list[str]:
        log = self.home / f"{node}.log"
        return [json.loads(line)[2] for line in log.read_text().splitlines()] if log.exists() else []

    def all_ran(self) -> list[str]:
        return [text for log in sorted(self.home.glob("*.log")) for text in self.ran(log.stem)]


def policies(text: str = PERMIT) -> dict[str, str]:
    return {k: v for k, v in policy_files().items() if not k.startswith("cases/")} | {"x.cedar": text}


def refused(answer: Answer, reason: str) -> Any:
    assert answer.json.get("reason") == reason, answer.body
    return answer.json


class Three:
    """A mesh with nodes of three kinds before one server; ``wires`` are the ways to two of them."""

    def __init__(self, mesh: Mesh, bank: Bank, wires: dict[str, Wire]) -> None:
        self.mesh, self.bank, self.wires = mesh, bank, wires

    async def look(self, text: str = "x", **more: Any) -> Answer:
        return await self.mesh.call("bank/look", {"text": text}, **more)


async def wired(stack: AsyncExitStack, mesh: Mesh, bank: Bank, name: str, **how: Any) -> Wire:
    """A node behind a wire that can be watched and cut."""
    wire = await stack.enter_async_context(Wire(0).open())
    node = await mesh.add_node(name, bank.on(name), public_url=wire.url, **how)
    wire.target = node.port
    return wire


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Three]:
    bank = Bank(tmp_path / "bank")
    async with AsyncExitStack() as stack:
        mesh = await stack.enter_async_context(Mesh(tmp_path, policies=policies()))
        wires = {
            "office": await wired(
                stack, mesh, bank, "office", kind="on_prem", capabilities={"data_locality": "berlin"}
            ),
            "cloud": await wired(stack, mesh, bank, "cloud", kind="cloud", capabilities={"gpu": True}),
        }
        await mesh.add_node("laptop", bank.on("laptop"), kind="cloud_pc", claims={"gpu": True})
        yield Three(mesh, bank, wires)


async def nodes(mesh: Mesh) -> dict[str, Any]:
    return {one["name"]: one for one in (await mesh.admin("GET", "/v1/nodes")).json["nodes"]}


async def put(mesh: Mesh, name: str, state: str, reason: str = "test") -> Answer:
    return await mesh.admin("POST", f"/v1/nodes/{name}/state", {"state": state, "reason": reason})


# Who is chosen, and how that is told


async def test_calls_spread_over_the_nodes_that_offer_the_tool(three: Three) -> None:
    calls = (
        three.mesh.call("bank/pay", {"text": "x", "slow": 50}) for _ in range(30)
    )  # long enough to be there at once
    answers = await asyncio.gather(*calls)
    assert {a.json.get("node", a.body) for a in answers} == {"office", "cloud", "laptop"}
    assert sum(len(three.bank.ran(name)) for name in ("office", "cloud", "laptop")) == 30


async def test_the_answer_tells_the_trace_and_the_ledger_computes_it_again(three: Three) -> None:
    answer = await three.look(place={"kind": "cloud"})
    told = answer.json["trace"]
    assert told["tool_name"] == "bank/look"
    assert told["node_id"] == answer.headers["Licet-Node"] == answer.json["node"] == "cloud"
    assert told["latency_ms"] > 0
    assert told["gpu_match"] is told["locality_match"] is True
    assert 0 <= told["score"] <= 1
    assert told["eliminated"] == {"of_another_kind": 3}
    entry = next(e for e in three.mesh.entries("gateway") if isinstance(e, Dispatch))
    assert entry.trace is not None
    assert trace.replay(trace.read(entry.trace)) == []
    async with asyncio.timeout(30):
        while (explained := await three.mesh.admin("GET", f"/v1/decisions/{entry.decision_id}/routing")).status != 200:
            await asyncio.sleep(0.1)
    attempt = explained.json["attempts"][0]
    assert attempt["wrong"] == []
    assert attempt["trace"]["node_id"] == "cloud"
    assert (await three.mesh.admin("GET", "/v1/decisions/dec_nothing/routing")).status == 404


async def test_a_caller_narrows_and_never_widens(three: Three) -> None:
    assert {(await three.look(place={"pin": "laptop"})).json["node"] for _ in range(3)} == {"laptop"}
    assert {(await three.look(place={"kind": "on_prem"})).json["node"] for _ in range(3)} == {"office"}
    no = refused(await three.look(place={"pin": "laptop", "kind": "cloud"}), "no_eligible_node")
    assert no["detail"] == "3 not_pinned, 1 of_another_kind"
    assert (await three.look(place={"kind": "moon"})).status == 400
    pinned = await three.mesh.call("bank/train", {}, place={"pin": "office"})
    assert "1 lacks:gpu" in refused(pinned, "no_eligible_node")["detail"]


async def test_a_strict_objective_that_nobody_meets_is_refused_and_a_soft_one_is_not(three: Three) -> None:
    for wire in three.wires.values():
        wire.slow_s = 0.2
    for _ in range(2):
        for name in three.wires:
            assert (await three.look(place={"pin": name})).status == 200
    strict = await three.look(place={"slo_ms": 1, "strict": True})
    assert "none of 3 nodes answers within 1 ms" in refused(strict, "slo_unsatisfiable")["detail"]
    assert (await three.look(place={"slo_ms": 1})).status == 200
    assert (await three.look(place={"slo_ms": 0})).status == 400


# What is hard


async def test_a_claim_gets_nothing_that_is_hard(three: Three) -> None:
    assert {(await three.mesh.call("bank/train", {})).json["node"] for _ in range(8)} == {"cloud"}
    held = {one["word"]: one["level"] for one in (await nodes(three.mesh))["laptop"]["capabilities"]}
    assert held == {"gpu": "claimed"}
    await put(three.mesh, "cloud", "quarantined")
    no = refused(await three.mesh.call("bank/train", {}), "no_eligible_node")
    assert no["detail"] == "1 does_not_offer_the_server, 2 lacks:gpu, 1 quarantined"


STAYS = (
    PERMIT
    + """
@id("berlin-stays")
forbid (principal, action == Action::"place", resource)
when { context.labels.contains("secret") }
unless { resource.capabilities.contains("data_locality=berlin") };
@id("what-a-run-has-seen-stays")
forbid (principal, action == Action::"place", resource)
when { context.run.contains("secret") }
unless { resource.capabilities.contains("data_locality=berlin") };
"""
)


async def test_data_that_must_stay_does_not_move_because_its_node_is_dead(tmp_path: Path) -> None:
    """No byte of the request reaches any other node, whatever is tried meanwhile."""
    bank, secret = Bank(tmp_path / "bank", labels=("secret",)), "iban-de89370400440532013000"
    async with AsyncExitStack() as stack:
        mesh = await stack.enter_async_context(Mesh(tmp_path, policies=policies(STAYS)))
        office = await wired(stack, mesh, bank, "office", capabilities={"data_locality": "berlin"})
        others = [
            await wired(stack, mesh, bank, name, kind="cloud", claims={"data_locality": "berlin"})
            for name in ("a", "b")
        ]
        answers = [await mesh.call("bank/look", {"text": secret}) for _ in range(10)]
        assert {a.json["node"] for a in answers} == {"office"}
        assert secret.encode() in bytes(office.sent)
        await mesh.lose_node("office")
        await office.close()
        for _ in range(10):
            no = refused(await mesh.call("bank/look", {"text": secret}), "no_eligible_node")
            assert "2 placement_policy" in no["detail"]
            assert "1 unreachable" in no["detail"] or "1 lost" in no["detail"]
        for name in ("a", "b"):
            pinned = await mesh.call("bank/look", {"text": secret}, place={"pin": name})
            assert pinned.json["reason"] == "no_eligible_node"
        assert all(secret.encode() not in bytes(wire.sent) for wire in others)
        assert all(b"/v1/execute" not in bytes(wire.sent) for wire in others)
        assert bank.ran("a") == bank.ran("b") == []


async def test_what_a_run_has_seen_limits_where_it_goes_on(tmp_path: Path) -> None:
    secret, plain = Bank(tmp_path / "bank", seen="secret"), Bank(tmp_path / "bank", "shop")
    async with Mesh(tmp_path, policies=policies(STAYS)) as mesh:
        await mesh.add_node("office", secret.on("office"), plain.on("office"), capabilities={"data_locality": "berlin"})
        await mesh.add_node("cloud", secret.on("cloud"), plain.on("cloud"), kind="cloud")
        calls = await asyncio.gather(*(mesh.call("shop/look", {}, run="r1") for _ in range(12)))
        free = {a.json["node"] for a in calls}
        assert free == {"office", "cloud"}
        assert (await mesh.call("bank/look", {}, run="r1")).json["node"] == "office"
        assert {(await mesh.call("shop/look", {}, run="r1")).json["node"] for _ in range(8)} == {"office"}


async def test_data_may_say_itself_what_a_node_must_hold(tmp_path: Path) -> None:
    bank = Bank(tmp_path / "bank", requires=("data_locality=berlin",))
    async with Mesh(tmp_path, policies=policies()) as mesh:
        await mesh.add_node("elsewhere", bank.on("elsewhere"), capabilities={"data_locality": "paris"})
        no = refused(await mesh.call("bank/look", {}), "no_eligible_node")
        assert "1 lacks:data_locality=berlin" in no["detail"]
        await mesh.add_node("office", bank.on("office"), capabilities={"data_locality": "berlin"})
        assert (await mesh.call("bank/look", {})).json["trace"]["constraints"]["requires"] == ["data_locality=berlin"]


# Admission


NO_EDGE = (
    PERMIT
    + """
@id("no-edge") @reason("edge devices are not for this mesh")
forbid (principal, action == Action::"admit", resource) when { principal.kind == "edge" };
"""
)


async def test_admission_is_a_decision_of_policy_each_time_it_changes(tmp_path: Path) -> None:
    bank = Bank(tmp_path / "bank")
    async with Mesh(tmp_path, policies=policies()) as mesh:
        await mesh.add_node("device", bank.on("device"), kind="edge")
        assert (await mesh.call("bank/look", {})).status == 200
        assert (await mesh.activate(policies(NO_EDGE))).status == 200
        await mesh.ready()
        no = refused(await mesh.call("bank/look", {}), "no_eligible_node")
        assert "1 not_admitted" in no["detail"]
        assert (await nodes(mesh))["device"]["state"] == "not admitted"
        with pytest.raises(Exception, match="not admitted: edge devices are not for this mesh"):
            await mesh.add_node("other", bank.on("other"), kind="edge")
        assert any(e.reason == "policy_forbids" for e in mesh.entries("gateway") if isinstance(e, Refusal))


# Drained, quarantined, lost


async def test_a_drained_node_finishes_what_runs_and_gets_nothing_more(three: Three) -> None:
    running = asyncio.create_task(three.mesh.call("bank/pay", {"text": "long", "slow": 1000}, place={"pin": "laptop"}))
    await until(lambda: three.bank.ran("laptop") == ["long"])
    assert (await put(three.mesh, "laptop", "draining")).json == {"name": "laptop", "state": "draining"}
    assert "laptop" not in {a.json["node"] for a in await asyncio.gather(*(three.look() for _ in range(24)))}
    no = refused(await three.look(place={"pin": "laptop"}), "no_eligible_node")
    assert "1 draining" in no["detail"]
    assert (await running).status == 200
    again = await put(three.mesh, "laptop", "draining")
    assert "draining already" in again.json["detail"]
    await put(three.mesh, "laptop", "ready")
    assert "laptop" in {a.json["node"] for a in await asyncio.gather(*(three.look() for _ in range(24)))}
    states = [
        (e.node, e.state, e.by) for e in three.mesh.entries("gateway") if isinstance(e, Node) and e.event == "state"
    ]
    assert states == [("laptop", "draining", "operator"), ("laptop", "ready", "operator")]


async def test_what_runs_on_a_node_that_is_quarantined_is_ended(three: Three) -> None:
    running = asyncio.create_task(three.mesh.call("bank/pay", {"text": "long", "slow": 5000}, place={"pin": "laptop"}))
    await until(lambda: three.bank.ran("laptop") == ["long"])
    await put(three.mesh, "laptop", "quarantined", "it behaves oddly")
    ended = await asyncio.wait_for(running, 3)
    assert "laptop was quarantined" in refused(ended, "outcome_unknown")["detail"]
    assert (await nodes(three.mesh))["laptop"]["reason"] == "it behaves oddly"


@pytest.mark.parametrize("bad", [{"state": "pending"}, {"state": "gone"}, {"state": "ready"}])
async def test_a_state_that_cannot_be_is_refused(three: Three, bad: dict[str, str]) -> None:
    answer = await three.mesh.admin("POST", "/v1/nodes/laptop/state", bad)
    assert answer.status == 400
    assert (await put(three.mesh, "nobody", "draining")).status == 404
    assert (await three.mesh.admin("POST", "/v1/nodes/laptop/state", {"state": "draining"}, "approver-1")).status == 403


async def until(holds: Any) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.02)


# Lost answers


async def test_a_node_that_cannot_be_reached_is_left_for_another(three: Three) -> None:
    await three.mesh.nodes["office"].stop()
    answers = [await three.look() for _ in range(12)]
    assert {a.status for a in answers} == {200}
    assert {a.json["node"] for a in answers} <= {"cloud", "laptop"}
    three.mesh.nodes.pop("office")
    refusals = [e for e in three.mesh.entries("gateway") if isinstance(e, Outcome) and e.reason == "node_unreachable"]
    assert all(e.status == "refused" and e.node == "office" for e in refusals)


async def test_an_idempotent_read_whose_answer_is_lost_runs_elsewhere(three: Three) -> None:
    await put(three.mesh, "laptop", "draining")
    three.wires["office"].cut = True
    answers = [await three.look() for _ in range(8)]
    assert {a.json["node"] for a in answers} == {"cloud"}
    assert max(a.json["trace"]["attempt"] for a in answers) == 2
    lost = [e for e in three.mesh.entries("gateway") if isinstance(e, Outcome) and e.status == "unknown"]
    assert lost
    assert all(e.node == "office" and e.attempt == 1 for e in lost)


async def test_a_payment_whose_answer_is_lost_is_answered_again_and_made_once(three: Three) -> None:
    wire = three.wires["office"]
    for number in range(3):
        wire.cut = True
        paying = asyncio.create_task(
            three.mesh.call("bank/pay", {"text": f"p{number}", "slow": 300}, place={"pin": "office"})
        )
        await until(lambda number=number: three.bank.ran("office").count(f"p{number}") == 1)
        await asyncio.sleep(0.35)
        wire.cut = False
        answer = await paying
        if answer.status == 200:
            assert answer.json["trace"]["attempt"] == 2
        else:
            refused(answer, "outcome_unknown")  # the second answer was lost too
        assert three.bank.ran("office").count(f"p{number}") == 1


async def test_when_the_second_answer_is_lost_too_it_is_unknown_and_happened_once(three: Three) -> None:
    three.wires["office"].cut = True
    answer = await three.mesh.call("bank/pay", {"text": "once"}, place={"pin": "office"})
    refused(answer, "outcome_unknown")
    assert three.bank.ran("office") == ["once"]
    assert three.bank.all_ran() == ["once"], "and nowhere else"
    dispatched = [e.attempt for e in three.mesh.entries("gateway") if isinstance(e, Dispatch)]
    assert dispatched == [1, 2]


async def test_a_payment_whose_node_died_is_not_made_elsewhere(three: Three) -> None:
    paying = asyncio.create_task(three.mesh.call("bank/pay", {"text": "once", "slow": 2000}))
    await until(lambda: three.bank.all_ran() == ["once"])
    [name] = [name for name in ("office", "cloud", "laptop") if three.bank.ran(name)]
    await three.mesh.lose_node(name)
    refused(await paying, "outcome_unknown")
    await asyncio.sleep(0.3)
    assert three.bank.all_ran() == ["once"]


async def test_what_a_person_approved_once_is_never_sent_twice(tmp_path: Path) -> None:
    bank, held = (
        Bank(tmp_path / "bank"),
        '@id("ask") @approval("of=operations ttl=15m") permit (principal, action in Action::"data", resource) when { context.approved };',
    )
    async with AsyncExitStack() as stack:
        mesh = await stack.enter_async_context(Mesh(tmp_path, policies=policies(held)))
        wire = await wired(stack, mesh, bank, "office")
        approval = (await mesh.call("bank/pay", {"text": "once"})).json["approval"]
        await mesh.vote(approval)
        wire.cut = True
        refused(await mesh.claim(approval), "outcome_unknown")
        wire.cut = False
        assert bank.ran("office") == ["once"]
        assert [e.attempt for e in mesh.entries("gateway") if isinstance(e, Dispatch)] == [1]


async def test_second_attempts_are_a_tenth_of_what_is_sent(three: Three) -> None:
    """What was saved at the start is ten; after that ten answers earn one."""
    for wire in three.wires.values():
        wire.cut = True
    await put(three.mesh, "laptop", "draining")
    await asyncio.gather(*(three.look(f"{n}") for n in range(30)))
    attempts = [e.attempt for e in three.mesh.entries("gateway") if isinstance(e, Dispatch)]
    assert attempts.count(1) == 30
    assert len(attempts) - 30 <= 10 + 3


async def test_a_read_that_takes_unusually_long_gets_a_second_attempt_and_the_first_answer_counts(three: Three) -> None:
    await put(three.mesh, "laptop", "draining")
    for _ in range(3):
        for name in three.wires:
            await three.look(place={"pin": name})
    three.wires["office"].slow_s = 3.0
    answers = await asyncio.wait_for(asyncio.gather(*(three.look() for _ in range(10))), 2.5)
    assert {a.json["node"] for a in answers} == {"cloud"}
    abandoned = [e for e in three.mesh.entries("gateway") if isinstance(e, Outcome) and e.status == "abandoned"]
    assert abandoned
    assert {e.node for e in abandoned} == {"office"}
    slow_pay = await three.mesh.call("bank/pay", {"text": "p"}, place={"pin": "office"})
    assert slow_pay.json["trace"]["attempt"] == 1, "only reads are asked for twice"


async def test_a_node_that_fails_three_times_in_a_row_rests(three: Three) -> None:
    three.wires["office"].cut = True
    for _ in range(3):
        await three.mesh.call("bank/pay", {"text": "x"}, place={"pin": "office"})
    assert (await nodes(three.mesh))["office"]["ejected_ms"] > 5000
    assert "office" not in {(await three.look()).json["node"] for _ in range(10)}


# Limits of tools


async def test_a_manifest_limits_time_size_and_how_many_run_at_once(tmp_path: Path) -> None:
    bank = Bank(tmp_path / "bank")
    async with Mesh(tmp_path, policies=policies()) as mesh:
        await mesh.add_node("office", bank.on("office"))
        assert (await mesh.call("bank/big", {"size": 500})).status == 200
        assert (
            "its manifest allows 1000"
            in refused(await mesh.call("bank/big", {"size": 2000}), "upstream_failed")["detail"]
        )
        assert (
            "1 s that its manifest allows"
            in refused(await mesh.call("bank/big", {"slow": 3000}), "outcome_unknown")["detail"]
        )
        await asyncio.sleep(2.2)
        both = await asyncio.gather(*(mesh.call("bank/big", {"slow": 500}) for _ in range(2)))
        assert sorted(a.status for a in both) == [200, 503]
        assert "1 may" in next(a for a in both if a.status == 503).json["detail"]


# Nodes that nobody can reach


@pytest.mark.parametrize("tls", [False, True])
async def test_a_node_that_cannot_be_reached_gets_its_work_on_its_own_connections(tmp_path: Path, tls: bool) -> None:
    bank = Bank(tmp_path / "bank")
    async with Mesh(tmp_path, policies=policies(), tls=tls) as mesh:
        await mesh.add_node("hidden", bank.on("hidden"), registered={"outbound": True}, outbound=True, host="127.0.0.1")
        answers = await asyncio.gather(*(mesh.call("bank/look", {"text": str(n)}) for n in range(20)))
        assert [a.json.get("node", a.body) for a in answers] == ["hidden"] * 20
        assert sorted(bank.ran("hidden"), key=int) == [str(n) for n in range(20)]
        assert (await nodes(mesh))["hidden"]["url"] == "outbound:"
        await mesh.stop("gateway")
        await mesh.start_gateway()
        await mesh.ready()
        async with asyncio.timeout(30):
            while (await mesh.call("bank/look", {"text": "after"})).status != 200:
                await asyncio.sleep(0.2)


async def test_a_node_is_reached_as_it_was_registered_and_not_otherwise(tmp_path: Path) -> None:
    bank = Bank(tmp_path / "bank")
    async with Mesh(tmp_path, policies=policies()) as mesh:
        with pytest.raises(Exception, match="expected at an http address on loopback, not on connections of its own"):
            await mesh.add_node("a", bank.on("a"), outbound=True)
        with pytest.raises(Exception, match="expected on its own connections"):
            await mesh.add_node("b", bank.on("b"), registered={"outbound": True})
        both = {"name": "c", "servers": ["bank"], "outbound": True, "url": "http://10.0.0.1:7420"}
        assert (await mesh.admin("POST", "/v1/nodes", both)).status == 400


# State that belongs together


async def test_what_keeps_state_stays_with_its_run_on_one_node_in_a_process_of_its_own(tmp_path: Path) -> None:
    bank = Bank(tmp_path / "bank", stateful=True)
    async with Mesh(tmp_path, policies=policies()) as mesh:
        for name in ("a", "b", "c"):
            await mesh.add_node(name, bank.on(name))
        homes = {}
        for run in ("r1", "r2", "r3", "r4"):
            answers = [await mesh.call("bank/look", {"text": "n"}, run=run) for _ in range(3)]
            [homes[run]] = {a.json["node"] for a in answers}
            counted = [a.json["result"]["content"][0]["text"].split(" ", 1)[1] for a in answers]
            assert counted == ["{'n': 1}", "{'n': 2}", "{'n': 3}"], "what other runs do is not seen"
        gone = homes["r1"]
        await put(mesh, gone, "draining")
        after = await mesh.call("bank/look", {"text": "n"}, run="r1")
        assert after.json["node"] != gone
        assert after.json["result"]["content"][0]["text"].endswith("{'n': 1}")


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ({"name": "n", "servers": ["bank"], "kind": "moon"}, "kind"),
        ({"name": "n", "servers": ["bank"], "capabilities": {"GPU": True}}, "a-z"),
        ({"name": "n", "servers": ["bank"], "capabilities": {"region": "eu west"}}, "region"),
        ({"name": "n", "servers": ["bank"], "weight": 0}, "weight"),
        ({"name": "n", "servers": ["bank"], "zone": "a b"}, "zone"),
    ],
)
async def test_a_registration_that_makes_no_sense_is_refused(mesh: Mesh, body: dict[str, Any], what: str) -> None:
    answer = await mesh.admin("POST", "/v1/nodes", body)
    assert answer.status == 400
    assert what in answer.json["detail"]
