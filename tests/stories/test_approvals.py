"""Approvals by real people over real processes: who may, how far it goes, what was shown, and every way in which not."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sidecar.config import ToolServer
from tests.mesh import Answer, Mesh, policy_files
from tests.stories.test_agents_cli import as_json, fine, licet
from tests.stories.test_asking import settled
from tests.verifier.test_packs import bare
from trust.ledger.entries import Approval, Intent, Refusal
from trust.wire import Place

pytestmark = pytest.mark.slow

BANK = """
import json, sys
properties = {"to": {"type": "string"}, "cents": {"type": "integer"}}
SCHEMA = {"type": "object", "properties": properties, "required": ["to", "cents"]}
for line in sys.stdin:
    asked = json.loads(line)
    match asked.get("method"):
        case "initialize":
            result = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {"name": "bank"}}
        case "tools/list":
            names = ("pay", "refund", "close", "burn")
            result = {"tools": [{"name": n, "description": n, "inputSchema": SCHEMA} for n in names]}
        case "tools/call":
            given = asked["params"]
            open(sys.argv[1], "a").write(json.dumps([given["name"], given["arguments"]]) + chr(10))
            result = {"content": [{"type": "text", "text": f"{given['name']} {given['arguments']}"}]}
        case _:
            continue
    print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}), flush=True)
