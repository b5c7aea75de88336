"""A ledger that can be awaited: the writer's thread on one side, the event loop on the other."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

from edge.clock import SystemClock, new_id
from trust.identity.keys import SecretKey
from trust.ledger.disk import Disk
from trust.ledger.entries import AnyEntry, Line, Stamp
from trust.ledger.log import Ledger
from trust.ledger.segments import SEGMENT_BYTES
from trust.ledger.writer import LedgerUnavailable


class DurableLedger:
    """Appends from one event loop; a batch of any size wakes the loop once."""

    def __init__(
        self,
        root: Path,
        *,
        origin: str,
        key: SecretKey,
        clock: SystemClock,
        segment_bytes: int = SEGMENT_BYTES,
        disk: Disk | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.boot = new_id("boot")
        self._ledger = Ledger.open(
            root,
            origin=origin,
            key=key,
            clock=clock,
            boot=self.boot,
            on_durable=self._on_durable,
            disk=disk,
            segment_bytes=segment_bytes,
        )

    @property
    def origin(self) -> str:
        return self._ledger.origin

    @property
    def root(self) -> Path:
        return self._ledger.root

    @property
    def size(self) -> int:
        return self._ledger.size

    @property
    def fault(self) -> LedgerUnavailable | None:
        return self._ledger.fault

    async def append(self, entry: AnyEntry) -> Stamp:
        """The stamp of *entry*, once it is durable; else :class:`LedgerUnavailable`."""
        future: asyncio.Future[None] = self._loop.create_future()
        stamp = self._ledger.append(entry, future)
        await future
        return stamp

    def append_later(self, entry: AnyEntry) -> Stamp:
        """The stamp that *entry* will have; for what follows an effect and need not be waited for."""
        return self._ledger.append(entry)

    def lines(self, start: int = 0) -> Iterator[tuple[int, Line]]:
        return self._ledger.lines(start)

    def close(self) -> None:
        self._ledger.close()

    def _on_durable(self, tokens: Sequence[object], error: LedgerUnavailable | None) -> None:
        waiting = [token for token in tokens if isinstance(token, asyncio.Future)]
        if waiting and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_resolve, waiting, error)


def _resolve(futures: list[asyncio.Future[None]], error: LedgerUnavailable | None) -> None:
    for future in futures:
        if future.done():
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
