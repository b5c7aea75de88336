"""An MCP server over HTTP: exchanges pass through as they are.

A server that only speaks the session era gets one session of the node's own, used for stateless calls (native
actions have no session); clients that open sessions themselves keep theirs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from edge.client import Broken, Client, Unreachable
from sidecar.node.upstream import MAX_TOOLS, Replied, UpstreamFailed, result_of
from trust import mcp
from trust.action import Payload
from trust.canonical import JsonObject, jcs
from trust.reasons import Unverifiable

_ACCEPT: Final = "application/json, text/event-stream"
_OFFERED_VERSION: Final = "2025-11-25"
_PASSED_BACK: Final = ("Content-Type", "mcp-session-id")


class HttpUpstream:
    """*url* is the server's MCP endpoint, chosen by whoever runs the node."""

    def __init__(self, url: str, client: Client) -> None:
        self._url = url
        self._client = client
        self._session: dict[str, str] | None = None
        self._session_lost = False
        self.generation = 0

    async def start(self) -> None:
        """Find out which era the server speaks."""
        try:
            result_of(await self._ask(mcp.request(1, "server/discover", {}), _modern("server/discover")))
        except UpstreamFailed:
            await self._open_session()

    async def _open_session(self) -> None:
        params: JsonObject = {
            "protocolVersion": _OFFERED_VERSION,
            "capabilities": {},
            "clientInfo": {"name": "licet", "version": "1"},
        }
        body = jcs({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params})
        async with self._send("POST", {}, body) as replied:
            answer = _final(replied)
            version = str(result_of(answer).get("protocolVersion", _OFFERED_VERSION))
            session = replied.headers.get("mcp-session-id", "")
        self._session = {mcp.VERSION_HEADER: version, **({mcp.SESSION_HEADER: session} if session else {})}
        done = jcs({"jsonrpc": "2.0", "method": "notifications/initialized"})
        async with self._send("POST", self._session, done):
            pass
        self._session_lost = False

    async def list_tools(self) -> list[dict[str, Any]]:
        if self._session_lost:
            await self._open_session()
        tools: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            params: JsonObject = {} if cursor is None else {"cursor": cursor}
            body = mcp.request(2, "tools/list", params)
            result = result_of(await self._ask(body, self._session or _modern("tools/list")))
            tools += result.get("tools", [])
            cursor = result.get("nextCursor")
            if not cursor or len(tools) > MAX_TOOLS:
                return tools

    async def _ask(self, body: bytes, headers: dict[str, str]) -> JsonObject:
        async with self._send("POST", headers, body) as replied:
            self._notice_lost_session(replied, headers)
            return _final(replied)

    def _notice_lost_session(self, replied: Replied, sent: dict[str, str]) -> None:
        """A server that was started again knows nothing of its sessions and says 404: what it lists may be new."""
        if replied.status == 404 and mcp.SESSION_HEADER in sent:
            self.generation += 1
            if self._session and sent[mcp.SESSION_HEADER] == self._session.get(mcp.SESSION_HEADER):
                self._session_lost = True

    @asynccontextmanager
    async def exchange(self, payload: Payload, added: dict[str, str]) -> AsyncIterator[Replied]:
        headers = dict(payload.headers)
        stateless = payload.method == "POST" and mcp.SESSION_HEADER not in headers
        lent = self._session if stateless and headers.get(mcp.VERSION_HEADER) == mcp.MODERN else None
        if self._session and headers.get(mcp.SESSION_HEADER) == self._session.get(mcp.SESSION_HEADER, ""):
            raise UpstreamFailed("this session is the node's own")
        complete = {**headers, **(lent or {}), **added}
        async with self._send(payload.method, complete, payload.body, stream=True) as replied:
            self._notice_lost_session(replied, complete)
            if lent is not None:
                replied.headers.pop("mcp-session-id", None)
            yield replied

    @asynccontextmanager
    async def _send(
        self, method: str, headers: dict[str, str], body: bytes, *, stream: bool = False
    ) -> AsyncIterator[Replied]:
        complete = {"Accept": _ACCEPT, **({"Content-Type": "application/json"} if body else {}), **headers}
        try:
            async with self._client.send(method, self._url, complete, body or None) as reply:
                back = {name: value for name in _PASSED_BACK if (value := reply.header(name))}
                if stream and reply.header("Content-Type").startswith("text/event-stream"):
                    yield Replied(reply.status, back, b"", reply.chunks())
                else:
                    yield Replied(reply.status, back, await reply.read())
        except (Unreachable, Broken) as bad:
            raise UpstreamFailed(str(bad)) from None

    async def close(self) -> None:
        if self._session and mcp.SESSION_HEADER in self._session:
            try:
                async with self._send("DELETE", self._session, b""):
                    pass
            except UpstreamFailed:
                return


def _modern(method: str) -> dict[str, str]:
    return {mcp.VERSION_HEADER: mcp.MODERN, mcp.METHOD_HEADER: method}


def _final(replied: Replied) -> JsonObject:
    try:
        return mcp.final_response(replied.headers.get("Content-Type", ""), replied.body)
    except Unverifiable as bad:
        raise UpstreamFailed(f"HTTP {replied.status}: {bad.detail}") from None
