"""Serving HTTP so that every byte that arrives is judged: bounded, unambiguous, recorded when refused.

The one door to aiohttp's server. A handler gets an :class:`Incoming` that has passed the rules of
:mod:`trust.http`; what does not pass, and what aiohttp's own parser refuses, goes to ``on_refusal``, which
records it before the caller hears of it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from ssl import SSLContext
from typing import Any, Final

import msgspec
from aiohttp import http_parser, web
from aiohttp.web_protocol import RequestHandler

from edge.client import Broken
from trust import http as rules
from trust.reasons import TABLE, Reason, Unverifiable, visible
from trust.verdict import Refusal

READ_TIMEOUT_S: Final = 30.0
"""A client that cannot send its body in this time is holding a place that others need."""

DISCONNECT_CHECK_S: Final = 1.0
"""How often an idle stream looks whether its reader is still there."""

FOR_ANY_NAME: Final = frozenset({"/livez", "/readyz", "/metrics"})
"""Asked by machines that know an address only, and tell no secrets."""

StreamResponse = web.StreamResponse
Response = web.Response


class Incoming(msgspec.Struct, frozen=True):
    """One request, read completely. Header names are lowercase."""

    method: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    authority: str
    target: str
    raw: web.BaseRequest

    def header(self, name: str) -> str | None:
        """The value of a header that stands at most once (the rules have seen to that)."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    @property
    def bearer(self) -> str:
        """The token of ``Authorization: Bearer …``, or an empty string."""
        scheme, _, token = (self.header("authorization") or "").partition(" ")
        return token.strip() if scheme.lower() == "bearer" else ""


Handler = Callable[[Incoming], Awaitable[web.StreamResponse]]
OnRefusal = Callable[[Refusal, str], Awaitable[web.StreamResponse]]
"""(refusal, who called) → the answer, once the refusal is recorded."""


@dataclass(frozen=True, slots=True)
class Border:
    """What one server accepts. ``public_url``: where browsers reach it if that is another address, behind a proxy whose
    forwarding headers are left out: who could write them is not known, so nothing is believed of them."""

    hosts: Collection[str]
    internal_headers: frozenset[str] = frozenset()
    max_body: int = rules.MAX_BODY_BYTES
    max_header: int = 8190
    scheme: str = "http"
    public_url: str = ""

    @property
    def origins(self) -> set[str]:
        """Whose pages may call."""
        own = {f"{self.scheme}://{host}" for host in self.hosts if host != self.public_url.partition("://")[2]}
        return own | {self.public_url} if self.public_url else own


def authorities(port: int, *names: str) -> set[str]:
    """How whoever asks this machine, or it by one of *names*, calls what listens at *port*; a name may come with a port
    of its own. An address cannot be pointed elsewhere, as names are by DNS rebinding."""
    return {_authority(name, port) for name in ("localhost", "127.0.0.1", "::1", *names)}


def _authority(name: str, port: int) -> str:
    if name.count(":") > 1:
        return f"[{name}]:{port}"
    return name if ":" in name else f"{name}:{port}"


def require_c_parser() -> None:
    """aiohttp's pure Python parser is laxer; refuse to run on it."""
    if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
        raise SystemExit("aiohttp runs on its Python parser; install it with its C extensions")


async def read(request: web.BaseRequest, border: Border) -> Incoming:
    """The complete request, or :class:`Unverifiable`."""
    headers = _headers(request.raw_headers, border.internal_headers, bool(border.public_url))
    target = request.raw_path
    path, query = rules.split_target(target)
    if request.method == "GET" and path in FOR_ANY_NAME:
        authority = request.headers.get("Host") or ""
    else:
        authority = rules.check_host(request.headers.get("Host"), border.hosts)
    origin = request.headers.get("Origin")
    if origin is not None:
        rules.check_origin(origin, border.origins)
    body = await _read_body(request, border.max_body)
    return Incoming(request.method, path, query, headers, body, authority, target, request)


