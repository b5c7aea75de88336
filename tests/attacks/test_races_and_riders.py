"""Found by a second attack: races between judging and doing, riders that nobody judges, one agent against all."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest

from tests.attacks.test_forgery import dispatch, executed, signature, statement
from tests.mesh import Mesh, policy_files
from trust import feed, mcp, wire
from trust.reasons import Unverifiable

pytestmark = pytest.mark.slow


async def waiting(mesh: Mesh, count: int) -> None:
    """Until so many want to decide, and wait for who decides now."""
    deciding: Any = mesh.gateway.records.deciding
    async with asyncio.timeout(30):
        while len(deciding._waiters or ()) < count:
            await asyncio.sleep(0.01)


async def test_a_claim_runs_under_the_policy_of_the_moment_in_which_it_is_spent(mesh: Mesh) -> None:
    approval = (await mesh.call("workbench/delete_file", {"path": "notes.txt"})).json["approval"]
    await mesh.vote(approval)
    forbids = '@id("never") forbid (principal, action == Action::"workbench/delete_file", resource);'
    files = {k: v for k, v in policy_files().items() if not k.startswith("cases/")} | {"z.cedar": forbids}
    await mesh.gateway.records.deciding.acquire()  # as if something slow were being written
    activation = asyncio.create_task(mesh.activate(files))
    await waiting(mesh, 1)
    claim = asyncio.create_task(mesh.claim(approval))
    await waiting(mesh, 2)
    mesh.gateway.records.deciding.release()
    assert (await activation).status == 200
    assert (await claim).status == 403
    assert (mesh.sandbox / "notes.txt").exists()
    assert mesh.gateway.desk.get(approval).state == "approved", "left unspent"


async def test_a_kill_that_comes_while_a_claim_waits_stops_it(mesh: Mesh) -> None:
    approval = (await mesh.call("workbench/delete_file", {"path": "notes.txt"})).json["approval"]
    await mesh.vote(approval)
    await mesh.gateway.records.deciding.acquire()
    kill = asyncio.create_task(mesh.admin("POST", "/v1/kills", {"target": "demo", "reason": "x"}))
    await waiting(mesh, 1)
    claim = asyncio.create_task(mesh.claim(approval))
    await waiting(mesh, 2)
    mesh.gateway.records.deciding.release()
    assert (await kill).status == 200
    assert (await claim).json["reason"] == "killed"
    assert (mesh.sandbox / "notes.txt").exists()


META = {
    mcp.VERSION_META: mcp.MODERN,
    mcp.CLIENT_INFO_META: {"name": "c", "version": "1"},
    mcp.CLIENT_CAPABILITIES_META: {},
}
CALL = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "tools/call",
    "params": {"name": "read_file", "arguments": {"path": "notes.txt"}, "_meta": META},
}
HEADERS = {"mcp-protocol-version": mcp.MODERN, "mcp-method": "tools/call", "mcp-name": "read_file"}
LARGE = "S" * 100_000
RIDERS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "members in other letters": ({**CALL, "Params": {"name": "delete_file"}, "METHOD": "tools/call"}, HEADERS),
    "a member of its own": ({**CALL, "cargo": "x"}, HEADERS),
    "a large client info": (
        {**CALL, "params": {**CALL["params"], "_meta": {**META, mcp.CLIENT_INFO_META: {"x": LARGE}}}},  # type: ignore[dict-item]
        HEADERS,
    ),
    "another version in the header": (CALL, {**HEADERS, "mcp-protocol-version": "2025-11-25"}),
    "a version that is none": (
        {**CALL, "params": {**CALL["params"], "_meta": {**META, mcp.VERSION_META: {"a": []}}}},  # type: ignore[dict-item]
        HEADERS,
    ),
    "a large notification": ({"jsonrpc": "2.0", "method": "notifications/x", "params": {"data": LARGE}}, {}),
    "a large response": ({"jsonrpc": "2.0", "id": 9, "result": {"data": LARGE}}, {}),
    "a large handshake": (
        {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"capabilities": {"x": LARGE}}},
        {},
    ),
}


@pytest.mark.parametrize("name", RIDERS)
async def test_what_no_policy_judges_does_not_ride_along(mesh: Mesh, name: str) -> None:
    body, headers = RIDERS[name]
    before = len(mesh.entries("node"))
    answer = await mesh.request(
        "POST",
        f"{mesh.url}/mcp/workbench",
        token=mesh.sidecar.token,
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json", **headers},
    )
    assert answer.status == 400, answer.body
    assert len(mesh.entries("node")) == before


@pytest.mark.parametrize(
    "forged",
    [
        {"authority": ("root-of-ada", "child")},
        {"intent": "licet.local/sidecar/other#7"},
        {"intent": "x"},
        {"action_id": "A" * 900_000},
        {"run": "a b"},
        {"bundle": "0" * 65},
    ],
)
async def test_a_sidecars_statement_is_not_believed_beyond_its_own(mesh: Mesh, forged: dict[str, Any]) -> None:
    made, body = statement(mesh)
    answer = await dispatch(mesh, msgspec.structs.replace(made, **forged), body)
    assert answer.json["reason"] in ("permit_invalid", "malformed_request"), answer.body
    assert len(executed(mesh)) == 0


async def test_a_statement_that_is_too_deep_is_refused(mesh: Mesh) -> None:
    for depth in (900, 100_000):
        made, body = statement(mesh)
        head = msgspec.json.encode(made)
        deep = head[:-1] + b',"place":{"pin":' + b"[" * depth + b"]" * depth + b"}}"
        data = len(deep).to_bytes(4, "big") + deep + body
        answer = await mesh.request("POST", mesh.gateway_url + "/v1/dispatch", data=data, headers=signature(mesh, data))
        assert answer.status in (400, 403), answer.body


async def test_many_bodies_of_one_request_leave_one_file(mesh: Mesh) -> None:
    before = len(list((mesh.home / "gateway" / "blobs").iterdir()))
    for number in range(5):
        made, body = statement(mesh, "delete_file")
        padded = body[:-1] + b" " * (number + 1) + body[-1:]
        data = wire.encode(made, padded)
        async with mesh.sidecar.identity.send(
            "POST", "/v1/approvals", data, {"Content-Type": wire.DISPATCH_TYPE}
        ) as reply:
            assert reply.status == 201
    assert len(list((mesh.home / "gateway" / "blobs").iterdir())) == before + 1


async def test_a_request_for_another_node_is_another_request(mesh: Mesh) -> None:
    asked = {"path": "notes.txt"}
    first = (await mesh.call("workbench/delete_file", asked, place={"pin": "node-1"})).json["approval"]
    second = (await mesh.call("workbench/delete_file", asked)).json["approval"]
    assert first != second


async def test_one_agent_cannot_take_the_places_of_all(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.dispatch.MAX_IN_FLIGHT", (64, 64, 64, 2, 1))
    dispatcher = mesh.gateway._api.services.dispatcher
    with dispatcher._in_flight("demo", 3), dispatcher._in_flight("demo", 3):
        answer = await mesh.call("workbench/read_file", {"path": "notes.txt"})
        assert (answer.status, answer.json["reason"]) == (503, "overloaded")
        with dispatcher._in_flight("other", 3):
            pass
    assert (await mesh.call("workbench/read_file", {"path": "notes.txt"})).status == 200


@pytest.mark.parametrize("how", ["kill", "revoke the agent", "revoke the principal"])
async def test_a_kill_or_revocation_cuts_streams_that_are_open(mesh: Mesh, how: str) -> None:
    async def endless() -> Any:
        while True:
            yield b"data: {}\n\n"
            await asyncio.sleep(0.05)

    from sidecar.node.upstream import Replied

    upstream: Any = mesh.node.offers.upstreams["workbench"]
    real = upstream._post

    async def post(payload: Any) -> Replied:
        if b"read_file" in payload.body:
            return Replied(200, {"Content-Type": "text/event-stream"}, b"", endless())
        answered: Replied = await real(payload)
        return answered

    upstream._post = post
    headers = {"Authorization": f"Bearer {mesh.sidecar.token}", "Content-Type": "application/json", **HEADERS}
    async with asyncio.timeout(30):
        async with mesh.http.post(f"{mesh.url}/mcp/workbench", json=CALL, headers=headers) as stream:
            await stream.content.readany()
            if how == "kill":
                await mesh.admin("POST", "/v1/kills", {"target": "demo", "reason": "x"})
            else:
                what, name = ("agent", "demo") if how.endswith("agent") else ("principal", "ada")
                await mesh.admin("POST", "/v1/revocations", {"what": what, "id": name, "reason": "x"})
            try:
                async for _ in stream.content.iter_any():
                    pass
            except Exception:
                pass  # cut, as it should be


async def test_a_node_reads_who_was_stopped_and_nothing_about_agents(mesh: Mesh) -> None:
    async with mesh.node.identity.send("GET", "/v1/feed") as reply:
        line = await anext(reply.chunks())
    told = feed.open_stops(
        line, mesh.node.identity.gateway, node="node-1", after=None, now=mesh.node.identity.clock.now()
    )
    assert told.agents == ()
    with pytest.raises(Unverifiable):
        feed.open_line(line, mesh.node.identity.gateway, agent="demo", after=None, now=mesh.node.identity.clock.now())


async def test_progress_goes_to_the_caller_whose_token_it_is_although_both_chose_the_same() -> None:
    from sidecar.node.stdio_upstream import _for_session

    for key in ("_meta", "\\u005fmeta"):
        params = b'{"name":"t","%s":{"progressToken":7}}' % key.encode()
        sent, token = _for_session(params, "licet-1")
        assert token == 7
        assert json.loads(sent)["_meta"] == {"progressToken": "licet-1"}
