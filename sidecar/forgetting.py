"""This process's own log forgets what is old and with the gateway, so that a disk of some size is enough for ever."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from edge.blobs import Blobs
from edge.clock import SystemClock
from edge.durable import DurableLedger
from sidecar.shipping import Shipper
from trust.ledger import entries
from trust.ledger.pruning import first_kept, first_to_keep, require_hashes

EVERY_S: Final = 3600.0
FIRST_AFTER_S: Final = 60.0
WITNESSED_WITHIN_S: Final = 60.0
DAY_US: Final = 86_400 * 1_000_000
_log = logging.getLogger("licet")


async def _nothing() -> None:
    """For a process that needs nothing of what it forgets."""


class Forgetting:
    """Of *ledger*, as far as *shipper* knows that the gateway has it. *keep_days* 0: nothing is forgotten. *keep*: say
    once more what must not be forgotten. *blobs*: what is kept beside the log."""

    def __init__(
        self,
        ledger: DurableLedger,
        shipper: Shipper,
        clock: SystemClock,
        keep_days: int,
        keep: Callable[[], Awaitable[None]] = _nothing,
        blobs: Blobs | None = None,
    ) -> None:
        self._ledger = ledger
        self._shipper = shipper
        self._clock = clock
        self._keep_days = keep_days
        self._keep = keep
        self._blobs = blobs

    async def work(self) -> None:
        """Once an hour, for ever."""
        wait = FIRST_AFTER_S
        while self._keep_days:
            await asyncio.sleep(wait)
            wait = EVERY_S
            try:
                await self.forget(self._clock.wall_us() - self._keep_days * DAY_US)
            except Exception:
                _log.exception("old entries could not be forgotten; it is tried again in an hour")

    async def forget(self, before_us: int) -> int:
        """Forget what is from before then (Unix microseconds) and with the gateway; the index of the first entry that
        stays. It is recorded first, so that a hole is never without its reason."""
        root = self._ledger.root
        if self._shipper.unwitnessed_s() > WITNESSED_WITHIN_S:
            return first_kept(root)  # a gateway that is away may come back with less
        first = await asyncio.to_thread(first_to_keep, root, self._shipper.cosigned, before_us)
        if first > first_kept(root):
            await asyncio.to_thread(require_hashes, root, first)
            await self._keep()
            await self._ledger.append(entries.Pruned(self._ledger.origin, first, before_us, "keep_days"))
            await self._ledger.prune(first)
        if self._blobs is not None:
            await self._blobs.forget(before_us)
        return first
