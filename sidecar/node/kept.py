"""A server that keeps something between calls: each run of an agent gets a process of its own, while it is in use.

What one run has opened, another never sees; when a run is quiet for long, or too many are open, its process ends and
what it kept is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import msgspec

from sidecar.node.stdio_upstream import StdioUpstream
from sidecar.node.upstream import UpstreamFailed
from trust.reasons import Reason, Unverifiable

IDLE_S: Final = 900.0
MAX_KEPT: Final = 64
"""Processes of one server; the one that was idle longest ends first."""
_log = logging.getLogger("licet.node")


class _Kept(msgspec.Struct):
    """``ready`` is done when the process has shaken hands; ``busy``: calls that run in it."""

    upstream: StdioUpstream
    ready: asyncio.Task[None]
    used: float
    busy: int = 0


class Kept:
    """Of one server. *make* makes a process that is not started yet; *mono* tells monotonic seconds."""

    def __init__(self, name: str, make: Callable[[], StdioUpstream], mono: Callable[[], float]) -> None:
        self._name = name
        self._make = make
        self._mono = mono
        self._by_run: OrderedDict[tuple[str, str], _Kept] = OrderedDict()

    @asynccontextmanager
    async def of(self, agent: str, run: str) -> AsyncIterator[StdioUpstream]:
        """The process of this run of this agent: started now, or the one from before."""
        key = agent, run
        known = self._by_run.get(key)
        if known is not None and known.ready.done() and not known.upstream.alive:
            await self._end(key)
            known = None
        if known is None:
            await self._make_room()
            upstream = self._make()
            known = self._by_run[key] = _Kept(upstream, asyncio.create_task(upstream.start()), self._mono())
        known.busy += 1
        self._by_run.move_to_end(key)
        try:
            await asyncio.shield(known.ready)
            yield known.upstream
        finally:
            known.busy -= 1
            known.used = self._mono()

    async def _make_room(self) -> None:
        while len(self._by_run) >= MAX_KEPT:
            idle = next((key for key, kept in self._by_run.items() if not kept.busy), None)
            if idle is None:
                raise Unverifiable(Reason.OVERLOADED, f"{MAX_KEPT} runs use {self._name} here")
            await self._end(idle)

    async def tidy(self) -> None:
        """End what was idle for too long."""
        now = self._mono()
        for key in [key for key, kept in self._by_run.items() if not kept.busy and now - kept.used > IDLE_S]:
            await self._end(key)

    async def _end(self, key: tuple[str, str]) -> None:
        kept = self._by_run.pop(key)
        kept.ready.cancel()
        with contextlib.suppress(asyncio.CancelledError, UpstreamFailed):
            await kept.ready
        await kept.upstream.close()

    async def close(self) -> None:
        for key in list(self._by_run):
            await self._end(key)