"""
MANIFEST = "".join(
    f'[tools.{name}]\ncategory = "data"\neffect = "write"\nprivileged = true\nrisk = {risk}\nlabels = []\n'
    for name, risk in (("pay", 2), ("refund", 1), ("close", 1), ("burn", 3))
)
POLICY = """
@id("pays") @approval("of=finance quorum=2 ttl=1h") @reason("money leaves the house")
permit(principal, action == Action::"bank/pay", resource) when { context.approved };
@id("refunds") @approval("of=finance ttl=1h")
permit(principal, action == Action::"bank/refund", resource) when { context.approved };
@id("closes") @approval("of=team:leads ttl=10s escalate=1s,operations")
permit(principal, action == Action::"bank/close", resource) when { context.approved };
@id("burns") @approval("of=finance ttl=1h")
permit(principal, action == Action::"bank/burn", resource) when { context.approved };
@id("too-much") forbid(principal, action == Action::"bank/pay", resource) when { context.args.cents > 1000000 };
@id("too-much-back") forbid(principal, action == Action::"bank/refund", resource) when { context.args.cents > 1000000 };
"""
PAY = {"to": "ada's landlord", "cents": 70_000}
PEOPLE: dict[str, dict[str, Any]] = {
    "fay": {"roles": ["finance"]},
    "finn": {"roles": ["finance"]},
    "flo": {"roles": ["finance"]},
    "ada": {"roles": ["finance"]},
    "lea": {"roles": ["guest"], "teams": ["leads"]},
    "oz": {"roles": ["operations"]},
    "gus": {"roles": ["guest"]},
}


def files() -> dict[str, str]:
    kept = {k: v for k, v in policy_files().items() if not k.startswith("cases/")}
    return kept | {"bank.cedar": POLICY}


class BankMesh(Mesh):
    """With a bank, and people who may decide on what it does."""

    async def __aenter__(self) -> Mesh:
        await super().__aenter__()
        for name, more in PEOPLE.items():
            answer = await self.admin("POST", "/v1/people", {"name": name, **more})
            self.tokens[name] = answer.json["token"]
        answer = await self.activate(files())
        assert answer.status == 200, answer.body
        await self.ready()
        return self


def bank_mesh(home: Path) -> Mesh:
    (home / "bank.toml").write_text(MANIFEST)
    command = (sys.executable, "-c", BANK, str(home / "done"))
    bank = ToolServer(name="bank", command=command, manifest=home / "bank.toml")
    return BankMesh(home, servers=(bank,))


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with bank_mesh(tmp_path) as running:
        yield running


def done(mesh: Mesh) -> list[Any]:
    """What really happened at the bank."""
    path = mesh.home / "done"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def state(mesh: Mesh, approval: str) -> str:
    return mesh.gateway.desk.get(approval).state


def steps(mesh: Mesh, approval: str) -> list[str]:
    return [e.event for e in mesh.entries("gateway") if isinstance(e, Approval) and e.approval == approval]


async def held(mesh: Mesh, tool: str = "refund", args: Any = None, **more: Any) -> str:
    answer = await mesh.call(f"bank/{tool}", args or PAY, **more)
    assert answer.status == 202, answer.body
    return str(answer.json["approval"])


def no(answer: Answer, reason: str, says: str = "") -> None:
    assert answer.json.get("reason") == reason, answer.body
    assert says in answer.json["detail"]


async def edit(mesh: Mesh, approval: str, who: str, args: Any, presented: str | None = None) -> Answer:
    seen = mesh.gateway.desk.get(approval).presented if presented is None else presented
    return await mesh.admin("POST", f"/v1/approvals/{approval}/edits", {"arguments": args, "presented": seen}, who)


# Who may, and how many


async def test_two_must_agree_and_the_same_one_not_twice(mesh: Mesh) -> None:
    approval = await held(mesh, "pay")
    assert (await mesh.vote(approval, who="fay")).json["state"] == "pending"
    no(await mesh.vote(approval, who="fay"), "not_yours", "voted already")
    no(await mesh.claim(approval), "approval_pending")
    assert (await mesh.vote(approval, who="finn")).json["state"] == "approved"
    assert (await mesh.claim(approval)).status == 200
    no(await mesh.claim(approval), "approval_consumed")
    assert done(mesh) == [["pay", PAY]]


async def test_a_death_between_the_last_vote_and_its_consequence_loses_nothing(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def dies(*_: Any, **__: Any) -> None:
        raise ConnectionError("here kill -9 came")

    yes, no_ = await held(mesh), await held(mesh, args={**PAY, "cents": 1})
    with monkeypatch.context() as patched:
        patched.setattr("gateway.approvals.votes.Votes._conclude", dies)
        assert (await mesh.vote(yes, who="fay")).status == 500
        assert (await mesh.vote(no_, "deny", who="fay")).status == 500
    assert state(mesh, yes) == state(mesh, no_) == "pending"
    await mesh.stop("gateway")
    await mesh.start_gateway()
    await mesh.ready()
    assert (state(mesh, yes), state(mesh, no_)) == ("approved", "denied")
    async with asyncio.timeout(30):  # until the node is heard of again
        while (await mesh.claim(yes)).status != 200:
            await asyncio.sleep(0.1)
    assert done(mesh) == [["refund", PAY]]


async def test_nobody_decides_for_themselves(mesh: Mesh) -> None:
    approval = await held(mesh)
    no(await mesh.vote(approval, who="ada"), "not_yours", "owns demo")
    no(await mesh.vote(approval, who="gus"), "not_yours", "none of the roles finance")
    assert (await edit(mesh, approval, "fay", {**PAY, "cents": 5})).status == 200
    no(await mesh.vote(approval, who="fay"), "not_yours", "edited it")
    no(await edit(mesh, approval, "ada", PAY), "not_yours", "owns demo")
    assert state(mesh, approval) == "pending"


async def test_a_principal_does_not_approve_what_is_done_for_them(mesh: Mesh) -> None:
    from licet.client import delegate, narrow
    from tests.stories.test_delegation import credentials

    other = await mesh.add_agent("other", "ben")
    root = await asyncio.to_thread(delegate, credentials(mesh), mesh.gateway_url, {"bank/refund": {}})
    chain = narrow(credentials(mesh), root, other.identity.key.public, {"bank/refund": {}})
    asked = await mesh.act(other, "bank/refund", PAY, chain=chain)
    no(await mesh.vote(asked.json["approval"], who="ada"), "not_yours", "done for")
    assert (await mesh.vote(asked.json["approval"], who="finn")).json["state"] == "approved"


async def test_teams_decide_and_others_when_they_do_not(mesh: Mesh) -> None:
    first = await held(mesh, "close")
    no(await mesh.vote(first, who="oz"), "not_yours", "team:leads")
    assert (await mesh.vote(first, who="lea")).json["state"] == "approved"
    second = await held(mesh, "close", {**PAY, "cents": 1})
    async with asyncio.timeout(30):
        while "escalated" not in steps(mesh, second):
            await asyncio.sleep(0.05)
    assert (await mesh.vote(second, who="oz")).json["state"] == "approved"
    assert (await mesh.claim(second)).status == 200


async def test_nobody_in_time_is_a_no_after_a_reminder(mesh: Mesh) -> None:
    approval = await held(mesh, "close")
    async with asyncio.timeout(30):
        while state(mesh, approval) == "pending":
            await asyncio.sleep(0.1)
    assert steps(mesh, approval) == ["requested", "escalated", "reminded", "expired"]
    no(await mesh.vote(approval, who="lea"), "approval_expired")
    no(await mesh.claim(approval), "approval_expired")
    assert done(mesh) == []


async def test_a_deputy_votes_in_the_seat_of_another(mesh: Mesh) -> None:
    now = time.time_ns() // 1000
    named = {"deputy": "gus", "since_us": now, "until_us": now + 3_600_000_000}
    assert (await mesh.admin("POST", "/v1/deputies", named, "finn")).status == 201
    approval = await held(mesh, "pay")
    assert (await mesh.vote(approval, who="gus")).status == 200
    no(await mesh.vote(approval, who="finn"), "not_yours", "has voted already")  # the seat is taken
    assert (await mesh.vote(approval, who="fay")).json["state"] == "approved"
    votes = [e for e in mesh.entries("gateway") if isinstance(e, Approval) and e.event == "vote"]
    assert [(e.by, e.seat) for e in votes] == [("gus", "finn"), ("fay", "fay")]
    assert (await mesh.admin("POST", "/v1/deputies/end", {"deputy": "gus"}, "finn")).status == 200
    another = await held(mesh, "pay", {**PAY, "cents": 1})
    no(await mesh.vote(another, who="gus"), "not_yours", "stands in for nobody")


async def test_a_deputy_is_no_way_around_who_may_not(mesh: Mesh) -> None:
    """Neither for the owner's seat, nor for the owner in another's."""
    now = time.time_ns() // 1000
    named = {"since_us": now, "until_us": now + 3_600_000_000}
    await mesh.admin("POST", "/v1/deputies", {"deputy": "gus", **named}, "ada")
    await mesh.admin("POST", "/v1/deputies", {"deputy": "ada", **named}, "finn")
    approval = await held(mesh)
    no(await mesh.vote(approval, who="gus"), "not_yours", "cannot decide on it")
    no(await mesh.vote(approval, who="ada"), "not_yours", "owns demo")


@pytest.mark.parametrize(
    ("deputy", "since", "until"),
    [("nobody", 0, 3600), ("finn", 0, 3600), ("gus", 3600, 0), ("gus", -7200, -3600), ("gus", 0, 400 * 86_400)],
)
async def test_no_such_deputy(mesh: Mesh, deputy: str, since: int, until: int) -> None:
    now = time.time_ns() // 1000
    body = {"deputy": deputy, "since_us": now + since * 1_000_000, "until_us": now + until * 1_000_000}
    assert (await mesh.admin("POST", "/v1/deputies", body, "finn")).status in (400, 404)


# Bound to exactly what was shown


async def test_a_vote_is_for_what_was_shown(mesh: Mesh) -> None:
    approval = await held(mesh)
    before = mesh.gateway.desk.get(approval).presented
    assert (await edit(mesh, approval, "fay", {**PAY, "cents": 5})).status == 200
    no(await mesh.vote(approval, who="finn", presented=before), "approval_mismatch", "look at it again")
    no(await mesh.vote(approval, who="finn", presented=""), "approval_mismatch")
    assert (await mesh.vote(approval, who="finn")).json["state"] == "approved"


async def test_edited_arguments_run_and_votes_of_before_do_not_count(mesh: Mesh) -> None:
    approval = await held(mesh, "pay")
    assert (await mesh.vote(approval, who="finn")).status == 200
    less = {**PAY, "cents": 9}
    told = await edit(mesh, approval, "fay", less)
    assert (told.json["votes"], told.json["editors"]) == ([], ["fay"])
    no(await mesh.vote(approval, who="fay"), "not_yours")
    assert (await mesh.vote(approval, who="finn")).json["state"] == "pending"
    assert (await mesh.vote(approval, who="flo")).json["state"] == "approved"
    answer = await mesh.call("bank/pay", PAY)  # the agent asks again for what it asked for
    assert answer.status == 200, answer.body
    assert done(mesh) == [["pay", less]]
    intents = [e for e in mesh.entries() if isinstance(e, Intent)]
    assert intents[-1].deed.arguments == less


async def test_an_approval_is_used_under_the_policies_of_now_only(mesh: Mesh) -> None:
    approval = await held(mesh)
    await mesh.vote(approval, who="fay")
    mesh.sidecar._tasks[0].cancel()  # what follows bundles
    await asyncio.sleep(0)
    assert (
        await mesh.activate(files() | {"more.cedar": '@id("x") forbid(principal, action, resource) when { false };'})
    ).status == 200
    no(await mesh.claim(approval), "permit_invalid", "ask again")
    assert state(mesh, approval) == "approved"
    assert done(mesh) == []


async def test_an_answer_says_that_people_changed_the_arguments(mesh: Mesh) -> None:
    approval = await held(mesh)
    assert (await edit(mesh, approval, "fay", {**PAY, "cents": 5})).status == 200
    await mesh.vote(approval, who="finn")
    answer = await mesh.call("bank/refund", PAY)
    assert (answer.status, answer.json["edited"]) == (200, True)
    assert done(mesh) == [["refund", {**PAY, "cents": 5}]]


async def test_a_scope_is_for_whom_it_was_given(mesh: Mesh) -> None:
    from licet.client import delegate, narrow
    from tests.stories.test_delegation import credentials

    other = await mesh.add_agent("other", "ben")
    asked = (await mesh.act(other, "bank/refund", PAY, run="r1")).json["approval"]
    assert (await mesh.vote(asked, who="fay", scope={"kind": "tool", "minutes": 9})).json["state"] == "approved"
    assert (await mesh.act(other, "bank/refund", PAY, run="r1")).status == 200
    assert (await mesh.act(other, "bank/refund", {**PAY, "cents": 2}, run="r1")).status == 200
    root = await asyncio.to_thread(delegate, credentials(mesh), mesh.gateway_url, {"bank/refund": {}})
    chain = narrow(credentials(mesh), root, other.identity.key.public, {"bank/refund": {}})
    handed_on = await mesh.act(other, "bank/refund", {**PAY, "cents": 3}, run="r1", chain=chain)
    assert handed_on.status == 202, "what is done for somebody else was not what fay said yes to"


async def test_what_nobody_could_permit_cannot_be_edited_in(mesh: Mesh) -> None:
    approval = await held(mesh)
    for args, reason in (
        ({**PAY, "cents": 2_000_000}, "policy_forbids"),
        ({"to": "x"}, "arguments_invalid"),
        ({**PAY, "more": 1}, "arguments_invalid"),
        (PAY, "malformed_request"),
    ):
        no(await edit(mesh, approval, "fay", args), reason)
    no(await edit(mesh, approval, "gus", {**PAY, "cents": 1}), "not_yours")
    no(await edit(mesh, approval, "fay", {**PAY, "cents": 1}, "0" * 64), "approval_mismatch")
    assert steps(mesh, approval) == ["requested"]


async def test_what_an_agent_signed_stands_for_its_edited_request_and_nothing_else(mesh: Mesh) -> None:
    """A shared sidecar that was taken over must not use it for what nobody asked."""
    approval = await held(mesh)
    assert (await edit(mesh, approval, "fay", {**PAY, "cents": 5})).status == 200
    desk = mesh.gateway.desk
    stored = msgspec.structs.replace(desk.stored(desk.get(approval))[0], approval=approval)
    first = desk.asked_first(stored)
    assert first is not None
    assert b"70000" in first[1]
    for changed in ({"action_digest": "0" * 64}, {"run": "another"}, {"place": Place(pin="node-2")}, {"chain": "x"}):
        assert desk.asked_first(msgspec.structs.replace(stored, **changed)) is None, changed


async def test_another_run_or_agent_cannot_claim_it(mesh: Mesh) -> None:
    approval = await held(mesh, run="r1")
    assert (await mesh.vote(approval, who="fay")).status == 200
    other = await mesh.add_agent("other", "ben")
    url = f"http://127.0.0.1:{other.port}/v1/approvals/{approval}/claim"
    no(await mesh.request("POST", url, token=other.token), "not_yours")
    assert (await mesh.call("bank/refund", PAY, run="r2")).status == 202
    assert (await mesh.call("bank/refund", {**PAY, "cents": 70_001}, run="r1")).status == 202
    assert state(mesh, approval) == "approved"
    assert done(mesh) == []
    assert (await mesh.call("bank/refund", PAY, run="r1")).status == 200


async def test_policy_has_the_last_word_and_the_approval_stays_unspent(mesh: Mesh) -> None:
    approval = await held(mesh)
    assert (await mesh.vote(approval, who="fay")).status == 200
    forbids = {**files(), "stop.cedar": '@id("stop") forbid(principal, action == Action::"bank/refund", resource);'}
    assert (await mesh.activate(forbids)).status == 200
    await mesh.ready()
    no(await mesh.claim(approval), "policy_forbids")
    assert state(mesh, approval) == "approved"
    assert (await mesh.activate(files())).status == 200
    await mesh.ready()
    assert (await mesh.claim(approval)).status == 200
    assert len(done(mesh)) == 1


@pytest.mark.parametrize("annotation", ["", "quorum=2", "of=finance quorum=0", "of=nobody", "of=team:nobody",
                                        "of=finance escalate=5m", "of=finance ttl=5m escalate=5m,operations",
                                        "of=finance escalate=5m,nobody"])  # fmt: skip
async def test_an_annotation_that_names_nobody_is_no_policy(mesh: Mesh, annotation: str) -> None:
    text = f'@id("x") @approval("{annotation}") permit(principal, action == Action::"bank/pay", resource) when {{ context.approved }};'
    assert (await mesh.activate({**files(), "x.cedar": text})).status == 422


# How far a yes goes


async def test_these_arguments_so_many_times(mesh: Mesh) -> None:
    approval = await held(mesh, run="r1")
    assert (await mesh.vote(approval, who="fay", scope={"kind": "uses", "uses": 3})).status == 200
    assert (await mesh.claim(approval)).status == 200
    for _ in range(2):
        assert (await mesh.call("bank/refund", PAY, run="r1")).status == 200
    assert (await mesh.call("bank/refund", PAY, run="r1")).status == 202, "three times, and no more"
    assert (await mesh.call("bank/refund", PAY, run="r2")).status == 202
    assert done(mesh) == [["refund", PAY]] * 3


async def test_this_tool_for_some_minutes_in_this_run(mesh: Mesh) -> None:
    approval = await held(mesh, run="r1")
    assert (await mesh.vote(approval, who="fay", scope={"kind": "tool", "minutes": 10})).status == 200
    assert (await mesh.claim(approval)).status == 200
    assert (await mesh.call("bank/refund", {**PAY, "cents": 2}, run="r1")).status == 200
    assert (await mesh.call("bank/refund", PAY, run="r2")).status == 202
    no(await mesh.call("bank/refund", {**PAY, "cents": 2_000_000}, run="r1"), "policy_forbids")
    assert (await mesh.call("bank/pay", PAY, run="r1")).status == 202
    shown = (await mesh.admin("GET", f"/v1/approvals/{approval}", who="fay")).json
    assert shown["left"]["action_digest"] == ""
    answer = await mesh.admin("POST", f"/v1/approvals/{approval}/revocation", {"reason": "enough"}, "finn")
    assert answer.status == 200, answer.body
    assert (await mesh.call("bank/refund", {**PAY, "cents": 3}, run="r1")).status == 202
    no(await mesh.admin("POST", f"/v1/approvals/{approval}/revocation", {}, "finn"), "approval_consumed")


async def test_a_yes_goes_as_far_as_its_narrowest_vote(mesh: Mesh) -> None:
    approval = await held(mesh, "pay", run="r1")
    await mesh.vote(approval, who="fay", scope={"kind": "tool", "minutes": 100})
    await mesh.vote(approval, who="finn", scope={"kind": "uses", "uses": 2, "minutes": 5})
    assert (await mesh.claim(approval)).status == 200
    assert (await mesh.call("bank/pay", {**PAY, "cents": 1}, run="r1")).status == 202
    assert (await mesh.call("bank/pay", PAY, run="r1")).status == 200
    assert (await mesh.call("bank/pay", PAY, run="r1")).status == 202


async def test_the_highest_risk_is_approved_once_each_time(mesh: Mesh) -> None:
    approval = await held(mesh, "burn")
    no(await mesh.vote(approval, who="fay", scope={"kind": "tool", "minutes": 5}), "approval_mismatch", "highest risk")
    assert state(mesh, approval) == "pending"


async def test_a_yes_that_was_not_used_can_be_taken_back(mesh: Mesh) -> None:
    approval = await held(mesh)
    await mesh.vote(approval, who="fay")
    no(await mesh.admin("POST", f"/v1/approvals/{approval}/revocation", {}, "gus"), "not_yours")
    assert (await mesh.admin("POST", f"/v1/approvals/{approval}/revocation", {}, "fay")).json["state"] == "cancelled"
    no(await mesh.claim(approval), "approval_cancelled", "took the approval back")
    assert done(mesh) == []


# No


async def test_a_denial_tells_the_agent_why_unless_that_is_not_for_it(mesh: Mesh) -> None:
    first = await held(mesh)
    await mesh.vote(first, "deny", "fay", "ask for less")
    no(await mesh.call("bank/refund", PAY), "approval_denied", "ask for less")
    second = await held(mesh, args={**PAY, "cents": 1})
    await mesh.vote(second, "deny", "fay", "it smells of fraud", tell=False)
    answer = await mesh.call("bank/refund", {**PAY, "cents": 1})
    no(answer, "approval_denied", "fay denied")
    assert "fraud" not in answer.body.decode()


async def test_a_rule_can_be_denied_for_the_rest_of_a_run(mesh: Mesh) -> None:
    approval = await held(mesh, run="r1")
    await mesh.vote(approval, "deny", "fay", block=True)
    no(await mesh.call("bank/refund", {**PAY, "cents": 1}, run="r1"), "approval_denied", "rest of this run")
    assert (await mesh.call("bank/refund", {**PAY, "cents": 1}, run="r2")).status == 202
    assert (await mesh.call("bank/pay", PAY, run="r1")).status == 202
    assert [e.reason for e in mesh.entries() if isinstance(e, Refusal)] == ["approval_denied"]


async def test_asking_again_is_one_card_with_a_count(mesh: Mesh) -> None:
    approval = await held(mesh)
    assert await held(mesh) == approval
    assert await held(mesh) == approval
    assert mesh.gateway.desk.get(approval).count == 3
    await mesh.stop("gateway")
    await mesh.start_gateway()
    assert mesh.gateway.desk.get(approval).count == 3


async def test_two_hundred_claims_and_one_execution(mesh: Mesh) -> None:
    approval = await held(mesh)
    await mesh.vote(approval, who="fay")
    answers = await asyncio.gather(*(mesh.claim(approval) for _ in range(200)))
    assert done(mesh) == [["refund", PAY]]
    others = {answer.json["reason"] for answer in answers if answer.status != 200}
    # An agent with so much in flight is also stopped by the policies of its ring, and a gateway that so many ask at once
    # may need longer for one of them than a sidecar waits.
    refusals = {"approval_consumed", "overloaded", "approval_mismatch", "policy_forbids", "gateway_unreachable"}
    assert others <= refusals
    told = sum(answer.status == 200 for answer in answers)
    assert told == 1 or (told == 0 and "gateway_unreachable" in others)


async def test_evidence_tells_edits_deputies_and_scopes(mesh: Mesh, tmp_path: Path) -> None:
    now = time.time_ns() // 1000
    named = {"deputy": "gus", "since_us": now, "until_us": now + 3_600_000_000}
    await mesh.admin("POST", "/v1/deputies", named, "finn")
    approval = await held(mesh, "pay", run="r1")
    await edit(mesh, approval, "fay", {**PAY, "cents": 9})
    for who in ("gus", "flo"):
        await mesh.vote(approval, who=who, scope={"kind": "tool", "minutes": 5})
    assert (await mesh.claim(approval)).status == 200
    assert (await mesh.call("bank/pay", {**PAY, "cents": 4}, run="r1")).status == 200
    await settled(mesh)
    answer = await mesh.admin("GET", "/v1/runs/r1/evidence")
    (tmp_path / "r1.zip").write_bytes(answer.body)
    code, output = await asyncio.to_thread(bare, tmp_path / "r1.zip")
    assert code == 0, output
    assert output.count("approved by flo, gus for finn") == 2


# The command line


async def test_the_commands(mesh: Mesh, tmp_path: Path) -> None:
    tokens = {}
    for name in ("fay", "finn", "gus"):
        tokens[name] = tmp_path / f"{name}.token"
        tokens[name].write_text(mesh.tokens[name])
    approval = await held(mesh, "pay", run="r1")
    assert "money leaves the house" in await fine(mesh, "approvals", "show", approval)
    watched = await fine(mesh, "approvals", "watch", "--seconds", "1")
    assert approval in watched
    less = json.dumps({**PAY, "cents": 5})
    said = await fine(mesh, "approvals", "edit", approval, less, "--as", str(tokens["fay"]))
    assert "edited by fay" in said
    code, _, error = await licet(mesh, "approvals", "approve", approval, "--as", str(tokens["fay"]))
    assert code != 0
    assert "edited it" in error
    later = time.strftime("%Y-%m-%d", time.gmtime(time.time() + 3 * 86_400))
    assert "votes in your seat" in await fine(
        mesh, "approvals", "deputy", "gus", "--until", later, "--as", str(tokens["finn"])
    )
    assert [d["deputy"] for d in await as_json(mesh, "approvals", "deputy")] == ["gus"]
    for_finn = ("approvals", "grant", approval, "--uses", "2", "--for", "finn", "--as", str(tokens["gus"]))
    assert "pending" in await fine(mesh, *for_finn)
    code, _, error = await licet(mesh, "approvals", "grant", approval, "--as", str(tokens["fay"]))
    assert "--uses N" in error
    assert "votes for you no more" in await fine(
        mesh, "approvals", "deputy", "gus", "--end", "--as", str(tokens["finn"])
    )
    refund = await held(mesh, run="r1")
    assert "is denied" in await fine(mesh, "approvals", "deny", refund, "--block", "--as", str(tokens["fay"]))
    another = await held(mesh, args={**PAY, "cents": 1})
    assert "is approved" in await fine(mesh, "approvals", "approve", another, "--as", str(tokens["fay"]))
    assert "goes no further" in await fine(mesh, "approvals", "revoke", another, "--as", str(tokens["finn"]))
    listed = await as_json(mesh, "approvals", "list", "--state", "all")
    assert {one["state"] for one in listed} == {"pending", "denied", "cancelled"}


# Waiting


async def prefer(mesh: Mesh, tool: str, args: Any, wait: str) -> Answer:
    return await mesh.call_with(f"bank/{tool}", args, {"Prefer": wait})


async def test_an_agent_may_hold_the_line_until_it_is_decided(mesh: Mesh) -> None:
    waiting = asyncio.create_task(prefer(mesh, "refund", PAY, "respond-async, wait=30"))
    approval = await asked_for(mesh)
    await mesh.vote(approval, who="fay")
    answer = await waiting
    assert (answer.status, answer.headers["Preference-Applied"]) == (200, "wait=30")
    assert done(mesh) == [["refund", PAY]]
    waiting = asyncio.create_task(prefer(mesh, "refund", {**PAY, "cents": 1}, "wait=30"))
    await mesh.vote(await asked_for(mesh), "deny", "fay", "no more")
    no(await waiting, "approval_denied", "no more")
    answer = await prefer(mesh, "refund", {**PAY, "cents": 2}, "wait=1")
    assert answer.status == 202
    assert (await prefer(mesh, "refund", {**PAY, "cents": 2}, "wait=99999999")).status == 202, "nothing that we know"


async def asked_for(mesh: Mesh) -> str:
    """The id of the one request that waits, as soon as there is one."""
    async with asyncio.timeout(30):
        while not (pending := [r.id for r in mesh.gateway.desk.all() if r.state == "pending"]):
            await asyncio.sleep(0.02)
    return pending[0]


async def test_the_line_is_held_through_a_restart_of_the_gateway(mesh: Mesh) -> None:
    waiting = asyncio.create_task(prefer(mesh, "refund", PAY, "wait=60"))
    approval = await asked_for(mesh)
    await mesh.stop("gateway")
    await mesh.start_gateway()
    await mesh.vote(approval, who="fay")
    answer = await waiting
    assert answer.status == 200 or answer.json["reason"] in ("no_eligible_node", "stale_facts"), answer.body
    if answer.status != 200:  # decided while the node joined anew: the approval is unspent, and found again
        async with asyncio.timeout(30):
            while (await mesh.call("bank/refund", PAY)).status != 200:
                await asyncio.sleep(0.2)
    assert done(mesh) == [["refund", PAY]]


async def test_states_come_as_events_until_it_is_decided(mesh: Mesh) -> None:
    held_answer = await mesh.call("bank/refund", PAY)
    url = mesh.url + held_answer.json["events"]
    headers = {"Authorization": f"Bearer {mesh.sidecar.token}"}
    async with mesh.http.get(url, headers=headers) as stream:
        assert stream.headers["Content-Type"] == "text/event-stream"
        first = await stream.content.readuntil(b"\n\n")
        assert first.startswith(b"event: pending\ndata: {")
        await mesh.vote(held_answer.json["approval"], "deny", "fay", "no")
        rest = await asyncio.wait_for(stream.content.read(), 10)
    assert b"event: denied\ndata: {" in rest
    assert json.loads(rest.rpartition(b"data: ")[2])["reason"].startswith("fay denied")
    state = await mesh.request(
        "GET", url.removesuffix("/events"), token=mesh.sidecar.token, headers={"Prefer": "wait=5"}
    )
    assert state.json["state"] == "denied"
    gone = await mesh.request("GET", f"{mesh.url}/v1/approvals/apr_nobody/events", token=mesh.sidecar.token)
    no(gone, "not_found")


async def test_what_a_request_was_between_two_edits_is_another_request_also_after_a_restart(mesh: Mesh) -> None:
    """Found by the model: the desk remembered what was between until it was started again, and then it did not."""
    approval = await held(mesh, "pay", {**PAY, "cents": 3}, run="r1")
    for cents in (1, 2):
        assert (await edit(mesh, approval, "fay", {**PAY, "cents": cents})).status == 200
    for restarted in (False, True):
        if restarted:
            await mesh.stop("gateway")
            await mesh.start_gateway()
            await mesh.ready()
        asked = {
            cents: (await mesh.call("bank/pay", {**PAY, "cents": cents}, run="r1")).json["approval"]
            for cents in (3, 2, 1)
        }
        assert asked[3] == asked[2] == approval
        assert asked[1] != approval
