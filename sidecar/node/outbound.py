"""A node that cannot be reached: it keeps connections to the gateway open and gets its work on them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
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
    """Of one node. *slots*: how many actions it may run at once."""

    def __init__(self, identity: Identity, server: Server, tls: SSLContext | None, slots: Callable[[], int]) -> None:
        self._identity = identity
        self._server = server
        self._tls = tls
        self._slots = slots
        self._open = 0
        self._wanted = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._busy = 0

    @contextmanager
    def working(self) -> Iterator[None]:
        """One connection is busy."""
        self._busy += 1
        self._wanted.set()
        try:
            yield
        finally:
            self._busy -= 1

    async def work(self) -> None:
        """Keep as many connections as are in use, and some spare ones."""
        backoff = Backoff()
        while True:
            self._wanted.clear()
            try:
                while self._open < min(self._busy, self._slots()) + SPARE:
                    await self._connect()
                backoff.reset()
                await self._wanted.wait()
            except (Unreachable, Broken, Unverifiable) as bad:
                _log.warning("no connection for work, trying again: %s", bad)
                await asyncio.sleep(backoff.next())

    async def _connect(self) -> None:
        headers = self._identity.signed("POST", _TARGET)
        lost = await reverse.offer(self._identity.gateway_url, _TARGET, headers, self._server, self._tls)
        self._open += 1
        task = asyncio.create_task(self._until(lost))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _until(self, lost: asyncio.Event) -> None:
        await lost.wait()
        self._open -= 1
        self._wanted.set()
