"""A tool server over HTTP that misbehaves: endless answers, lost sessions, endless lists."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from edge.client import MAX_REPLY_BYTES, Client
from sidecar.node.http_upstream import HttpUpstream
from sidecar.node.upstream import MAX_TOOLS, UpstreamFailed
from trust import mcp

Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def upstream(answer: Answer) -> AsyncIterator[HttpUpstream]:
    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    client = Client()
    try:
        yield HttpUpstream(f"http://127.0.0.1:{runner.addresses[0][1]}/mcp", client)
    finally:
        await client.close()
        await runner.cleanup()


async def result(request: web.BaseRequest, value: dict[str, Any], **headers: str) -> web.Response:
    asked = json.loads(await request.read())
    return web.json_response({"jsonrpc": "2.0", "id": asked.get("id"), "result": value}, headers=headers)


async def test_an_answer_that_never_ends_is_cut_at_the_limit() -> None:
    sent = 0

    async def endless(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        while sent < 4 * MAX_REPLY_BYTES:
            await response.write(b" " * (1 << 20))
            sent += 1 << 20
        return response

    async with upstream(endless) as server:
        with pytest.raises(UpstreamFailed, match=f"more than {MAX_REPLY_BYTES} bytes"):
            await server.list_tools()
    assert sent < 2 * MAX_REPLY_BYTES


async def test_an_answer_that_says_it_is_too_large_is_not_read() -> None:
    async def large(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(MAX_REPLY_BYTES + 1)})
        await response.prepare(request)
        await response.write(b" " * 1000)
        return response

    async with upstream(large) as server:
        with pytest.raises(UpstreamFailed):
            await server.list_tools()


async def test_a_list_of_tools_that_never_ends_is_cut() -> None:
    async def pages(request: web.BaseRequest) -> web.StreamResponse:
        return await result(request, {"tools": [{"name": f"t{i}"} for i in range(500)], "nextCursor": "more"})

    async with upstream(pages) as server:
        assert MAX_TOOLS < len(await server.list_tools()) <= MAX_TOOLS + 500


async def test_a_session_that_the_server_forgot_is_opened_again() -> None:
    alive: set[str] = set()
    opened = 0

    async def sessions(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal opened
        method = json.loads(await request.read())["method"]
        if method == "server/discover":
            return web.Response(status=400)
        if method == "initialize":
            opened += 1
            alive.add(f"s{opened}")
            return await result(request, {"protocolVersion": "2025-06-18"}, **{"mcp-session-id": f"s{opened}"})
        if request.headers.get("mcp-session-id") not in alive:
            return web.Response(status=404)
        return await result(request, {"tools": [{"name": "add"}]})

    async with upstream(sessions) as server:
        await server.start()
        assert [t["name"] for t in await server.list_tools()] == ["add"]
        alive.clear()  # the server was started again
        message, body = mcp.call("1", "add", {})
        payload = mcp.payload(message, body, {mcp.VERSION_HEADER: mcp.MODERN}, None)
        before = server.generation
        async with server.exchange(payload, {}) as replied:
            assert replied.status == 404
        assert server.generation > before, "whoever listed before must list again"
        assert [t["name"] for t in await server.list_tools()] == ["add"]
        async with server.exchange(payload, {}) as replied:
            assert replied.status == 200
        assert opened == 2
