"""Around the sidecar: forged dispatches to the gateway, forged tickets to the node, replays, stolen places."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from edge.clock import new_id, new_nonce
from tests.mesh import Answer, Mesh
from trust import mcp, wire
from trust.action import Action, Payload
from trust.canonical import digest_of
from trust.identity import httpsig, ticket
from trust.identity.keys import SecretKey, b64url
from trust.identity.ticket import Ticket
from trust.ledger.entries import Dispatch as Dispatched
from trust.ledger.entries import Refusal
from trust.wire import Dispatch, Execute

pytestmark = pytest.mark.slow


def executed(mesh: Mesh) -> list[Any]:
    return [e for e in mesh.entries("node") if isinstance(e, Dispatched) and not e.tool.startswith("mcp:")]


def statement(
    mesh: Mesh, tool: str = "read_file", args: dict[str, Any] | None = None, **changed: Any
) -> tuple[Dispatch, bytes]:
    """A dispatch as the sidecar would make it, with whatever is to be forged."""
    arguments = args if args is not None else {"path": "notes.txt"}
    body = mcp.call("x", tool, arguments)[1]
    message = mcp.read_message(body)
    known = mesh.sidecar.pipeline.shown.tool("workbench", tool)
    payload = mcp.payload(message, body, {mcp.VERSION_HEADER: mcp.MODERN}, known)
    action = Action(new_id("act"), new_id("dec"), "native", "workbench", tool, arguments, payload, "run-x")
    digest = action.digest("demo", "ada", (), known.digest if known else "")
    facts = mesh.sidecar.pipeline._recall(action, mesh.sidecar.world.facts, known, None).context if known else {}  # type: ignore[arg-type]
    made = Dispatch(
        action_id=action.id, decision_id=action.decision_id, run="run-x", agent="demo", principal="ada", protocol="native",
        server="workbench", tool=tool, method=payload.method, headers=list(payload.headers), action_digest=digest,
        facts={"context": facts}, intent=f"{mesh.sidecar.ledger.origin}#1", bundle=mesh.gateway.bundles.compiled.digest,
    )  # fmt: skip
    return msgspec.structs.replace(made, **changed), body


async def dispatch(
    mesh: Mesh, made: Dispatch, body: bytes, *, key: SecretKey | None = None, headers: dict[str, str] | None = None
) -> Answer:
    """As whoever holds the sidecar's key (a compromised sidecar), or with another key."""
    data = wire.encode(made, body)
    signed = headers or signature(mesh, data, key)
    return await mesh.request("POST", mesh.gateway_url + "/v1/dispatch", data=data, headers=signed)


def signature(mesh: Mesh, data: bytes, key: SecretKey | None = None, nonce: str = "") -> dict[str, str]:
    identity = mesh.sidecar.identity
    given = {"content-type": wire.DISPATCH_TYPE}
    request = httpsig.Request(
        "POST", mesh.gateway_url.removeprefix("http://"), "/v1/dispatch", httpsig.headers_of(given), data
    )
    return given | httpsig.sign(
        request, wit=identity.enrolment.wit, key=key or identity.key, audience=identity.enrolment.audience,
        created=int(identity.clock.now()), nonce=nonce or new_nonce(),
    )  # fmt: skip


def refused(answer: Answer, reason: str) -> None:
    assert answer.json["reason"] == reason, answer.body


async def test_an_honest_dispatch_is_routed(mesh: Mesh) -> None:
    assert (await dispatch(mesh, *statement(mesh))).status == 200
    assert len(executed(mesh)) == 1


async def test_a_replayed_dispatch_is_refused_also_after_a_restart_of_the_gateway(mesh: Mesh) -> None:
    made, body = statement(mesh)
    headers = signature(mesh, wire.encode(made, body))
    assert (await dispatch(mesh, made, body, headers=headers)).status == 200
    refused(await dispatch(mesh, made, body, headers=headers), "replayed")
    await mesh.stop("gateway")
    import asyncio

    await asyncio.sleep(1.1)  # signatures count whole seconds
    await mesh.start_gateway()
    refused(await dispatch(mesh, made, body, headers=headers), "unauthenticated")
    assert len(executed(mesh)) == 1


