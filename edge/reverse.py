"""HTTP turned round: whoever cannot be reached connects, and is then asked on its own connection.

The one that connects sends a signed request; after the answer's head the roles change: whoever accepted sends requests
on this connection and the other answers, with the same servers, clients and rules as everywhere else. There is no
``Upgrade`` in it, which nobody here accepts; so nothing that reads HTTP may stand between the two.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Mapping
from ssl import SSLContext
from typing import Any, Final

import aiohttp
from aiohttp.client_proto import ResponseHandler
from yarl import URL

from edge.client import Broken, Client, Unreachable
from edge.http import Incoming, Response, Server
from trust.reasons import Reason, Unverifiable

HOST: Final = ".outbound"
"""Behind the name of whoever connected: the host under which it is asked."""
WAIT_S: Final = 2.0
"""How long a request waits for a connection, as long as others wait to be accepted."""
CONNECT_S: Final = 5.0
MAX_WAITING: Final = 64
"""Connections of one peer that wait for work."""
_MAX_HEAD: Final = 16_384
_TURNED: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/licet-work\r\nConnection: close\r\n\r\n"


class _Idle(asyncio.Protocol):
    """A connection that has not carried anything yet. Whoever is to be asked says nothing before."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.over = asyncio.Event()

    def data_received(self, _data: bytes) -> None:
        self._transport.close()

    def connection_lost(self, _exc: Exception | None) -> None:
        self.over.set()

    def asked(self, name: str) -> _Asked:
        """The same connection, to send requests on."""
        handler = _Asked(asyncio.get_running_loop())
        handler.name, handler.over = name, self.over
        self._transport.set_protocol(handler)
        handler.connection_made(self._transport)
        return handler


class _Asked(ResponseHandler):
    """A connection of *name* that carries requests, one after the other."""

    name: str
    over: asyncio.Event

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self.over.set()


_Waiting = _Idle | _Asked


class Accepted:
    """Connections that were accepted, by the name of who connected; and the client that sends requests on them."""

    def __init__(self) -> None:
        self._waiting: defaultdict[str, asyncio.LifoQueue[_Waiting]] = defaultdict(asyncio.LifoQueue)
        self._open: set[asyncio.Transport] = set()
        self._busy: Counter[str] = Counter()
        """Connections that are open, by who made them."""
        self.client = Client(total_timeout_s=None, connector=_Connector(self._waiting))

    async def accept(self, name: str, incoming: Incoming) -> Response:
        """Turn the connection of *incoming* round; returns when it is over."""
        if _alive(self._waiting[name]) >= MAX_WAITING:
            raise Unverifiable(Reason.OVERLOADED, f"{MAX_WAITING} connections of {name} wait for work already", 5)
        transport, served = incoming.raw.transport, incoming.raw.protocol
        if not isinstance(transport, asyncio.Transport):
            raise Unverifiable(Reason.MALFORMED_REQUEST, "the connection is over")
        idle = _Idle(transport)
        transport.set_protocol(idle)
        transport.write(_TURNED)
        self._open.add(transport)
        self._busy[name] += 1
        self._waiting[name].put_nowait(idle)
        try:
            await idle.over.wait()
        finally:
            self._busy[name] -= 1
            self._open.discard(transport)
            transport.close()
            served.connection_lost(None)
        return Response()

    def has(self, name: str) -> bool:
        """Whether *name* is connected here."""
        return self._busy[name] > 0

    async def close(self) -> None:
        for transport in list(self._open):
            transport.close()
        await self.client.close()


def _alive(waiting: asyncio.LifoQueue[_Waiting]) -> int:
    """How many still wait; those that are over are forgotten."""
    found = [waiting.get_nowait() for _ in range(waiting.qsize())]
    for one in reversed(found):
        if not one.over.is_set():
            waiting.put_nowait(one)
    return waiting.qsize()


