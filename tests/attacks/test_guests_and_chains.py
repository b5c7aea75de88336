"""What an attack on guests, chains, approvals and standing found, and that it is found no more."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from licet.client import Credentials, delegate, enroll, narrow
from sidecar.app import Sidecar
from sidecar.config import SidecarConfig
from tests.attacks.test_forgery import dispatch, statement
from tests.mesh import Answer, Mesh
from trust import wire
from trust.identity import httpsig
from trust.identity.keys import b64url
from trust.ledger import entries
from trust.standing.breaker import Breaker, Limits
from trust.wire import Proof

pytestmark = pytest.mark.slow
READ, DELETE = "workbench/read_file", "workbench/delete_file"
AUDIENCE = "wimse://licet.local/sidecar/demo"


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with Mesh(tmp_path) as made:
        for name in ("notes.txt", "other.txt"):
            (made.sandbox / name).write_text(name)
        await made.stop("sidecar")
        config = SidecarConfig(
            home=made.home / "sidecar", port=0, gateway_url=made.gateway_url, segment_bytes=1 << 20, guests=("guest",)
        )
        made.sidecar = Sidecar(config)
        await made.sidecar.start()
        made.url = f"http://127.0.0.1:{made.sidecar.port}"
        await made.ready()
        answer = await made.admin("POST", "/v1/agents", {"name": "guest", "owner": "gail", "via": "demo"})
        await asyncio.to_thread(enroll, made.gateway_url, answer.json["enrolment_token"], made.home / "guest")
        yield made


def guest(mesh: Mesh) -> Credentials:
    return Credentials.load(mesh.home / "guest", AUDIENCE)


async def ask(mesh: Mesh, tool: str, args: dict[str, Any], chain: str = "") -> Answer:
    """The guest, as it should."""
    url, body = f"{mesh.url}/v1/actions", json.dumps({"tool": tool, "args": args}).encode()
    headers = {"content-type": "application/json", **({"licet-delegation": chain} if chain else {})}
    return await mesh.request("POST", url, data=body, headers=headers | guest(mesh).sign("POST", url, headers, body))


def proof(
    mesh: Mesh, asked: dict[str, Any], target: str = "/v1/actions", chain: str = "", method: str = "POST"
) -> Proof:
    """A signature of the guest, as the sidecar has it."""
    url, body = mesh.url + target, json.dumps(asked).encode()
    headers = {"content-type": "application/json", **({"licet-delegation": chain} if chain else {})}
    signed = guest(mesh).sign(method, url, headers, body)
    request = httpsig.Request(method, url.split("/")[2], target, httpsig.headers_of({**headers, **signed}), body)
    claim = httpsig.read(request, audience=AUDIENCE, now=time.time())
    return Proof(guest(mesh).enrolment.wit, claim.base.decode(), b64url(claim.signature), body.decode())


def as_guest(mesh: Mesh, tool: str, args: dict[str, Any], signed: Proof | None, **changed: Any) -> tuple[Any, bytes]:
    """A dispatch that a compromised sidecar of demo makes in the guest's name."""
    made, body = statement(mesh, tool.partition("/")[2], args)
    action = wire.action_of(made, body)[0]
    known = mesh.sidecar.pipeline.shown.tool("workbench", action.tool)
    digest = action.digest("guest", "gail", (), known.digest if known else "")
    made = msgspec.structs.replace(made, agent="guest", principal="gail", action_digest=digest, proof=signed)
    return msgspec.structs.replace(made, **changed), body


async def test_an_agent_without_a_sidecar_does_not_dispatch_by_itself(mesh: Mesh) -> None:
    """It would say of itself what it has read, and leave no intent."""
    made, body = as_guest(mesh, READ, {"path": "notes.txt"}, None, intent="licet.local/sidecar/guest#0")
    data = wire.encode(made, body)
    for target in ("/v1/dispatch", "/v1/approvals"):
        headers = {"content-type": wire.DISPATCH_TYPE}
        signed = Credentials.load(mesh.home / "guest").sign("POST", mesh.gateway_url + target, headers, data)
        answer = await mesh.request("POST", mesh.gateway_url + target, data=data, headers=headers | signed)
        assert (answer.status, answer.json["reason"]) == (403, "not_yours"), target