async def test_a_compromised_sidecar_cannot_skip_policy(mesh: Mesh) -> None:
    """The gateway decides again by the bytes, with its own word on trust."""
    refused(await dispatch(mesh, *statement(mesh, args={"path": "server.pem"})), "policy_forbids")
    refused(await dispatch(mesh, *statement(mesh, "delete_file")), "permit_invalid")
    made, body = statement(mesh, "write_file", {"path": "a", "content": "b"})
    boasting = {"context": {**made.facts["context"], "trust": {"score": 1000, "tier": "verified", "ring": 0}}}
    assert (await dispatch(mesh, msgspec.structs.replace(made, facts=boasting), body)).status == 200
    assert {e.tool for e in executed(mesh)} == {"write_file"}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"tool": "list_directory"}, "permit_invalid"),
        ({"action_digest": "0" * 64}, "permit_invalid"),
        ({"principal": "eve"}, "permit_invalid"),
        ({"agent": "other"}, "not_yours"),
        ({"server": "elsewhere"}, "unknown_server"),
        ({"facts": {}}, "permit_invalid"),
        ({"method": "GET"}, "malformed_request"),
        ({"method": "CONNECT"}, "malformed_request"),
        ({"headers": [("authorization", "Bearer x"), ("mcp-protocol-version", "2026-07-28")]}, "header_mismatch"),
        ({"run": "another-run"}, "permit_invalid"),
        ({"approval": "apr_none"}, "not_found"),
    ],
)
async def test_a_statement_that_disagrees_with_its_bytes_is_refused(
    mesh: Mesh, changed: dict[str, Any], reason: str
) -> None:
    made, body = statement(mesh)
    refused(await dispatch(mesh, msgspec.structs.replace(made, **changed), body), reason)
    assert executed(mesh) == []
    assert [e.reason for e in mesh.entries("gateway") if isinstance(e, Refusal)] == [reason]


async def test_anothers_key_and_changed_bytes_are_refused(mesh: Mesh) -> None:
    made, body = statement(mesh)
    refused(await dispatch(mesh, made, body, key=SecretKey.generate()), "unauthenticated")
    headers = signature(mesh, wire.encode(made, body))
    refused(await dispatch(mesh, made, body.replace(b"notes", b"other"), headers=headers), "unauthenticated")
    refused(await mesh.request("POST", mesh.gateway_url + "/v1/dispatch", data=b"x"), "unauthenticated")
    assert executed(mesh) == []


async def test_an_approval_of_one_action_does_not_cover_another(mesh: Mesh) -> None:
    (mesh.sandbox / "keep.txt").write_text("keep")
    approval = (await mesh.call("workbench/delete_file", {"path": "notes.txt"}, run="run-x")).json["approval"]
    await mesh.vote(approval)
    refused(
        await dispatch(mesh, *statement(mesh, "delete_file", {"path": "keep.txt"}, approval=approval)),
        "approval_mismatch",
    )
    made, body = statement(mesh, "delete_file", approval=approval, run="run-y")
    made.facts["context"]["run"]["id"] = "run-y"
    refused(await dispatch(mesh, made, body), "approval_mismatch")
    refused(
        await dispatch(mesh, *statement(mesh, "delete_file", approval=approval)), "approval_mismatch"
    )  # other bytes
    assert (mesh.sandbox / "keep.txt").exists()
    assert (await mesh.claim(approval)).status == 200, "it was left unspent"


async def test_another_agents_approval_cannot_be_seen_or_claimed(mesh: Mesh) -> None:
    approval = (await mesh.call("workbench/delete_file", {"path": "notes.txt"})).json["approval"]
    await mesh.vote(approval)
    agent = {"name": "thief", "owner": "eve", "purpose": "", "teams": []}
    token = (await mesh.admin("POST", "/v1/agents", agent)).json["enrolment_token"]
    from sidecar.app import Sidecar
    from sidecar.config import SidecarConfig

    thief = Sidecar(
        SidecarConfig(
            home=mesh.home / "thief", port=0, gateway_url=mesh.gateway_url, enrolment_token=token, segment_bytes=1 << 20
        )
    )
    await thief.start()
    try:
        url = f"http://127.0.0.1:{thief.port}/v1/approvals/{approval}"
        refused(await mesh.request("GET", url, token=thief.token), "not_yours")
        refused(await mesh.request("POST", url + "/claim", token=thief.token), "not_yours")
        again = await mesh.request(
            "POST",
            mesh.gateway_url + "/v1/enroll",
            json={"token": token, "key": SecretKey.generate().public.jwk, "proof": "AA"},
        )
        assert again.status == 401, "an enrolment token works once"
    finally:
        await thief.stop()
    assert (mesh.sandbox / "notes.txt").exists()


