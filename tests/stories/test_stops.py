"""Rotation, revocation, kill: nobody who may go on is disturbed, and nobody who must stop goes on."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edge.clock import new_id
from edge.stopping import Stopped, until
from gateway.config import BreakerConfig
from sidecar.app import Sidecar
from sidecar.config import ToolServer
from sidecar.enrolment import CURRENT_KEY
from sidecar.identity import NEXT_KEY, Gateways, Identity
from tests.mesh import Mesh, policy_files
from trust import feed, wire
from trust.canonical import digest_of
from trust.identity import ticket
from trust.identity.keys import PublicKey, SecretKey, b64url, unb64url
from trust.ledger.entries import Breaker, Dispatch, Kill, Outcome, Refusal, Revocation, Standing
from trust.reasons import Reason, Unverifiable

pytestmark = pytest.mark.slow
READ, NOTES = "workbench/read_file", {"path": "notes.txt"}


async def stop(mesh: Mesh, how: str, target: str) -> None:
    if how == "kill":
        answer = await mesh.admin("POST", "/v1/kills", {"target": target, "reason": "enough"})
    else:
        answer = await mesh.admin("POST", "/v1/revocations", {"what": "agent", "id": target, "reason": "enough"})
    assert answer.status < 300, answer.body


def entitled(mesh: Mesh, agent: str) -> tuple[dict[str, str], bytes]:
    """What the gateway would send to the node for *agent*, from before it was stopped."""
    from tests.attacks.test_forgery import statement
    from trust.wire import Execute

    made, body = statement(mesh)
    payload = wire.payload_of(made, body)
    key = SecretKey.load(mesh.home / "gateway" / "gateway.key")
    now = int(time.time())
    tool = mesh.sidecar.pipeline.shown.tool("workbench", "read_file")
    assert tool is not None
    made_ticket = ticket.Ticket(
        id=new_id("tkt"), action_id=new_id("act"), node="node-1", epoch=mesh.node.membership.epoch, server="workbench",
        key=b64url(mesh.node.identity.key.public.raw),
        tool="read_file", agent=agent, principal="ada", run="r", payload=payload.digest(), tool_digest=tool.digest,
        action_digest="", approval=None, credentials=digest_of({}), issued_at=now, deadline=now + 30,
    )  # fmt: skip
    headers = {"Content-Type": wire.EXECUTE_TYPE, wire.TICKET_HEADER: ticket.seal(made_ticket, key)}
    return headers, wire.encode(Execute("workbench", made.method, made.headers), body)


async def at_the_node(mesh: Mesh, agent: str) -> Any:
    headers, data = entitled(mesh, agent)
    return await mesh.request("POST", f"http://127.0.0.1:{mesh.node.port}/v1/execute", data=data, headers=headers)


@pytest.mark.parametrize("how", ["kill", "revoke"])
async def test_the_first_refusal_comes_within_a_second_at_two_sidecars_and_a_node(mesh: Mesh, how: str) -> None:
    """The time from the command's answer until all three refuse; told by `-rP`, asserted generously."""
    other = await mesh.add_agent("other", "ada", teams=["demo"])
    assert (await at_the_node(mesh, "demo")).status == 200
    for target in ("demo", "other"):
        await stop(mesh, how, target)
    begin = time.monotonic()

    async def until_refused(ask: Any) -> float:
        while (await ask()).status == 200:
            await asyncio.sleep(0.01)
        return time.monotonic() - begin

    async with asyncio.timeout(30):
        times = await asyncio.gather(
            until_refused(lambda: mesh.act(mesh.sidecar, READ, NOTES)),
            until_refused(lambda: mesh.act(other, READ, NOTES)),
            until_refused(lambda: at_the_node(mesh, "demo")),
        )
    print(f"{how}: refused after {', '.join(f'{t * 1000:.0f} ms' for t in times)}")
    reason = {"kill": "killed", "revoke": "revoked"}[how]
    assert (await mesh.act(mesh.sidecar, READ, NOTES)).json["reason"] == reason
    assert (await mesh.act(other, READ, NOTES)).json["reason"] == reason
    assert (await at_the_node(mesh, "demo")).json["reason"] == "revoked"


