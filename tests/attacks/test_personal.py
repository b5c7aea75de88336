"""Attacks on the privacy of the ledger that once worked: each left a value, or what gives it away, where it must not be."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from edge.judging import Judge
from gateway.subjects import FILE, keys_below
from licet.client import delegate, narrow
from sidecar.config import ToolServer
from tests.mesh import Mesh, policy_files
from tests.stories.test_asking import settled
from tests.stories.test_delegation import credentials
from tests.stories.test_personal import GIVEN, NOTE, PLAIN, STREET, WHO, entries_of, erase, leaks, verified, written
from tests.stories.test_personal import mesh as mesh
from trust.ledger.entries import Gap, Intent, Outcome, Query, Refusal, SealedArguments
from trust.ledger.verify import verify
from trust.personal import QUIET, subject_id

pytestmark = pytest.mark.slow
NUMBER = "12345678901234567890"


@pytest.mark.parametrize(
    "body",
    [
        b'{"tool":"shop/send","args":{"customer":"x","street":%s}}' % NUMBER.encode(),
        b'{"tool":"shop/send","args":{"customer":{"%s":1,"%s":2}}}' % (STREET.encode(), STREET.encode()),
        b'{"tool":"shop/send","args":{"customer":"x","street":9007199254740993,"cents":1.5}}',
    ],
)
async def test_what_cannot_be_read_is_not_quoted(mesh: Mesh, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = await mesh.request("POST", f"{mesh.url}/v1/actions", token=mesh.sidecar.token, data=body, headers=headers)
    assert answer.status == 400
    quoted = [value for value in (NUMBER, STREET, "9007199254740993") if value.encode() in body]
    assert quoted[0] in answer.json["detail"], "the agent is told what is wrong"
    assert entries_of(mesh, Refusal)[-1].detail == QUIET
    assert not [path for path, data in written(mesh.home).items() if quoted[0].encode() in data]


async def test_a_misspelt_tool_is_as_personal_as_any(mesh: Mesh) -> None:
    for tool in ("shop/Send", "shop2/send"):
        assert (await mesh.call(tool, GIVEN)).status == 403
    deeds = [e.deed for e in entries_of(mesh, Refusal)]
    assert [deed.arguments for deed in deeds] == [{}, {}]
    assert all(deed.sealed.key for deed in deeds)
    assert leaks(mesh.home) == []


async def test_what_a_broken_tool_server_says_stays_with_the_agent(tmp_path: Path) -> None:
    """It echoes an argument where HTTP has no place for it, so that the client's error quotes it."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        asked = json.loads(await request.read())
        if asked["method"] == "tools/call":
            street = asked["params"]["arguments"]["street"]
            request.transport.write(b"HTTP/1.1 200 OK\r\nX-Echo: " + street.encode() * 2000 + b"\r\n\r\n")
            request.transport.close()
        schema = {"type": "object", "properties": {"street": {"type": "string", "x-licet-personal": True}}}
        result = {"tools": [{"name": "send", "description": "", "inputSchema": schema}]}
        return web.json_response({"jsonrpc": "2.0", "id": asked.get("id"), "result": result})

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    (tmp_path / "echo.toml").write_text(f"[tools.send]\n{PLAIN}")
    echo = ToolServer(
        name="echo", url=f"http://127.0.0.1:{runner.addresses[0][1]}/mcp", manifest=tmp_path / "echo.toml"
    )
    files = {k: v for k, v in policy_files().items() if not k.startswith("cases/")}
    files["echo.cedar"] = '@id("echo") permit(principal, action in Action::"server/echo", resource);'
    async with Mesh(tmp_path, servers=(echo,)) as mesh:
        assert (await mesh.activate(files)).status == 200
        await mesh.ready()
        assert (await mesh.call("echo/send", {"street": STREET})).status >= 500
        await settled(mesh)
        assert [e.detail for e in entries_of(mesh, Refusal, "node")] == [QUIET]
        assert leaks(mesh.home) == []
    await runner.cleanup()


async def test_an_error_of_policy_is_not_quoted(mesh: Mesh) -> None:
    files = {k: v for k, v in policy_files().items() if not k.startswith("cases/")}
    files["shop.cedar"] = """
@id("shop") permit(principal, action in Action::"server/shop", resource);
@id("much") forbid(principal, action == Action::"shop/send", resource)
when { context.args has cents && context.args.cents * 9000000000000000 > 5 };
"""
    assert (await mesh.activate(files)).status == 200
    await mesh.ready()
    assert (await mesh.call("shop/send", {**GIVEN, "cents": 44556677})).json["reason"] == "policy_error"
    assert entries_of(mesh, Refusal)[-1].judgement.errors == ["much"]


async def test_a_yes_is_as_long_as_a_no(mesh: Mesh) -> None:
    for note in ("yes", "no", "perhaps, if the weather is fine"):
        await mesh.call("shop/send", {**GIVEN, "note": note})
    await settled(mesh)
    assert len({len(e.deed.sealed.box) for e in entries_of(mesh, Intent)}) == 1
    for part in ("sidecar", "node", "gateway"):
        assert {e.response_bytes % 256 for e in entries_of(mesh, Outcome, part)} == {0}, part


async def test_a_chain_is_sealed_with_the_request_that_it_came_with(mesh: Mesh) -> None:
    other = await mesh.add_agent("other", "ben")
    tools = {"shop/refund": {"street": {"constraint_type": "exact", "value": STREET}}}
    root = await asyncio.to_thread(delegate, credentials(mesh), mesh.gateway_url, {"shop/refund": {}})
    chain = narrow(credentials(mesh), root, other.identity.key.public, tools)
    held = await mesh.act(other, "shop/refund", {"customer": WHO, "street": STREET}, chain=chain)
    assert held.status == 202, held.body
    hidden = base64.urlsafe_b64encode(STREET.encode())[:12]
    assert not [p for p, data in written(mesh.home).items() if hidden in data and "sidecar" not in p]
    assert (await mesh.vote(held.json["approval"])).status == 200