async def test_a_guests_signature_is_good_for_one_action_whatever_approval_is_named(mesh: Mesh) -> None:
    signed = proof(mesh, {"tool": DELETE, "args": {"path": "notes.txt"}})
    made, body = as_guest(mesh, DELETE, {"path": "notes.txt"}, signed)
    first = await _approval(mesh, made, body)
    assert first.status == 201, first.body
    again = await _approval(mesh, msgspec.structs.replace(made, action_id="act_2"), body)
    assert again.json["reason"] == "replayed"
    named = await dispatch(mesh, msgspec.structs.replace(made, approval="apr_x"), body)
    assert named.json["reason"] in ("not_found", "approval_pending")
    approval = first.json["id"]
    await mesh.vote(approval)
    other = proof(mesh, {"tool": DELETE, "args": {"path": "notes.txt"}})
    forged = msgspec.structs.replace(made, approval=approval, action_id="act_3", proof=other)
    assert "another one than that" in (await dispatch(mesh, forged, body)).json["detail"]
    good = msgspec.structs.replace(made, approval=approval, action_id="act_4")
    assert (await dispatch(mesh, good, body)).status == 200
    twice = msgspec.structs.replace(made, approval=approval, action_id="act_5")
    assert (await dispatch(mesh, twice, body)).status == 403


async def _approval(mesh: Mesh, made: Any, body: bytes) -> Answer:
    data, headers = wire.encode(made, body), {"Content-Type": wire.DISPATCH_TYPE}
    async with mesh.sidecar.identity.send("POST", "/v1/approvals", data, headers, strong=True) as reply:
        return Answer(reply.status, {}, await reply.read())


async def test_a_signature_is_bound_to_address_chain_run_and_place(mesh: Mesh) -> None:
    asked = {"tool": READ, "args": {"path": "notes.txt"}}
    args = {"path": "notes.txt"}
    mcp_body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "read_file", "arguments": args}}
    for name, signed, changed in (
        ("under a chain", proof(mesh, asked, chain="a~b"), {}),
        ("for another address", proof(mesh, asked, target="/v1/approvals/x/claim"), {}),
        ("for another server", proof(mesh, mcp_body, target="/mcp/other"), {"protocol": "mcp"}),
        ("for another run", proof(mesh, {**asked, "run": "r2"}), {}),
        ("for another node", proof(mesh, {**asked, "place": {"pin": "elsewhere"}}), {}),
    ):
        answer = await dispatch(mesh, *as_guest(mesh, READ, args, signed, **changed))
        assert answer.json["reason"] == "permit_invalid", (name, answer.body)
    assert (await dispatch(mesh, *as_guest(mesh, READ, args, proof(mesh, asked)))).status == 200


async def test_a_guests_signature_is_not_replayed_after_a_restart(mesh: Mesh) -> None:
    signed = proof(mesh, {"tool": READ, "args": {"path": "notes.txt"}})
    assert (await dispatch(mesh, *as_guest(mesh, READ, {"path": "notes.txt"}, signed))).status == 200
    await mesh.stop("gateway")
    await asyncio.sleep(1.1)
    await mesh.start_gateway()
    answer = await dispatch(mesh, *as_guest(mesh, READ, {"path": "notes.txt"}, signed))
    assert answer.status in (401, 403)


async def test_a_sidecar_cannot_ruin_its_guest(mesh: Mesh) -> None:
    told = {"reason": "policy_forbids", "resource": "workbench", "count": 10_000_000, "policies": ["no-key-files"]}
    body = msgspec.json.encode({"agent": "guest", "first": 0, "last": 2**62, "refusals": [told]})
    async with mesh.sidecar.identity.send("POST", "/v1/refusals", body, {"Content-Type": "application/json"}) as reply:
        assert reply.status == 200
    await mesh.gateway.standings.drain()
    moved = (await mesh.admin("GET", "/v1/agents/guest/standing")).json["moved"]
    assert [m["rule"] for m in moved] == ["registered"]