# The node opens only the gateway's tickets


def entitled(mesh: Mesh, payload: Payload, **changed: Any) -> Ticket:
    now = int(mesh.sidecar.identity.clock.now())
    made = Ticket(
        id=new_id("tkt"), action_id="act", node="node-1", key=b64url(mesh.node.identity.key.public.raw), epoch=mesh.node.membership.epoch, server="workbench", tool="read_file",
        tool_digest=mesh.sidecar.pipeline.shown.tool("workbench", "read_file").digest,
        agent="demo", principal="ada", run="r", payload=payload.digest(), action_digest="d", approval=None, credentials=digest_of({}), issued_at=now, deadline=now + 30,
    )  # fmt: skip
    return msgspec.structs.replace(made, **changed)


async def execute(
    mesh: Mesh, token: str, body: bytes, headers: list[tuple[str, str]] | None = None, server: str = "workbench"
) -> Answer:
    data = wire.encode(Execute(server, "POST", headers or []), body)
    return await mesh.request(
        "POST",
        f"http://127.0.0.1:{mesh.node.port}/v1/execute",
        data=data,
        headers={"licet-ticket": token} if token else {},
    )


def gateway_key(mesh: Mesh) -> SecretKey:
    return SecretKey.load(mesh.home / "gateway" / "gateway.key")


async def test_a_node_executes_a_ticket_once_and_only_its_bytes(mesh: Mesh) -> None:
    body = mcp.call("x", "read_file", {"path": "notes.txt"})[1]
    payload, key = Payload("POST", (), body), gateway_key(mesh)
    good = ticket.seal(entitled(mesh, payload), key)
    other = mcp.call("x", "read_file", {"path": "server.pem"})[1]
    refused(await execute(mesh, good, other), "ticket_invalid")
    refused(await execute(mesh, good, body, [("mcp-session-id", "x")]), "ticket_invalid")
    refused(await execute(mesh, good, body, server="elsewhere"), "ticket_invalid")
    assert (await execute(mesh, good, body)).status == 200
    refused(await execute(mesh, good, body), "ticket_invalid")
    for bad in (
        "",
        "a.b.c",
        ticket.seal(entitled(mesh, payload), SecretKey.generate()),
        ticket.seal(entitled(mesh, payload, node="node-2"), key),
        ticket.seal(entitled(mesh, payload, key=b64url(SecretKey.generate().public.raw)), key),
        ticket.seal(entitled(mesh, payload, epoch=mesh.node.membership.epoch - 1), key),
        ticket.seal(entitled(mesh, payload, tool="list_directory"), key),
        ticket.seal(entitled(mesh, payload, issued_at=0, deadline=30), key),
    ):
        assert (await execute(mesh, bad, body)).json["reason"] in ("ticket_invalid", "unauthenticated")
    assert len(executed(mesh)) == 1
    assert len([e for e in mesh.entries("node") if isinstance(e, Refusal)]) == 12