async def test_a_team_is_killed_together_and_lifted_by_a_person_with_a_reason(mesh: Mesh) -> None:
    other = await mesh.add_agent("other", "bob", teams=["demo"])
    third = await mesh.add_agent("third", "bob", teams=["else"])
    assert (await mesh.admin("POST", "/v1/kills", {"target": "nobody", "reason": "x"})).status == 404
    told = (await mesh.admin("POST", "/v1/kills", {"target": "demo-team", "reason": "x"})).json
    assert told["reason"] == "not_found"
    # "demo" is an agent and a team: the agent is meant, unless the team is named as one.
    await stop(mesh, "kill", "team:demo")
    await asyncio.sleep(0.5)
    assert [(await mesh.act(s, READ, NOTES)).status for s in (mesh.sidecar, other, third)] == [403, 403, 200]
    lifted = await mesh.admin("POST", "/v1/kills/lift", {"target": "team:demo", "reason": "looked at it"})
    assert lifted.json == {"lifted": "team:demo", "note": ""}
    await asyncio.sleep(0.5)
    assert (await mesh.act(mesh.sidecar, READ, NOTES)).status == 200


async def test_everybody_is_stopped_by_all(mesh: Mesh) -> None:
    other = await mesh.add_agent("other", "bob")
    await stop(mesh, "kill", "all")
    await asyncio.sleep(0.5)
    assert [(await mesh.act(s, READ, NOTES)).status for s in (mesh.sidecar, other)] == [403, 403]


@pytest.mark.parametrize("how", ["kill", "revoke"])
async def test_what_waits_for_a_person_is_cancelled_and_stays_so(mesh: Mesh, how: str) -> None:
    approvals = [(await mesh.call("workbench/delete_file", {"path": name})).json["approval"] for name in "ab"]
    assert (await mesh.vote(approvals[0])).status == 200
    await stop(mesh, how, "demo")
    for approval in approvals:
        state = (await mesh.admin("GET", f"/v1/approvals/{approval}", who="approver-1")).json
        assert (state["state"], state["reason"]) == ("cancelled", "enough" if how == "kill" else "agent demo: enough")
        assert (await mesh.vote(approval)).status == 403
    if how == "kill":
        await mesh.admin("POST", "/v1/kills/lift", {"target": "demo", "reason": "fine"})
        await asyncio.sleep(0.5)
        assert (await mesh.claim(approvals[0])).status == 403


async def test_a_revoked_agent_is_told_why_and_gets_nothing_else(mesh: Mesh) -> None:
    await stop(mesh, "revoke", "demo")
    await asyncio.sleep(0.3)
    for method, target in (("POST", "/v1/wit"), ("GET", "/v1/approvals/apr_x/state")):
        async with mesh.sidecar.identity.send(method, target, strong=True) as reply:
            assert (reply.status, b"revoked" in await reply.read()) == (403, True)
    assert (await mesh.call(READ, NOTES)).json["reason"] == "revoked"
    assert (await mesh.request("GET", f"{mesh.gateway_url}/agents/demo/did.json")).json["verificationMethod"] == []
    answer = await mesh.admin("POST", "/v1/agents/demo/rotate", {"lost": True})
    assert answer.json["reason"] == "revoked", "for good"


async def test_a_revoked_key_cannot_come_back(mesh: Mesh) -> None:
    key = mesh.sidecar.identity.key.public
    body = {"what": "key", "id": key.thumbprint, "reason": "leaked"}
    assert (await mesh.admin("POST", "/v1/revocations", body)).status == 201
    async with mesh.sidecar.identity.send("POST", "/v1/wit", strong=True) as reply:
        assert reply.status == 403
    new = (await mesh.admin("POST", "/v1/agents/demo/rotate", {"lost": True})).json["enrolment_token"]
    proof = b64url(mesh.sidecar.identity.key.sign(f"licet-enroll {new}".encode()))  # type: ignore[attr-defined]
    asked = {"token": new, "key": dict(key.jwk), "proof": proof}
    assert (await mesh.request("POST", f"{mesh.gateway_url}/v1/enroll", json=asked)).json["reason"] == "revoked"


