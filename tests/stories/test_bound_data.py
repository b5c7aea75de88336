"""Data that takes calls only under a ticket bound to a node's key: reached from elsewhere, it gives nothing."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from licet.client import Guard
from licet.client.guarding import WITHOUT_TICKET
from sidecar.config import ToolServer
from tests.mesh import Answer, Mesh
from tests.stories.test_routing import policies
from trust import mcp, wire
from trust.canonical import sha256_hex
from trust.identity import ticket
from trust.identity.keys import SecretKey
from trust.identity.replay import Nonces
from trust.reasons import Unverifiable

pytestmark = pytest.mark.slow

MANIFEST = '[tools.read]\ncategory = "data"\neffect = "read"\nprivileged = false\nrisk = 0\nidempotent = true\n'


class Records:
    """An MCP server over HTTP that guards what it has, and remembers what it was asked."""

    def __init__(self) -> None:
        self.guard: Guard | None = None
        self.asked: list[tuple[dict[str, str], bytes]] = []
        self.url = ""

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        asked = json.loads(body)
        result: dict[str, Any] = {}
        try:
            ticketed = self.guard is None or self.guard.admit(request.headers, body) is not None
            refusal = ""
        except Unverifiable as no:
            ticketed, refusal = True, no.detail
        if asked["method"] not in WITHOUT_TICKET:
            shown = {
                name: request.headers[name] for name in (wire.TICKET_HEADER, wire.USE_HEADER) if name in request.headers
            }
            self.asked.append((shown, body))
            assert ticketed
            if refusal:
                told = {"code": -32000, "message": refusal}
                return web.json_response({"jsonrpc": "2.0", "id": asked.get("id"), "error": told}, status=403)
            result = {"content": [{"type": "text", "text": "a record"}]}
        elif asked["method"] == "tools/list":
            schema = {"type": "object", "properties": {"of": {"type": "string"}}}
            result = {"tools": [{"name": "read", "description": "read", "inputSchema": schema}]}
        return web.json_response({"jsonrpc": "2.0", "id": asked.get("id"), "result": result})

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Records]:
        runner = web.ServerRunner(web.Server(self.answer))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/mcp"
        yield self
        await runner.cleanup()


@asynccontextmanager
async def guarded(home: Path, *requires: str, bound: bool = True) -> AsyncIterator[tuple[Mesh, Records]]:
    manifest = home / "records.toml"
    manifest.write_text(MANIFEST)
    async with Records().open() as records, Mesh(home, policies=policies()) as mesh:
        server = ToolServer(name="records", url=records.url, manifest=manifest, bound=bound)
        await mesh.add_node("office", server, capabilities={"data_locality": "berlin"})
        gateway = SecretKey.load(mesh.home / "gateway" / "gateway.key").public
        records.guard = Guard(gateway, server="records", requires=requires)
        yield mesh, records


async def call(mesh: Mesh) -> Answer:
    return await mesh.call("records/read", {"of": "ada"})


async def test_through_its_node_data_is_read_and_a_copy_of_the_call_reads_nothing(tmp_path: Path) -> None:
    async with guarded(tmp_path, "data_locality=berlin@signed") as (mesh, records):
        assert (await call(mesh)).status == 200
        [(headers, body)] = records.asked
        assert headers[wire.TICKET_HEADER].count(".") == 2, "signed, for others to check"
        again = await mesh.request("POST", records.url, data=body, headers=headers)
        assert (again.status, "used before" in again.json["error"]["message"]) == (403, True)
        bare = await mesh.request("POST", records.url, data=body)
        assert (bare.status, "no ticket" in bare.json["error"]["message"]) == (403, True)


async def test_somebody_else_with_a_nodes_ticket_reads_nothing(tmp_path: Path) -> None:
    async with guarded(tmp_path) as (mesh, records):
        guard, records.guard = records.guard, None
        assert (await call(mesh)).status == 200
        [(headers, body)] = records.asked
        records.guard = guard
        stolen = headers | {wire.USE_HEADER: ticket.use(headers[wire.TICKET_HEADER], body, SecretKey.generate())}
        assert (await mesh.request("POST", records.url, data=body, headers=stolen)).status == 403
        other = mcp.call("x", "read", {"of": "eve"})[1]
        assert (await mesh.request("POST", records.url, data=other, headers=headers)).status == 403
        assert (await mesh.request("POST", records.url, data=body, headers=headers)).status == 200, "the node itself"


async def test_the_ticket_says_what_the_node_holds_and_the_data_may_ask_for_more(tmp_path: Path) -> None:
    async with guarded(tmp_path, "data_locality=berlin@bound") as (mesh, _):
        told = (await call(mesh)).json
        assert "office lacks data_locality=berlin@bound" in json.dumps(told)


async def test_what_is_not_bound_carries_no_ticket_to_the_server(tmp_path: Path) -> None:
    async with guarded(tmp_path, bound=False) as (mesh, records):
        await call(mesh)
        [(headers, _)] = records.asked
        assert headers == {}


def test_a_node_that_is_not_honest_does_not_bring_other_bytes_under_a_ticket() -> None:
    """It holds its key, so it can sign what it likes; the gateway has signed which bytes."""
    from tests.trust.test_identity import KEY, NOW, OTHER, TICKET

    asked = mcp.call("x", "list", {})[1]
    token = ticket.seal(msgspec.structs.replace(TICKET, body=sha256_hex(asked)), KEY)
    guard = Guard(KEY.public, server="s", now=lambda: NOW + 1)
    for body in (mcp.call("x", "read_everything", {})[1], asked + b" ", b"[" + asked + b"]"):
        with pytest.raises(Unverifiable, match="made for other bytes"):
            guard.require({wire.TICKET_HEADER: token, wire.USE_HEADER: ticket.use(token, body, OTHER)}, body)
    unbound = ticket.seal(TICKET, KEY)
    with pytest.raises(Unverifiable, match="made for other bytes"):
        guard.require({wire.TICKET_HEADER: unbound, wire.USE_HEADER: ticket.use(unbound, asked, OTHER)}, asked)
    assert guard.require({wire.TICKET_HEADER: token, wire.USE_HEADER: ticket.use(token, asked, OTHER)}, asked)


@pytest.mark.parametrize(
    "body",
    [b'[{"jsonrpc":"2.0","id":1,"method":"tools/list"}]', b'{"method":"tools/list","method":"tools/call"}', b"{}"],
)
def test_what_is_not_one_message_is_not_taken_for_a_harmless_one(body: bytes) -> None:
    from tests.trust.test_identity import KEY

    with pytest.raises(Unverifiable):
        Guard(KEY.public, server="s").admit({}, body)
    assert Guard(KEY.public, server="s").admit({}, mcp.request(1, "tools/list", {})) is None


def test_processes_of_one_server_may_share_what_was_spent() -> None:
    from tests.trust.test_identity import KEY, NOW, OTHER, TICKET

    token = ticket.seal(msgspec.structs.replace(TICKET, body=sha256_hex(b"")), KEY)
    used = {wire.TICKET_HEADER: token, wire.USE_HEADER: ticket.use(token, b"", OTHER)}
    spent = Nonces()
    one, other = (Guard(KEY.public, server="s", spent=spent, now=lambda: NOW + 1) for _ in range(2))
    one.require(used, b"")
    with pytest.raises(Unverifiable, match="used before"):
        other.require(used, b"")


def test_a_ticket_for_another_server_is_none_here() -> None:
    from tests.trust.test_identity import KEY, NOW, OTHER, TICKET

    made = msgspec.structs.replace(TICKET, body=sha256_hex(b""))
    token = ticket.seal(made, KEY)
    used = {wire.TICKET_HEADER: token, wire.USE_HEADER: ticket.use(token, b"", OTHER)}
    assert Guard(KEY.public, server="s", now=lambda: NOW + 1).require(used, b"") == made
    with pytest.raises(Unverifiable, match="made for s, and this is records"):
        Guard(KEY.public, server="records", now=lambda: NOW + 1).require(used, b"")
