"""An MCP server as a child process: one process, spoken to on stdio, shared by all calls.

The node holds the handshake and answers ``initialize``, ``server/discover`` and ``ping`` from it, so both eras
work whatever the server speaks. Each request gets an id of the node's own, and the envelope of the stateless
era is taken out of ``_meta``; every other part of its params travels as the very bytes that were judged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from sidecar.config import SandboxConfig
from sidecar.node.measuring import cpu_us, memory_bytes
from sidecar.node.sandbox import prefix
from sidecar.node.upstream import MAX_TOOLS, Replied, UpstreamFailed, result_of
from trust import mcp
from trust.action import Payload
from trust.canonical import JsonObject, jcs

HANDSHAKE_TIMEOUT_S: Final = 30.0
MAX_LINE_BYTES: Final = 64 << 20
KILL_AFTER_S: Final = 1.0
CALL_TIMEOUT_S: Final = 300.0
MAX_PROGRESS: Final = 1000
"""Notifications that wait for a caller who does not read; further ones are dropped."""
MAX_UNREAD_BYTES: Final = 16 << 20
"""What may wait for a child that is busy; more is refused."""
_OFFERED_VERSION: Final = "2025-11-25"
_STATELESS_ENVELOPE: Final = (mcp.VERSION_META, mcp.CLIENT_INFO_META, mcp.CLIENT_CAPABILITIES_META)
_JSON: Final = {"Content-Type": "application/json"}
_PASSED_ON: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR")


_log = logging.getLogger("licet.node")


class _Raw(msgspec.Struct):
    """A request with its params untouched."""

    method: str
    id: int | str | None = None
    params: msgspec.Raw = msgspec.Raw(b"{}")


class _Out(msgspec.Struct):
    method: str
    params: msgspec.Raw
    jsonrpc: str = "2.0"
    id: int | msgspec.UnsetType = msgspec.UNSET


class _Listening:
    """A caller that waits for progress, under the token that it chose."""

    def __init__(self, token: str | int) -> None:
        self.token = token
        self.heard: asyncio.Queue[bytes] = asyncio.Queue()


class StdioUpstream:
    """*command* is started without a shell and without this process's secrets in its environment, inside a *sandbox*
    if there is one; *home* is the node's, which it does not see there."""

    def __init__(
        self,
        command: tuple[str, ...],
        env: dict[str, str],
        cwd: Path | None,
        sandbox: SandboxConfig | None = None,
        home: Path = Path(".licet/node"),
    ) -> None:
        self._command = command
        self._sandbox = sandbox
        self._home = home
        self._env = {name: os.environ[name] for name in _PASSED_ON if name in os.environ} | env
        self._cwd = cwd
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._waiting: dict[int, asyncio.Future[JsonObject]] = {}
        self._progress: dict[str, _Listening] = {}
        self._next = 0
        self.generation = 0
        self._hello: JsonObject = {}

    async def start(self) -> None:
        self.generation += 1
        inside = prefix(self._sandbox, self._cwd, self._home) if self._sandbox is not None else ()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *inside,
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                cwd=self._cwd,
                env=self._env,
                limit=MAX_LINE_BYTES,
                start_new_session=True,
            )
        except OSError as bad:
            raise UpstreamFailed(f"{self._command[0]}: {bad}") from None
        self._reader = asyncio.create_task(self._read())
        params: JsonObject = {
            "protocolVersion": _OFFERED_VERSION,
            "capabilities": {},
            "clientInfo": {"name": "licet", "version": "1"},
        }
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                self._hello = result_of(await self._ask("initialize", jcs(params)))
        except BaseException as bad:
            self._kill(signal.SIGKILL)  # what did not shake hands counts as dead, and is started again
            if isinstance(bad, TimeoutError):
                raise UpstreamFailed(f"{self._command[0]} did not answer initialize") from None
            raise
        self._write(_Out("notifications/initialized", msgspec.Raw(b"{}")))

    @property
    def alive(self) -> bool:
        """Whether somebody hears it: a child may have ended before the system says so."""
        reading = self._reader is not None and not self._reader.done()
        return reading and self._process is not None and self._process.returncode is None

    async def list_tools(self) -> list[dict[str, Any]]:
        tools: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            result = result_of(await self._ask("tools/list", jcs({} if cursor is None else {"cursor": cursor})))
            tools += result.get("tools", [])
            cursor = result.get("nextCursor")
            if not cursor or len(tools) > MAX_TOOLS:
                return tools

    @asynccontextmanager
    async def exchange(self, payload: Payload, _added: dict[str, str]) -> AsyncIterator[Replied]:
        if payload.method == "DELETE":
            yield Replied(200, {}, b"")
        elif payload.method != "POST":
            yield Replied(405, {}, b"")  # no stream of its own, as the transport allows
        else:
            yield await self._post(payload)

    async def _post(self, payload: Payload) -> Replied:
        message = mcp.read_message(payload.body)
        raw = msgspec.json.decode(payload.body, type=_Raw) if message.kind != "response" else _Raw("")
        if message.kind != "request":
            # Of notifications only cancellation would matter, and it names an id that is not ours.
            return Replied(202, {}, b"")
        own = self._own_answer(message, payload)
        if own is not None:
            return own
        own_token = f"licet-{secrets.token_hex(8)}"
        params, token = _for_session(bytes(raw.params), own_token)
        if token is not None:
            events = self._events(message, raw.method, params, own_token, token)
            return Replied(200, {"Content-Type": "text/event-stream"}, b"", events)
        measure = self._measure()
        response = await self._ask(raw.method, params)
        return Replied(200, _JSON, _answer(message, response), None, *measure())

    def _measure(self) -> Callable[[], tuple[int | None, int | None]]:
        """What the child uses until the function is called: CPU time and memory, both None if another call ran too."""
        measurable = self._process is not None and self._sandbox is None  # in a sandbox it is a child of the process
        alone, calls, pid = not self._waiting, self._next, self._process.pid if self._process and measurable else 0
        before = cpu_us(pid)

        def measured() -> tuple[int | None, int | None]:
            after = cpu_us(pid)
            if not alone or self._next != calls + 1 or before is None or after is None:
                return None, None
            return after - before, memory_bytes(pid)

        return measured

    def _own_answer(self, message: mcp.Message, payload: Payload) -> Replied | None:
        """What the handshake already told."""
        if message.method == "initialize":
            headers = {**_JSON, "mcp-session-id": secrets.token_hex(16)}
            return Replied(200, headers, mcp.result(message.rpc_id, self._hello))
        if message.method == "server/discover":
            hello: JsonObject = {
                key: self._hello[key] for key in ("capabilities", "instructions") if key in self._hello
            }
            meta: JsonObject = {"io.modelcontextprotocol/serverInfo": self._hello.get("serverInfo", {})}
            result: JsonObject = {
                **hello,
                "supportedVersions": [mcp.MODERN],
                "_meta": meta,
                "resultType": "complete",
                "ttlMs": 0,
                "cacheScope": "private",
            }
            return Replied(200, _JSON, mcp.result(message.rpc_id, result))
        if message.method == "ping":
            return Replied(200, _JSON, mcp.result(message.rpc_id, {}))
        return None

    async def _events(
        self, message: mcp.Message, method: str, params: bytes, own_token: str, token: str | int
    ) -> AsyncIterator[bytes]:
        """A call that asked for progress: notifications as they come, then the response.

        The child is shared, and callers choose their tokens: it gets one of ours, which nobody else knows.
        """
        listening = self._progress[own_token] = _Listening(token)
        asking = asyncio.create_task(self._ask(method, params))
        asking.add_done_callback(lambda _: listening.heard.put_nowait(b""))
        try:
            while notification := await listening.heard.get():
                yield mcp.event(notification)
            yield mcp.event(_answer(message, await asking))
        finally:
            del self._progress[own_token]
            asking.cancel()

    async def _ask(self, method: str, params: bytes) -> JsonObject:
        if not self.alive:
            raise UpstreamFailed(f"{self._command[0]} is not running")
        self._next += 1
        rpc_id = self._next
        future: asyncio.Future[JsonObject] = asyncio.get_running_loop().create_future()
        self._waiting[rpc_id] = future
        try:
            stdin = self._write(_Out(method, msgspec.Raw(params), id=rpc_id))
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await stdin.drain()
                return await future
        except ConnectionError as bad:
            raise UpstreamFailed(f"{self._command[0]} ended: {bad}") from None
        except TimeoutError:
            self._tell_cancelled(rpc_id)
            raise UpstreamFailed(f"{self._command[0]} did not answer within {CALL_TIMEOUT_S:.0f} s") from None
        except asyncio.CancelledError:
            self._tell_cancelled(rpc_id)
            raise
        finally:
            self._waiting.pop(rpc_id, None)

    def _tell_cancelled(self, rpc_id: int) -> None:
        """Nobody waits for this answer any more; a server that can stop may stop."""
        params = jcs({"requestId": rpc_id, "reason": "the caller was stopped or waited too long"})
        with contextlib.suppress(UpstreamFailed):
            self._write(_Out("notifications/cancelled", msgspec.Raw(params)))

    def _write(self, message: _Out) -> asyncio.StreamWriter:
        stdin = self._process.stdin if self._process else None
        if stdin is None or stdin.is_closing():
            raise UpstreamFailed(f"{self._command[0]} is not running")
        if stdin.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            raise UpstreamFailed(f"{self._command[0]} does not read what it is sent")
        stdin.write(msgspec.json.encode(message) + b"\n")
        return stdin

    async def _read(self) -> None:
        """Hand every line of the child to whoever waits for it, until it ends."""
        stdout = self._process.stdout if self._process else None
        try:
            while stdout is not None and (line := await stdout.readline()):
                self._hear(line)
        except Exception:
            # A line beyond the limit, or one that makes no sense: nothing after it can be trusted.
            _log.exception("%s sent what cannot be read; it is started again", self._command[0])
            self._kill(signal.SIGKILL)
        finally:
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(UpstreamFailed(f"{self._command[0]} ended"))

    def _hear(self, line: bytes) -> None:
        try:
            message = msgspec.json.decode(line)
        except msgspec.DecodeError:
            return  # servers print; what is not JSON is not for us
        if not isinstance(message, dict):
            return
        if "method" not in message:
            rpc_id = message.get("id")
            future = self._waiting.get(rpc_id) if isinstance(rpc_id, int) else None
            if future is not None and not future.done():
                future.set_result(message)
        elif message["method"] == "notifications/progress":
            self._hear_progress(message)
        elif "id" in message:
            refusal = mcp.error(message["id"], -32601, "the node offers nothing to servers")
            stdin = self._process.stdin if self._process is not None else None
            if stdin is not None and stdin.transport.get_write_buffer_size() < MAX_UNREAD_BYTES:
                stdin.write(refusal + b"\n")

    def _hear_progress(self, message: JsonObject) -> None:
        """To the one caller whose token ours stands for."""
        params = message.get("params")
        if not isinstance(params, dict):
            return
        listening = self._progress.get(str(params.get("progressToken")))
        if listening is not None and listening.heard.qsize() < MAX_PROGRESS:
            told: JsonObject = {**message, "params": {**params, "progressToken": listening.token}}
            listening.heard.put_nowait(msgspec.json.encode(told))

    def _kill(self, how: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, how)

    async def close(self) -> None:
        """End the child and everything that it started."""
        if self._process is None:
            return
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._kill(signal.SIGTERM)
        try:
            async with asyncio.timeout(KILL_AFTER_S):
                await self._process.wait()
        except TimeoutError:
            self._kill(signal.SIGKILL)
            await self._process.wait()
        if self._reader is not None:
            self._reader.cancel()  # something that it started may hold its output open still
            await asyncio.wait([self._reader])


def _for_session(params: bytes, own_token: str) -> tuple[bytes, str | int | None]:
    """*params* without the stateless envelope, and the caller's progress token, in whose place *own_token* goes."""
    parts = msgspec.json.decode(params, type=dict[str, msgspec.Raw])
    if "_meta" not in parts:
        return params, None
    meta = msgspec.json.decode(parts["_meta"], type=dict[str, Any])
    kept = {key: value for key, value in meta.items() if key not in _STATELESS_ENVELOPE}
    token = kept.get("progressToken")
    if "progressToken" in kept:
        kept["progressToken"] = own_token
    parts["_meta"] = msgspec.Raw(msgspec.json.encode(kept))
    return msgspec.json.encode(parts), token if isinstance(token, str | int) else None


def _answer(message: mcp.Message, response: JsonObject) -> bytes:
    """The child's response under the caller's id, in the shape of the caller's era."""
    result = response.get("result")
    if message.modern and isinstance(result, dict):
        defaults: JsonObject = {"resultType": "complete"}
        if message.method.endswith("/list") or message.method == "resources/read":
            defaults |= {"ttlMs": 0, "cacheScope": "private"}
        response = {**response, "result": {**defaults, **result}}
    return jcs({**response, "id": message.rpc_id})
