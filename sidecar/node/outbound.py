"""A node that cannot be reached: it keeps connections to the gateway open and gets its work on them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from ssl import SSLContext
from typing import Final

from edge import reverse
from edge.backoff import Backoff
from edge.client import Broken, Unreachable
from edge.http import Server
from sidecar.identity import Identity
from trust.reasons import Unverifiable

SPARE: Final = 4
"""Connections beyond those that carry work."""
_TARGET: Final = "/v1/nodes/work"
_log = logging.getLogger("licet.node")


class Outbound:
    """Of one node. *slots*: how many actions it may run at once. Each address of the gateway gets connections: work may
    come from any of them."""

    def __init__(self, identity: Identity, server: Server, tls: SSLContext | None, slots: Callable[[], int]) -> None:
        self._identity = identity
        self._server = server
        self._tls = tls
        self._slots = slots
        self._busy = 0
        self._lines = [_Line(url, self._connect) for url in identity.gateways.urls]

    @contextmanager
    def working(self) -> Iterator[None]:
        """One connection is busy."""
        self._busy += 1
        for line in self._lines:
            line.wanted.set()
        try:
            yield
        finally:
            self._busy -= 1

    async def work(self) -> None:
        """Keep as many connections as are in use, and some spare ones."""
        await asyncio.gather(*(line.keep(lambda: min(self._busy, self._slots()) + SPARE) for line in self._lines))

    async def _connect(self, url: str) -> asyncio.Event:
        headers = self._identity.signed(url, "POST", _TARGET)
        return await reverse.offer(url, _TARGET, headers, self._server, self._tls)


class _Line:
    """The connections to one address."""

    def __init__(self, url: str, connect: Callable[[str], Awaitable[asyncio.Event]]) -> None:
        self.wanted = asyncio.Event()
        self._url = url
        self._connect = connect
        self._open = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def keep(self, enough: Callable[[], int]) -> None:
        """So many connections, for ever."""
        backoff = Backoff()
        while True:
            self.wanted.clear()
            try:
                while self._open < enough():
                    self._opened(await self._connect(self._url))
                backoff.reset()
                await self.wanted.wait()
            except (Unreachable, Broken, Unverifiable) as bad:
                _log.warning("no connection for work to %s, trying again: %s", self._url, bad)
                await asyncio.sleep(backoff.next())

    def _opened(self, lost: asyncio.Event) -> None:
        self._open += 1
        task = asyncio.create_task(self._until(lost))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _until(self, lost: asyncio.Event) -> None:
        await lost.wait()
        self._open -= 1
        self.wanted.set()