async def test_a_ticket_of_low_risk_is_within_the_nodes_session_and_one_of_high_risk_is_signed(mesh: Mesh) -> None:
    seen: dict[str, str] = {}
    open_, node = mesh.node._executor._open, mesh.node

    def watch(token: str, *rest: Any) -> Ticket:
        opened = open_(token, *rest)
        seen[opened.tool] = token
        return opened

    node._executor._open = watch  # type: ignore[method-assign]
    assert (await mesh.call("workbench/read_file", {"path": "notes.txt"})).status == 200
    approval = (await mesh.call("workbench/delete_file", {"path": "notes.txt"})).json["approval"]
    await mesh.vote(approval)
    assert (await mesh.claim(approval)).status == 200
    assert (ticket.is_signed(seen["read_file"]), ticket.is_signed(seen["delete_file"])) == (False, True)
    session = seen["read_file"].split("~")[0]
    key = node.identity.back_key(session)
    assert key is not None
    body = mcp.call("x", "delete_file", {"path": "notes.txt"})[1]
    digest = mesh.sidecar.pipeline.shown.tool("workbench", "delete_file").digest  # type: ignore[union-attr]
    asked = entitled(mesh, Payload("POST", (), body), tool="delete_file", tool_digest=digest)
    answer = await execute(mesh, ticket.seal_within(asked, session, key), body)
    assert "must be signed" in answer.json["detail"]
    body = mcp.call("x", "read_file", {"path": "notes.txt"})[1]
    forward = node.identity.session.secret  # type: ignore[union-attr]
    echoed = ticket.seal_within(entitled(mesh, Payload("POST", (), body)), session, forward)
    refused(await execute(mesh, echoed, body), "ticket_invalid")


async def test_a_node_that_was_started_again_gets_no_tickets_of_its_session_of_before(mesh: Mesh) -> None:
    await mesh.stop("node")
    await mesh.start_node()
    (mesh.sandbox / "notes.txt").write_text("again")
    for _ in range(3):
        assert (await mesh.call("workbench/read_file", {"path": "notes.txt"})).status == 200


async def test_a_node_whose_lease_ran_out_starts_nothing(mesh: Mesh) -> None:
    body = mcp.call("x", "read_file", {"path": "notes.txt"})[1]
    mesh.node._tasks[0].cancel()
    mesh.node.membership._renewed -= 9.0
    answer = await execute(mesh, ticket.seal(entitled(mesh, Payload("POST", (), body)), gateway_key(mesh)), body)
    assert "lease ran out" in answer.json["detail"]


async def test_upstream_credentials_are_injected_and_never_come_from_or_go_to_the_agent(tmp_path: Any) -> None:
    """A real HTTP server sees the gateway's credential and nothing of the agent's."""
    from aiohttp import web

    from gateway.config import Credential
    from sidecar.config import ToolServer
    from tests.mesh import policy_files

    seen: list[dict[str, str]] = []

    async def serve(request: web.Request) -> web.Response:
        seen.append(dict(request.headers))
        message = json.loads(await request.read())
        tools = [{"name": "t", "inputSchema": {"type": "object", "properties": {}}}]
        results: dict[str, Any] = {
            "tools/list": {"tools": tools},
            "server/discover": {"supportedVersions": ["2026-07-28"]},
        }
        result = results.get(message["method"], {"content": [{"type": "text", "text": "ok"}]})
        return web.json_response({"jsonrpc": "2.0", "id": message["id"], "result": result})

    app = web.Application()
    app.router.add_post("/mcp", serve)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    (tmp_path / "secret").write_text("Bearer upstream-secret\n")
    (tmp_path / "m.toml").write_text(
        '[tools.t]\ncategory = "data"\neffect = "read"\nprivileged = false\nrisk = 0\nlabels = []\n'
    )
    server = ToolServer(name="api", url=f"http://127.0.0.1:{port}/mcp", manifest=tmp_path / "m.toml")
    credential = Credential(server="api", header="Authorization", value_file=tmp_path / "secret")
    try:
        async with Mesh(tmp_path, servers=(server,), credentials=(credential,)) as mesh:
            files = {k: v for k, v in policy_files().items() if not k.startswith("cases/")}
            files["api.cedar"] = (
                '@id("api") permit(principal, action in Action::"server/api", resource) when { action in Action::"read" };'
            )
            assert (await mesh.activate(files)).status == 200
            await mesh.ready()
            seen.clear()
            answer = await mesh.call("api/t", {})
            assert answer.status == 200, answer.body
            assert seen[0]["Authorization"] == "Bearer upstream-secret"
            assert mesh.sidecar.token not in json.dumps(seen)
            everything = (
                answer.body.decode()
                + str(answer.headers)
                + str([mesh.entries(p) for p in ("sidecar", "gateway", "node")])
            )
            assert "upstream-secret" not in everything
    finally:
        await runner.cleanup()