@lru_cache(maxsize=32)
def _headers(
    raw: tuple[tuple[bytes, bytes], ...], internal: frozenset[str], behind_proxy: bool
) -> tuple[tuple[str, str], ...]:
    """*raw* as text, if the rules accept it. An agent sends the same headers with each of its calls."""
    headers = tuple((name.decode("ascii", "replace").lower(), value.decode("latin-1")) for name, value in raw)
    if behind_proxy:
        headers = tuple(one for one in headers if not one[0].startswith(rules.FORWARDING))
    rules.check_headers(headers, internal)
    return headers


async def _read_body(request: web.BaseRequest, limit: int) -> bytes:
    if not request.body_exists:
        return b""
    declared = request.content_length
    if declared is not None and declared > limit:
        raise Unverifiable(Reason.BODY_TOO_LARGE, f"{declared} bytes; the limit is {limit}")
    if request.content.is_eof():  # it came with the headers, as most do
        body = request.content.read_nowait(-1)
        if len(body) > limit:
            raise Unverifiable(Reason.BODY_TOO_LARGE, f"{len(body)} bytes; the limit is {limit}")
        return body
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            async for chunk in request.content.iter_any():
                size += len(chunk)
                if size > limit:
                    raise Unverifiable(Reason.BODY_TOO_LARGE, f"more than {limit} bytes")
                chunks.append(chunk)
    except TimeoutError:
        raise Unverifiable(Reason.MALFORMED_REQUEST, f"the body did not arrive within {READ_TIMEOUT_S:.0f} s") from None
    except web.RequestPayloadError as bad:
        raise Unverifiable(Reason.MALFORMED_REQUEST, f"the body is broken: {visible(str(bad))}") from None
    return b"".join(chunks)


class _Protocol(RequestHandler):
    """aiohttp's connection, with its own parse errors recorded like every other refusal."""

    __slots__ = ()

    def _make_error_handler(self, err_info: Any) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
        server: Any = self._manager

        async def refuse(request: web.BaseRequest) -> web.StreamResponse:
            said = str(err_info.message or "bad HTTP").splitlines()[0]
            detail = visible(said.partition(": b")[0])  # what it read stands behind that, whoever's it is
            refusal = Refusal(1, Reason.MALFORMED_REQUEST, detail)
            response: web.StreamResponse = await server.on_refusal(refusal, caller_of(request))
            response.force_close()
            return response

        return refuse


class Server(web.Server):
    """An aiohttp low-level server with our border in front of *handler*."""

    def __init__(self, handler: Handler, on_refusal: OnRefusal, border: Border) -> None:
        self.on_refusal = on_refusal
        self._border = border
        self._inner = handler
        self.leaving = False
        super().__init__(self._serve, handler_cancellation=False)

    def __call__(self) -> RequestHandler:
        return _Protocol(
            self,
            loop=self._loop,
            auto_decompress=False,
            access_log=None,  # type: ignore[arg-type]
            lingering_time=1.0,
            max_field_size=self._border.max_header,
        )

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            incoming = await read(request, self._border)
        except Unverifiable as bad:
            response = await self.on_refusal(Refusal.of(1, bad), caller_of(request))
            response.force_close()
            return response
        response = await self._inner(incoming)
        if self.leaving and not response.prepared:
            response.force_close()
        return response


def caller_of(request: web.BaseRequest) -> str:
    """Where a request came from, for the record of one that nobody could identify."""
    path, mark, _ = request.raw_path.partition("?")  # a query may hold what must not be kept, such as a sign-in code
    return visible(f"{request.remote or 'unknown'} {request.method} {path}", 160) + (mark and "?…")