class _Connector(aiohttp.BaseConnector):
    """Takes a connection that was accepted where others make one, and puts it back where the next one takes it."""

    def __init__(self, waiting: defaultdict[str, asyncio.LifoQueue[_Waiting]]) -> None:
        super().__init__(limit=0)
        self._waiting = waiting

    async def _create_connection(self, req: Any, traces: Any, timeout: Any) -> ResponseHandler:
        name = str(req.url.host).removesuffix(HOST)
        try:
            async with asyncio.timeout(WAIT_S):
                while True:
                    waiting = await self._waiting[name].get()
                    if not waiting.over.is_set():
                        return waiting.asked(name) if isinstance(waiting, _Idle) else waiting
        except TimeoutError:
            nobody = ConnectionRefusedError(f"no connection of {name} waits for work")
            raise aiohttp.ClientConnectorError(req.connection_key, nobody) from None

    def _release(self, key: Any, protocol: ResponseHandler, *, should_close: bool = False) -> None:
        if should_close or protocol.should_close or not isinstance(protocol, _Asked):
            super()._release(key, protocol, should_close=True)
            return
        self._release_acquired(key, protocol)
        self._waiting[protocol.name].put_nowait(protocol)


class _Opening(asyncio.Protocol):
    """Sends a request without a body and hands over the connection when the answer says so."""

    def __init__(self, head: bytes, server: Server, lost: asyncio.Event) -> None:
        self._head = head
        self._server = server
        self._lost = lost
        self._heard = b""
        self.turned: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.write(self._head)

    def data_received(self, data: bytes) -> None:
        self._heard += data
        head, end, rest = self._heard.partition(b"\r\n\r\n")
        if not end and len(self._heard) < _MAX_HEAD:
            return
        if not _TURNED.startswith(head) or self._transport is None:
            self._fail(Broken(f"no connection for work: {(rest or head).decode('utf-8', 'replace')[:300]}"))
            return
        handler = _Served(self._server(), self._lost)
        self._transport.set_protocol(handler)
        handler.connection_made(self._transport)
        self.turned.set_result(None)
        if rest:
            handler.data_received(rest)

    def connection_lost(self, _exc: Exception | None) -> None:
        self._fail(Broken("the connection broke while it was opened"))
        self._lost.set()

    def _fail(self, why: Broken) -> None:
        if not self.turned.done():
            self.turned.set_exception(why)
        if self._transport is not None:
            self._transport.close()


class _Served(asyncio.Protocol):
    """The server's side of a connection that was turned round; tells when it is over."""

    def __init__(self, handler: asyncio.Protocol, lost: asyncio.Event) -> None:
        self._handler = handler
        self._lost = lost

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._handler.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self._handler.data_received(data)

    def eof_received(self) -> bool | None:
        return self._handler.eof_received()

    def pause_writing(self) -> None:
        self._handler.pause_writing()

    def resume_writing(self) -> None:
        self._handler.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._handler.connection_lost(exc)
        self._lost.set()


async def offer(
    url: str, target: str, headers: Mapping[str, str], server: Server, tls: SSLContext | None
) -> asyncio.Event:
    """Connect to *url* and let *server* answer what comes from there; the event is set when that is over. *headers*
    sign the ``POST`` of *target*. Raises :class:`Unreachable` or :class:`Broken`."""
    where, secure = URL(url), url.startswith("https")
    given = {**headers, "Host": url.partition("://")[2]}
    lines = [f"POST {target} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items()), "Content-Length: 0"]
    head, lost = "\r\n".join([*lines, "", ""]).encode("latin-1"), asyncio.Event()
    try:
        async with asyncio.timeout(CONNECT_S):
            _, opening = await asyncio.get_running_loop().create_connection(
                lambda: _Opening(head, server, lost),
                where.host or "",
                where.port or (443 if secure else 80),
                ssl=tls,
            )
    except (OSError, TimeoutError) as bad:
        raise Unreachable(str(bad) or type(bad).__name__) from None
    try:
        async with asyncio.timeout(CONNECT_S):
            await opening.turned
    except TimeoutError:
        raise Broken("the gateway did not answer") from None
    return lost