async def test_enrolling_again_ends_everything_of_before(mesh: Mesh) -> None:
    """A key that may be in other hands: its tokens and sessions are over as soon as the new key is bound."""
    async with asyncio.timeout(30):
        while mesh.sidecar.identity.session is None:
            await asyncio.sleep(0.02)
    token = (await mesh.admin("POST", "/v1/agents/demo/rotate", {"lost": True})).json["enrolment_token"]
    assert (await mesh.call(READ, NOTES)).status == 200, "until then nothing is disturbed"
    key = SecretKey.generate()
    proof = b64url(key.sign(f"licet-enroll {token}".encode()))
    asked = {"token": token, "key": dict(key.public.jwk), "proof": proof}
    assert (await mesh.request("POST", f"{mesh.gateway_url}/v1/enroll", json=asked)).status == 200
    answer = await mesh.call(READ, NOTES)
    assert (answer.status, answer.json["reason"]) == (403, "revoked")
    async with mesh.sidecar.identity.send("POST", "/v1/wit", strong=True) as reply:
        assert reply.status == 403


async def test_a_session_can_be_revoked_alone(mesh: Mesh) -> None:
    async with asyncio.timeout(30):
        while mesh.sidecar.identity.session is None:
            await asyncio.sleep(0.02)
    session = mesh.sidecar.identity.session
    await mesh.admin("POST", "/v1/revocations", {"what": "session", "id": session.name, "reason": "x"})
    async with mesh.sidecar.identity.send("GET", "/v1/approvals/apr_x/state") as reply:
        assert b"revoked" in await reply.read()


# What runs at that moment

WAITS = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    match asked.get("method"):
        case "initialize":
            result = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {"name": "s", "version": "1"}}
        case "tools/list":
            result = {"tools": [{"name": "wait", "inputSchema": {"type": "object", "properties": {}}}]}
        case "notifications/cancelled":
            open(sys.argv[1], "a").write(line)
            continue
        case "tools/call":
            open(sys.argv[1], "a").write("called\\n")
            continue
        case _:
            continue
    print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}), flush=True)