async def test_a_header_that_is_too_long_is_not_quoted(mesh: Mesh) -> None:
    headers = {"Mcp-Param-Street": STREET * 30_000}
    with contextlib.suppress(aiohttp.ClientError):  # the connection ends while the header is still being sent
        await mesh.request("POST", f"{mesh.url}/mcp/shop", token=mesh.sidecar.token, data=b"{}", headers=headers)
    assert entries_of(mesh, Refusal)[-1].reason == "malformed_request"
    assert leaks(mesh.home) == []


async def test_requests_are_opened_for_those_only_who_decide_or_read(mesh: Mesh) -> None:
    held = await mesh.call("shop/refund", GIVEN)
    answer = await mesh.admin("POST", "/v1/people", {"name": "eve", "roles": ["author"]})
    mesh.tokens["eve"] = answer.json["token"]
    path = f"/v1/approvals/{held.json['approval']}"
    assert (await mesh.admin("GET", path, who="eve")).json["payload"] == ""
    assert NOTE in (await mesh.admin("GET", path, who="approver-1")).json["payload"]
    for who in ("eve", "approver-1", "operator"):
        assert NOTE.encode() not in (await mesh.admin("GET", "/v1/approvals", who=who)).body


def _relabelled(mesh: Mesh, **changed: Any) -> Any:
    """What verification says of the last intent with a deed that was *changed*, by an insider with the log's key."""
    home = mesh.home / "sidecar"
    judge = Judge(home, keys_below(mesh.home / "gateway"))
    line = [line for _, line in mesh.sidecar.ledger.lines() if isinstance(line.entry, Intent)][-1]
    deed = msgspec.structs.replace(line.entry.deed, **changed)
    return judge.decided(msgspec.structs.replace(line, entry=msgspec.structs.replace(line.entry, deed=deed)))


async def test_no_decision_hides_behind_a_seal(mesh: Mesh) -> None:
    await mesh.call("shop/ping", {})
    key = "sub_nobody"
    assert "nothing of shop/ping is personal" in _relabelled(mesh, sealed=SealedArguments(key, "AAAA"))
    await mesh.call("shop/send", GIVEN)
    sealed = entries_of(mesh, Intent)[-1].deed.sealed
    assert _relabelled(mesh) is None
    assert "not sealed under" in _relabelled(mesh, sealed=SealedArguments(sealed.key, "AAAA"))
    assert "key that nobody has" in _relabelled(mesh, sealed=SealedArguments())
    assert "in plain" in _relabelled(mesh, sealed=None, arguments=GIVEN)
    assert "in plain" in _relabelled(mesh, arguments={"cents": 7, "note": NOTE})
    assert "its digest is another" in _relabelled(mesh, arguments={"cents": 8})
    assert verify(mesh.sidecar.ledger.root, judge=Judge(mesh.home / "sidecar")).holds


async def test_a_key_that_vanishes_is_missed(mesh: Mesh) -> None:
    import sqlite3

    await mesh.call("shop/send", GIVEN)
    await mesh.stop("gateway")
    with sqlite3.connect(mesh.home / "gateway" / FILE) as db:
        db.execute("DELETE FROM subject")
    db.close()
    await mesh.start_gateway()
    (gap,) = [e for e in entries_of(mesh, Gap, "gateway") if e.what == "subject_key_lost"]
    assert "nobody erased it" in gap.detail


async def test_a_key_that_came_while_others_were_erased_is_not_kept(mesh: Mesh) -> None:
    """The reply is held back until the erasure was heard, and noticed by another call."""
    subjects = mesh.sidecar.pipeline._subjects
    ask, go, asked = subjects._ask, asyncio.Event(), asyncio.Event()

    async def slow(subject: str) -> Any:
        key = await ask(subject)
        if subject == subject_id(WHO):
            asked.set()
            await go.wait()
        return key

    subjects._ask = slow  # type: ignore[method-assign]
    calling = asyncio.create_task(mesh.call("shop/send", GIVEN))
    await asked.wait()
    await erase(mesh)
    async with asyncio.timeout(30):
        while mesh.sidecar.world.facts.erasures != 1:
            await asyncio.sleep(0.01)
    assert (await mesh.call("shop/send", {**GIVEN, "customer": "another"})).status == 200
    go.set()
    first = await calling
    assert (first.status, first.json["reason"]) == (503, "stale_facts")
    assert (await mesh.call("shop/send", GIVEN)).status == 200
    assert verified(mesh, keys=True).faults == []


async def test_a_name_is_no_filter(mesh: Mesh) -> None:
    answer = await mesh.admin("GET", f"/v1/ledger/entries?subject={WHO}")
    assert (answer.status, answer.json["reason"]) == (400, "malformed_request")
    assert not [e for e in entries_of(mesh, Query, "gateway") if WHO in e.asked]
    assert leaks(mesh.home) == []


async def test_who_was_stopped_gets_no_keys(mesh: Mesh) -> None:
    await mesh.admin("POST", "/v1/kills", {"target": "demo", "reason": "enough"})
    body = msgspec.json.encode({"agent": "demo", "subject": subject_id(WHO)})
    send = mesh.sidecar.identity.send("POST", "/v1/subjects/key", body, {"Content-Type": "application/json"})
    async with send as reply:
        assert json.loads(await reply.read())["reason"] == "killed"