def problem(refusal: Refusal, decision_id: str = "", extra: dict[str, Any] | None = None) -> web.Response:
    """RFC 9457 problem details for *refusal*."""
    row = TABLE[refusal.reason]
    body: dict[str, Any] = {
        "type": f"urn:licet:reason:{refusal.reason}",
        "title": row.sentence,
        "status": row.status,
        "detail": refusal.detail,
        "class": str(row.no_class),
        "retryable": row.retryable,
        "reason": str(refusal.reason),
        "policy_ids": list(refusal.policies),
        "step": refusal.step,
        "decision_id": decision_id,
        **(extra or {}),
    }
    response = web.Response(
        status=row.status,
        body=msgspec.json.encode(body),
        headers={"Content-Type": "application/problem+json", "Cache-Control": "no-store"},
    )
    if refusal.retry_after_s is not None:
        response.headers["Retry-After"] = str(refusal.retry_after_s)
    elif row.status == 503:
        response.headers["Retry-After"] = "1"
    return response


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """*value* as JSON."""
    return web.Response(
        status=status,
        body=msgspec.json.encode(value),
        headers={"Content-Type": "application/json", "Cache-Control": "no-store", **(headers or {})},
    )


async def watched(chunks: AsyncIterator[bytes], tail: bytearray, most: int) -> AsyncIterator[bytes]:
    """*chunks* as they are; their end, at most *most* bytes, is kept in *tail*, to see how it ended."""
    async for chunk in chunks:
        tail += chunk
        del tail[:-most]
        yield chunk


async def relay(
    incoming: Incoming,
    chunks: AsyncIterator[bytes],
    status: int,
    headers: dict[str, str],
    stopped: Callable[[], object] | None = None,
) -> tuple[web.StreamResponse, bool]:
    """Pass *chunks* on as they come; the response, and whether the stream came to its own end.

    When the caller goes away, the source breaks, or *stopped* (asked at least once a second) says so, the stream
    is cut: headers are gone already, so closing the connection is the only honest end.
    """
    response = web.StreamResponse(status=status, headers=headers)
    pending: asyncio.Task[bytes] | None = None
    try:
        await response.prepare(incoming.raw)
        while True:
            if pending is None:
                pending = asyncio.ensure_future(anext(chunks))
            done, _ = await asyncio.wait([pending], timeout=DISCONNECT_CHECK_S)
            if is_gone(incoming):
                return response, False
            if stopped is not None and stopped():
                return response, False
            if not done:
                continue
            chunk, pending = pending.result(), None
            await response.write(chunk)
    except StopAsyncIteration:
        await response.write_eof()
        return response, True
    except (ConnectionError, Broken):
        return response, False
    finally:
        if pending is not None:
            pending.cancel()
            await asyncio.wait([pending])
        closing = getattr(chunks, "aclose", None)
        if closing is not None:
            await closing()
        if not response.prepared or not response._eof_sent:
            cut(incoming)


def is_gone(incoming: Incoming) -> bool:
    """Whether the caller hung up."""
    return incoming.raw.transport is None or incoming.raw.transport.is_closing()


def cut(incoming: Incoming) -> None:
    """Close the connection under a response that cannot be completed."""
    if incoming.raw.transport is not None:
        incoming.raw.transport.close()


def require_free(host: str, port: int) -> None:
    """Nothing, if a listener could be opened there now, or :class:`OSError`: asked before what is done only once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as bad:
            raise OSError(bad.errno, f"{host}:{port}: {bad.strerror}; is something else listening there?") from None


class Listener:
    """One bound server; :meth:`close` cuts what is still open after *grace* seconds."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._runner = web.ServerRunner(server, shutdown_timeout=0.5)

    async def open(self, host: str, port: int, tls: SSLContext | None = None, *, shared: bool = False) -> int:
        """The port that was bound (for port 0: which); *shared* with other processes."""
        await self._runner.setup()
        site = web.TCPSite(
            self._runner, host, port, backlog=1024, reuse_address=True, reuse_port=shared or None, ssl_context=tls
        )
        await site.start()
        return int(self._runner.addresses[0][1])

    async def open_socket(self, path: Path) -> None:
        """Listen at *path* on this machine."""
        await self._runner.setup()
        await web.UnixSite(self._runner, str(path), backlog=1024).start()

    async def leave(self) -> None:
        """Take no new connection, and end each that there is with its next answer: who asks again asks elsewhere."""
        self._server.leaving = True
        for site in self._runner.sites:
            await site.stop()

    async def close(self) -> None:
        await self._runner.cleanup()