"""
HARMLESS = '[tools.wait]\ncategory = "data"\neffect = "read"\nprivileged = false\nrisk = 0\nlabels = []\n'


STOPS = ["kill", "agent", "principal", "key", "session", "kill delegator", "root", "token", "delegator's key"]


@pytest.mark.parametrize("how", STOPS)
async def test_a_call_that_runs_is_ended_and_nothing_of_it_is_told_or_earned(tmp_path: Path, how: str) -> None:
    """The server never answers: only the stop ends the call, at the agent, at the gateway, at the node and the server."""
    (tmp_path / "waits.toml").write_text(HARMLESS)
    seen = tmp_path / "seen"
    server = ToolServer(
        name="waits", command=(sys.executable, "-c", WAITS, str(seen)), manifest=tmp_path / "waits.toml"
    )
    permit = '@id("waits") permit(principal, action in Action::"server/waits", resource);'
    async with Mesh(tmp_path, servers=[server], breaker=BreakerConfig(failures=1)) as mesh:
        answer = await mesh.activate({**policy_files(), "waits.cedar": permit})
        assert answer.status == 200, answer.body
        await mesh.ready()
        sidecar, chain, told = await delegated(mesh) if how in STOPS[5:] else (mesh.sidecar, "", {})
        async with asyncio.timeout(30):
            while sidecar.identity.session is None:
                await asyncio.sleep(0.02)
        running = asyncio.create_task(mesh.act(sidecar, "waits/wait", {}, chain=chain))
        async with asyncio.timeout(30):
            while not seen.exists():
                await asyncio.sleep(0.02)
        what, _, name = {
            "agent": "agent:demo",
            "principal": "principal:ada",
            "key": f"key:{sidecar.identity.key.public.thumbprint}",
            "session": f"session:{sidecar.identity.session.name}",
            "root": f"root:{told.get('root')}",
            "token": f"token:{told.get('tokens', [''])[-1]}",
            "delegator's key": f"key:{mesh.sidecar.identity.key.public.thumbprint}",
        }.get(how, "").partition(":")
        if what:
            answer = await mesh.admin("POST", "/v1/revocations", {"what": what, "id": name, "reason": "enough"})
            assert answer.status == 201, answer.body
        else:
            await stop(mesh, "kill", "demo")
        begin = time.monotonic()
        answer = await asyncio.wait_for(running, 10)
        print(f"{how}: ended after {(time.monotonic() - begin) * 1000:.0f} ms")
        assert (answer.status, answer.json["reason"]) == (502, "outcome_unknown"), answer.body
        assert "enough" in answer.json["detail"], answer.body
        async with asyncio.timeout(30):
            while "notifications/cancelled" not in seen.read_text():
                await asyncio.sleep(0.02)
        for part in (mesh.gateway, mesh.node, sidecar):
            outcome = [line.entry for _, line in part.ledger.lines() if isinstance(line.entry, Outcome)][-1]
            assert outcome.status == "unknown", part
        await mesh.gateway.standings.drain()
        assert not [e for e in mesh.entries("gateway") if isinstance(e, Standing)]
        assert not [e for e in mesh.entries("gateway") if isinstance(e, Breaker)], "the server did nothing wrong"


async def delegated(mesh: Mesh) -> tuple[Sidecar, str, dict[str, Any]]:
    """A helper with a chain from demo."""
    from licet.client import Credentials, delegate, describe, narrow

    helper = await mesh.add_agent("helper", "bob")
    credentials = Credentials.load(mesh.home / "sidecar")
    root = await asyncio.to_thread(delegate, credentials, mesh.gateway_url, {"waits/wait": {}})
    chain = narrow(credentials, root, helper.identity.key.public, {"waits/wait": {}})
    return helper, chain, describe(credentials, chain)


async def test_an_answer_that_comes_too_late_is_not_told() -> None:
    """It was complete, and its agent was stopped in the same moment."""
    over = False
    with pytest.raises(Stopped):
        async with until(lambda: over):
            over = True
    with pytest.raises(TimeoutError):
        async with until(lambda: False):
            raise TimeoutError  # of what is inside, and none of ours


async def test_what_is_done_twice_or_to_nobody_is_said(mesh: Mesh) -> None:
    async def told(path: str, **body: str) -> Any:
        return (await mesh.admin("POST", path, {"reason": "x", **body})).json

    assert (await told("/v1/kills", target="demo"))["note"] == ""
    assert "already, by operator: x" in (await told("/v1/kills", target="demo"))["note"]
    assert "stopped now: demo" in (await told("/v1/kills/lift", target="other"))["detail"]
    await mesh.admin("POST", "/v1/agents", {"name": "other", "owner": "bob", "teams": ["demo"]})
    await told("/v1/kills", target="team:demo")
    assert "still may not act: killed" in (await told("/v1/kills/lift", target="demo"))["note"]
    assert "unkill team:demo" in (await told("/v1/kills/lift", target="other"))["detail"]
    await told("/v1/kills/lift", target="team:demo")
    for what, name in (("key", "k" * 43), ("token", "t" * 43), ("session", "ses_x")):
        assert "is it spelled right" in (await told("/v1/revocations", what=what, id=name))["note"]
    for what, name in (("root", "root_x"), ("principal", "nobody")):
        assert "is known here; known: " in (await told("/v1/revocations", what=what, id=name))["detail"]
    for what, name in (("key", "demo"), ("token", "demo"), ("root", "demo"), ("session", "demo")):
        assert "expected its" in (await told("/v1/revocations", what=what, id=name))["detail"]
    assert (await told("/v1/revocations", what="agent", id="demo"))["note"] == ""
    assert "already, by operator: x" in (await told("/v1/revocations", what="agent", id="demo"))["note"]
    assert "for good" in (await told("/v1/kills/lift", target="demo"))["detail"]
    assert (await mesh.admin("POST", "/v1/agents/demo/rotate", {})).json["reason"] == "revoked"
    kinds = [type(e) for e in mesh.entries("gateway")]
    assert (kinds.count(Kill), kinds.count(Revocation)) == (4, 4)


async def test_who_is_refused_for_good_asks_less_and_less(mesh: Mesh, monkeypatch: Any) -> None:
    """Each refusal is an entry: a sidecar that was locked out must not fill the gateway's ledger."""
    key = mesh.sidecar.identity.key.public.thumbprint
    await mesh.admin("POST", "/v1/revocations", {"what": "key", "id": key, "reason": "leaked"})
    mesh.sidecar.identity.session = None
    await asyncio.sleep(6)
    refused = [e for e in mesh.entries("gateway") if isinstance(e, Refusal)]
    assert 2 < len(refused) < 20, len(refused)
    shown = (await mesh.admin("GET", "/v1/agents/demo")).json
    assert (shown["state"], shown["keys"][0]["revoked"]) == ("key_revoked", True)
    told = (await mesh.admin("POST", "/v1/agents/demo/rotate", {})).json
    assert "rotate demo --lost" in told["detail"]