async def test_a_replaced_key_neither_asks_nor_claims_through_a_shared_sidecar(mesh: Mesh) -> None:
    held = await ask(mesh, DELETE, {"path": "notes.txt"})
    assert held.status == 202
    old = guest(mesh)
    token = (await mesh.admin("POST", "/v1/agents/guest/rotate", {"lost": True})).json["enrolment_token"]
    await asyncio.to_thread(enroll, mesh.gateway_url, token, mesh.home / "new")
    await mesh.vote(held.json["approval"])
    await asyncio.sleep(0.3)
    for target, data in (
        ("/v1/actions", b'{"tool":"workbench/read_file","args":{"path":"notes.txt"}}'),
        (f"/v1/approvals/{held.json['approval']}/claim", b""),
    ):
        headers = {"content-type": "application/json" if data else "application/octet-stream"}
        signed = old.sign("POST", mesh.url + target, headers, data)
        answer = await mesh.request("POST", mesh.url + target, data=data, headers=headers | signed)
        assert (answer.status, answer.json["reason"]) == (403, "revoked"), target
    assert (mesh.sandbox / "notes.txt").exists()


async def test_a_program_with_less_sees_claims_and_repeats_nothing_of_its_agent(mesh: Mesh) -> None:
    own = Credentials.load(mesh.home / "sidecar")
    only = {READ: {"path": {"constraint_type": "exact", "value": "notes.txt"}}}
    root = await asyncio.to_thread(delegate, own, mesh.gateway_url, {READ: {}})
    chain = narrow(own, root, own.key.public, only)
    told = await mesh.request("POST", f"{mesh.url}/v1/mandates", token=mesh.sidecar.token, json={"chain": chain})
    less = told.json["token"]
    secret = {"tool": READ, "args": {"path": "other.txt"}, "idempotency_key": "key-1"}
    url = f"{mesh.url}/v1/actions"
    assert (await mesh.request("POST", url, token=mesh.sidecar.token, json=secret)).status == 200
    answer = await mesh.request("POST", url, token=less, json=secret)
    assert b"other.txt" not in answer.body or answer.status >= 400
    assert answer.json["reason"] in ("replayed", "authority_exceeded")
    held = await mesh.call(DELETE, {"path": "notes.txt"})
    await mesh.vote(held.json["approval"])
    approval = f"{mesh.url}/v1/approvals/{held.json['approval']}"
    assert (await mesh.request("GET", approval, token=less)).json["reason"] == "not_yours"
    assert (await mesh.request("POST", f"{approval}/claim", token=less)).json["reason"] == "not_yours"
    assert (mesh.sandbox / "notes.txt").exists()


async def test_a_killed_agent_gets_no_kept_answers(mesh: Mesh) -> None:
    asked = {"tool": READ, "args": {"path": "notes.txt"}, "idempotency_key": "key-1"}
    url = f"{mesh.url}/v1/actions"
    assert (await mesh.request("POST", url, token=mesh.sidecar.token, json=asked)).status == 200
    await mesh.admin("POST", "/v1/kills", {"target": "demo", "reason": "x"})
    await asyncio.sleep(0.3)
    answer = await mesh.request("POST", url, token=mesh.sidecar.token, json=asked)
    assert (answer.status, answer.json["reason"]) == (403, "killed")


async def test_agents_of_one_sidecar_do_not_see_each_others_approvals(mesh: Mesh) -> None:
    held = await mesh.call(DELETE, {"path": "notes.txt"})
    target = f"/v1/approvals/{held.json['approval']}"
    signed = guest(mesh).sign("GET", mesh.url + target, {}, b"")
    answer = await mesh.request("GET", mesh.url + target, headers=signed)
    assert answer.json["reason"] == "not_yours"


async def test_what_waits_under_a_killed_delegators_authority_is_cancelled_for_good(mesh: Mesh) -> None:
    own = Credentials.load(mesh.home / "sidecar")
    helper = await mesh.add_agent("helper", "bob")
    root = await asyncio.to_thread(delegate, own, mesh.gateway_url, {DELETE: {}})
    chain = narrow(own, root, helper.identity.key.public, {DELETE: {}})
    held = await mesh.act(helper, DELETE, {"path": "notes.txt"}, chain=chain)
    await mesh.vote(held.json["approval"])
    await mesh.admin("POST", "/v1/kills", {"target": "demo", "reason": "x"})
    state = (await mesh.admin("GET", f"/v1/approvals/{held.json['approval']}", who="approver-1")).json["state"]
    assert state == "cancelled"


