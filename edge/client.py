"""HTTP clients, built once per process: a new client for each call costs milliseconds and is the classic mistake.

The one door to aiohttp's client. Its path normalisation is off (it would send ``/admin`` for
``/public/%2e%2e/admin``), redirects are never followed, and bodies are passed on as they come.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import lru_cache
from pathlib import Path
from ssl import SSLContext
from typing import Any, Final

import aiohttp
import msgspec
from yarl import URL

CONNECT_TIMEOUT_S: Final = 2.0
MAX_CONNECTIONS: Final = 4096
SILENT_S: Final = 8
"""After this a connection breaks on which the other side's machine acknowledges nothing."""
_WATCH: Final = {"TCP_KEEPIDLE": 2, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": SILENT_S * 1000}
POOL_TIMEOUT_S: Final = 10.0
"""How long a request waits for one of them."""
MAX_REPLY_BYTES: Final = 32 << 20
"""What is held in memory of one answer; streams are passed on as they come and have no limit."""


class Unreachable(Exception):
    """No connection was made, so nothing was sent and nothing can have happened."""


class Broken(Exception):
    """The connection broke after something was sent; what happened is not known."""


class Reply(msgspec.Struct, frozen=True):
    """Status and headers of an answer, whose body is read from :meth:`chunks` or :meth:`read`."""

    response: aiohttp.ClientResponse

    @property
    def status(self) -> int:
        return self.response.status

    def header(self, name: str) -> str:
        """The value of *name*, or an empty string."""
        return self.response.headers.get(name, "")

    @property
    def headers(self) -> Mapping[str, str]:
        return self.response.headers

    async def read(self, limit: int = MAX_REPLY_BYTES) -> bytes:
        """The complete body; :class:`Broken` if it has more than *limit* bytes."""
        try:
            declared = self.response.content_length
            if declared is None:
                return await self._read_counting(limit)
            if declared <= limit:
                return await self.response.read()
            raise _too_large(self.response, limit)
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as bad:
            raise Broken(str(bad)) from None

    async def _read_counting(self, limit: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        async for part in self.response.content.iter_any():
            size += len(part)
            if size > limit:
                raise _too_large(self.response, limit)
            parts.append(part)
        return b"".join(parts)

    def close(self) -> None:
        """Give the connection back, or close it if the answer was not read to its end."""
        if not self.response.content.at_eof():
            self.response.close()
        self.response.release()

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives, never buffered."""
        try:
            async for chunk in self.response.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as bad:
            raise Broken(str(bad)) from None


def _too_large(response: aiohttp.ClientResponse, limit: int) -> Broken:
    response.close()
    return Broken(f"the answer has more than {limit} bytes")


def _watched(about: tuple[Any, ...]) -> socket.socket:
    """A socket whose connection breaks when the other side's machine falls silent: a wire that was cut says nothing."""
    family, kind, protocol, *_ = about
    made = socket.socket(family, kind, protocol)
    made.setblocking(False)
    if family in (socket.AF_INET, socket.AF_INET6):
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _WATCH.items():
            if hasattr(socket, option):
                made.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return made


def over_socket(path: Path) -> aiohttp.BaseConnector:
    """Connections to whoever listens at *path* on this machine, whatever the URL says."""
    return aiohttp.UnixConnector(str(path), limit=MAX_CONNECTIONS)


@lru_cache(maxsize=1024)
def _url(text: str) -> URL:
    return URL(text, encoded=True)


class Client:
    """Keeps connections; safe to use from any task of one loop."""

    def __init__(
        self,
        *,
        total_timeout_s: float | None = 300.0,
        tls: SSLContext | None = None,
        connector: aiohttp.BaseConnector | None = None,
    ) -> None:
        """*tls*: for https; without it nobody is trusted there. *connector*: where connections come from, if they are
        not made."""
        self._timeout = aiohttp.ClientTimeout(
            total=total_timeout_s, connect=POOL_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S
        )
        self._session = aiohttp.ClientSession(
            connector=connector
            or aiohttp.TCPConnector(
                limit=MAX_CONNECTIONS,
                keepalive_timeout=60.0,
                ssl=tls if tls is not None else True,
                socket_factory=_watched,
            ),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Accept-Encoding", "Accept", "Content-Type"),
        )

    async def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None = None,
        *,
        timeout_s: float | None = None,
    ) -> Reply:
        """One request; the caller reads or closes the reply. Raises :class:`Unreachable` or :class:`Broken`."""
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S) if timeout_s else self._timeout
        try:
            return Reply(
                await self._session.request(
                    method, _url(url), headers=headers, data=body, allow_redirects=False, timeout=timeout
                )
            )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL) as bad:
            raise Unreachable(str(bad)) from None
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as bad:
            raise Broken(str(bad) or type(bad).__name__) from None

    @asynccontextmanager
    async def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None = None,
        *,
        timeout_s: float | None = None,
    ) -> AsyncIterator[Reply]:
        """Like :meth:`request`, closed at the end."""
        reply = await self.request(method, url, headers, body, timeout_s=timeout_s)
        try:
            yield reply
        finally:
            reply.close()

    async def close(self) -> None:
        await self._session.close()
        await asyncio.sleep(0)