async def test_an_outage_is_no_refusal_and_is_over_when_it_is_over(mesh: Mesh, monkeypatch: Any) -> None:
    """The feed and the bundle are asked for as often as before: only who is refused asks less."""

    async def busy(*_: Any, **__: Any) -> Any:
        raise Unverifiable(Reason.REPLAY_UNKNOWN, "the memory of nonces is away")

    mesh.sidecar.world.own.first.clear()
    monkeypatch.setattr(mesh.gateway._api.services.callers, "identify", busy)
    mesh.gateway._feed.closing = True
    mesh.gateway._feed.wake()
    await asyncio.sleep(6)
    mesh.gateway._feed.closing = False
    monkeypatch.undo()
    begin = time.monotonic()
    async with asyncio.timeout(30):
        while mesh.sidecar.world.age_s() > 1.5:
            await asyncio.sleep(0.05)
    assert time.monotonic() - begin < 3


async def test_who_was_revoked_gets_no_policies_and_what_it_asks_is_recorded_under_its_name(mesh: Mesh) -> None:
    await stop(mesh, "revoke", "demo")
    async with mesh.sidecar.identity.send("GET", "/v1/bundle") as reply:
        assert (reply.status, b"revoked" in await reply.read()) == (403, True)
    async with mesh.node.identity.send("POST", "/v1/delegations", b"{}", strong=True) as reply:
        assert reply.status >= 400
    callers = [e.caller for e in mesh.entries("gateway") if isinstance(e, Refusal)]
    assert any(caller.startswith("wimse://licet.local/node/node-1 127.0.0.1 POST") for caller in callers)
    await mesh.admin("POST", "/v1/agents", {"name": "x", "owner": "y"}, who="approver-1")
    callers = [e.caller for e in mesh.entries("gateway") if isinstance(e, Refusal)]
    assert callers[-1].startswith("person approver-1 ")


# Rotation


async def rotated(mesh: Mesh, sidecar: Sidecar, before: PublicKey) -> None:
    async with asyncio.timeout(30):
        while sidecar.identity.key.public == before:
            await asyncio.sleep(0.02)


async def test_rotation_under_load_fails_no_request(tmp_path: Path) -> None:
    """Sixteen callers, low and high risk, while the key is replaced three times."""
    unlimited = {name: text for name, text in policy_files().items() if "rings" not in name}
    async with Mesh(tmp_path, policies=unlimited, breaker=BreakerConfig(loop=0, burst=0)) as mesh:
        (mesh.sandbox / "notes.txt").write_text("hello")
        await _rotate_under_load(mesh)