async def test_a_hundred_small_refusals_do_not_hide_a_critical_one(mesh: Mesh) -> None:
    from tests.mesh import policy_files

    critical = '@id("crit") @severity("critical") forbid (principal, action in Action::"fs", resource) when { context.args has path && context.args.path == "trap.txt" };'
    assert (await mesh.activate({**policy_files(), "x.cedar": critical})).status == 200
    await mesh.ready()
    await asyncio.gather(*(mesh.call(f"server{number}/tool", {}) for number in range(150)))
    await mesh.call(READ, {"path": "trap.txt"})
    async with asyncio.timeout(30):
        while (await mesh.admin("GET", "/v1/agents/demo/standing")).json["evidence"]["cap"] != 299:
            await asyncio.sleep(0.1)


async def test_what_the_gateway_refuses_before_it_decides_counts_too(mesh: Mesh) -> None:
    made, body = statement(mesh)
    assert (await dispatch(mesh, msgspec.structs.replace(made, server="elsewhere"), body)).status == 403
    await mesh.gateway.standings.drain()
    moved = (await mesh.admin("GET", "/v1/agents/demo/standing")).json["moved"]
    assert [(m["rule"], m.get("policy", "")) for m in moved] == [("registered", ""), ("refusal", "unknown_server")]


async def test_a_report_that_is_too_large_is_refused_and_not_a_fault(mesh: Mesh) -> None:
    many = [
        {"reason": "unknown_tool", "resource": f"{n:0128}", "count": 1, "policies": [f"{n:0128}"] * 8}
        for n in range(100)
    ]
    body = msgspec.json.encode({"agent": "demo", "first": 0, "last": 1, "refusals": many})
    async with mesh.sidecar.identity.send("POST", "/v1/refusals", body, {"Content-Type": "application/json"}) as reply:
        assert reply.status == 413


async def test_reports_come_one_at_a_time(mesh: Mesh) -> None:
    """Each can move a hundred scores."""

    async def report(first: int) -> tuple[int, bytes]:
        told = [{"reason": "unknown_tool", "resource": "x", "count": 1}]
        body = msgspec.json.encode({"agent": "demo", "first": first, "last": first, "refusals": told})
        headers = {"Content-Type": "application/json"}
        async with mesh.sidecar.identity.send("POST", "/v1/refusals", body, headers) as reply:
            return reply.status, await reply.read()

    answers = [await report(1000 + number) for number in range(5)]
    assert [status for status, _ in answers] == [200, 503, 503, 503, 503]
    assert b"one report in" in answers[-1][1]
    await asyncio.sleep(0.6)
    assert (await report(2000))[0] == 200, "and nothing was lost: who was refused tells it again"


async def test_a_sidecar_hears_nothing_of_others(mesh: Mesh) -> None:
    from trust.standing.breaker import Trip

    for target in ("agent:other", "agent:demo", "server:workbench", "server:x"):
        await mesh.gateway.stops.trip(Trip(target, "loop", 1, int(time.time()) + 60))
    await mesh.add_agent("other", "bob")
    for what, name in (("agent", "other"), ("session", "ses_x"), ("token", "t" * 43)):
        await mesh.admin("POST", "/v1/revocations", {"what": what, "id": name, "reason": "x"})
    async with asyncio.timeout(30):
        while "token:" + "t" * 43 not in mesh.sidecar.world.own.revoked:
            await asyncio.sleep(0.02)
    assert mesh.sidecar.world.own.revoked == {"token:" + "t" * 43}
    assert mesh.sidecar.world.facts is not None
    assert set(mesh.sidecar.world.facts.breakers) == {"agent:demo", "server:workbench"}


async def test_a_kill_needs_a_reason_and_an_owner_can_be_revoked(mesh: Mesh) -> None:
    assert (await mesh.admin("POST", "/v1/kills", {"target": "demo", "reason": " "})).status == 400
    assert (await mesh.admin("POST", "/v1/agents", {"name": "x", "owner": "Ada Lovelace"})).status == 400


def test_one_agent_alone_does_not_take_a_server_from_all() -> None:
    breaker = Breaker(Limits(failures=10))
    trips = [trip for n in range(100) if (trip := breaker.failed("evil", "workbench", n // 4))]
    assert trips
    assert {trip.target for trip in trips} == {"agent:evil"}
    both = [trip for n in range(40) if (trip := breaker.failed(f"agent{n % 2}", "workbench", 30))]
    assert "server:workbench" in {trip.target for trip in both}
    assert isinstance(entries.Breaker("t", "loop", 1, 1), entries.Breaker)