async def _rotate_under_load(mesh: Mesh) -> None:
    done = failed = 0
    over = False

    async def caller(number: int) -> None:
        nonlocal done, failed
        while not over:
            answer = await mesh.call(READ, {"path": "notes.txt"}) if number else await held()
            done += 1
            failed += answer.status not in (200, 202)

    async def held() -> Any:
        answer = await mesh.call("workbench/delete_file", {"path": f"{new_id('x')}.txt"})
        await mesh.vote(answer.json["approval"])
        return await mesh.claim(answer.json["approval"])

    callers = [asyncio.create_task(caller(number)) for number in range(16)]
    keys = [mesh.sidecar.identity.key.public]
    for _ in range(3):
        assert (await mesh.admin("POST", "/v1/agents/demo/rotate", {})).status == 202
        await rotated(mesh, mesh.sidecar, keys[-1])
        keys.append(mesh.sidecar.identity.key.public)
        await asyncio.sleep(0.3)
    over = True
    await asyncio.gather(*callers)
    print(f"{done} requests over {len(keys) - 1} rotations, {failed} failed")
    assert (failed, done > 50) == (0, True)
    document = (await mesh.request("GET", f"{mesh.gateway_url}/agents/demo/did.json")).json
    listed = [m["publicKeyMultibase"] for m in document["verificationMethod"]]
    assert listed == [key.did.removeprefix("did:key:") for key in reversed(keys)]
    assert (mesh.sidecar.config.home / CURRENT_KEY).stat().st_mode & 0o777 == 0o600
    assert not (mesh.sidecar.config.home / NEXT_KEY).exists()
    assert {e.agent for e in mesh.entries("gateway") if isinstance(e, Dispatch)} == {"demo"}


async def test_a_drained_key_is_removed_and_until_then_gets_no_new_tokens(mesh: Mesh, monkeypatch: Any) -> None:
    monkeypatch.setattr("trust.identity.wit.MAX_LIFE_S", 2)
    old = mesh.sidecar.identity.key
    credentials = mesh.sidecar.identity.enrolment
    await mesh.admin("POST", "/v1/agents/demo/rotate", {})
    await rotated(mesh, mesh.sidecar, old.public)
    stolen = Identity(
        old, credentials, Gateways([mesh.gateway_url]), mesh.sidecar.identity.gateway, mesh.sidecar._client,
        mesh.sidecar.identity.clock, mesh.home / "nowhere",
    )  # fmt: skip
    async with stolen.send("POST", "/v1/wit", strong=True) as reply:
        assert b"newer key" in await reply.read()
    async with asyncio.timeout(30):
        while len((await mesh.admin("GET", "/v1/agents/demo")).json["keys"]) > 1:
            await asyncio.sleep(0.1)
    async with stolen.send("GET", "/v1/approvals/apr_x/state", strong=True) as reply:
        assert b"another key now" in await reply.read()
    assert (await mesh.call(READ, NOTES)).status == 200


@pytest.mark.parametrize("moment", ["before the answer", "before the file is in its place"])
async def test_a_rotation_that_is_interrupted_is_finished_after_a_restart(
    mesh: Mesh, moment: str, monkeypatch: Any
) -> None:
    identity = mesh.sidecar.identity
    old = identity.key.public

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    if moment == "before the answer":
        with pytest.raises(KeyboardInterrupt):
            await identity.rotate(die)
    else:
        monkeypatch.setattr(Path, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            await identity.rotate(lambda _old, _new: None)
        monkeypatch.undo()
    await mesh.stop("sidecar")
    await mesh.start_sidecar()
    if moment == "before the answer":
        assert mesh.sidecar.identity.key.public == old
        await mesh.admin("POST", "/v1/agents/demo/rotate", {})
        await mesh.sidecar.identity.rotate(lambda _old, _new: None)
    assert mesh.sidecar.identity.key.public != old
    assert (await mesh.call(READ, NOTES)).status == 200
    async with mesh.sidecar.identity.send("POST", "/v1/wit", strong=True) as reply:
        assert reply.status == 200


async def test_another_key_needs_its_proof_and_the_one_before(mesh: Mesh) -> None:
    import msgspec

    new, identity = SecretKey.generate(), mesh.sidecar.identity
    wrong = b64url(new.sign(b"licet-rotate wimse://licet.local/agent/other"))
    body = msgspec.json.encode({"key": new.public.jwk, "proof": wrong})
    async with identity.send("POST", "/v1/keys", body, {"Content-Type": "application/json"}, strong=True) as reply:
        assert reply.status == 401
    weak = {"kty": "OKP", "crv": "Ed25519", "x": b64url(b"\x01" + bytes(31))}
    body = msgspec.json.encode({"key": weak, "proof": b64url(bytes(64))})
    async with identity.send("POST", "/v1/keys", body, {"Content-Type": "application/json"}, strong=True) as reply:
        assert reply.status == 401
    good = b64url(new.sign(f"licet-rotate {identity.subject}".encode()))
    body = msgspec.json.encode({"key": new.public.jwk, "proof": good})
    async with asyncio.timeout(30):
        while identity.session is None:
            await asyncio.sleep(0.02)
    async with identity.send("POST", "/v1/keys", body, {"Content-Type": "application/json"}) as reply:
        assert reply.status in (201, 401)
    async with mesh.node.identity.send(
        "POST", "/v1/keys", body, {"Content-Type": "application/json"}, strong=True
    ) as r:
        assert r.status in (401, 403)


# The feed


async def test_without_the_feed_side_effects_stop_within_five_seconds_and_reads_within_thirty(
    mesh: Mesh, monkeypatch: Any
) -> None:
    """The gateway still answers, but says nothing any more: sidecar and node stop by themselves."""
    write = ("workbench/write_file", {"path": "x.txt", "content": "x"})
    assert (await mesh.call(*write)).status == 200
    mesh.gateway._feed.closing = True
    mesh.gateway._feed.wake()
    await asyncio.sleep(0.3)
    begin = time.monotonic()
    async with asyncio.timeout(30):
        while (await mesh.call(*write)).status == 200:
            await asyncio.sleep(0.05)
    took = time.monotonic() - begin
    print(f"side effects stopped after {took:.2f} s without the feed")
    assert took < feed.SIDE_EFFECTS_STALE_S + 3
    answer = await mesh.call(*write)
    assert (answer.status, answer.json["reason"]) == (503, "stale_facts")
    assert (await mesh.call(READ, NOTES)).status == 200, "reads go on for a while"
    monkeypatch.setattr("trust.feed.ALL_STALE_S", 0.0)
    assert (await mesh.call(READ, NOTES)).json["reason"] == "stale_facts"
    assert (await at_the_node(mesh, "demo")).json["reason"] == "stale_facts"


def test_a_feed_that_takes_something_back_is_not_believed() -> None:
    from trust.facts import Agent
    from trust.standing.score import Standing

    key, now = SecretKey.generate(), time.time()

    def line(version: int, after_s: float, name: str = "a") -> bytes:
        agent = Agent(name, "did:x", "ada", "", "test")
        ms = int((now + after_s) * 1000)
        return feed.seal(feed.Facts(ms, version, agent, Standing(400, 1), ""), key)

    first = feed.open_line(line(7, 0), key.public, agent="a", after=None, now=now)
    assert feed.open_line(line(7, 1), key.public, agent="a", after=first, now=now).version == 7
    for bad in (line(6, 1), line(7, 0), line(8, -1), line(8, 60), line(8, -60), line(8, 1, "b"), b"x", b""):
        with pytest.raises(Unverifiable):
            feed.open_line(bad, key.public, agent="a", after=first, now=now)
    with pytest.raises(Unverifiable):
        feed.open_line(line(8, 1), SecretKey.generate().public, agent="a", after=first, now=now)
    with pytest.raises(Unverifiable):
        feed.open_stops(line(8, 1), key.public, node="a", after=None, now=now)
    assert unb64url(b64url(b"x")) == b"x"
