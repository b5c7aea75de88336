"""A ledger that can be awaited: what one turn of the event loop appends is one commit.

On a device that answers within a millisecond the loop itself writes: handing a batch to a thread and back costs
more than the write, because both want the interpreter lock. On a slower device a thread writes, so that the loop
goes on with everything that does not wait for the ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from edge.clock import SystemClock, new_id
from trust.identity.keys import SecretKey
from trust.ledger import entries
from trust.ledger.disk import Disk
from trust.ledger.entries import AnyEntry, Line, Stamp
from trust.ledger.log import Ledger
from trust.ledger.segments import SEGMENT_BYTES
from trust.ledger.writer import LedgerUnavailable

SLOW_WRITE_S: Final = 0.002
SMOOTHING: Final = 0.2
LATER_S: Final = 0.005
"""How long an entry that nobody waits for may wait for one that somebody does."""
MAX_TURNS: Final = 8


class DurableLedger:
    """Appends from one event loop."""

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
        self._loop_thread = threading.get_ident()
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
            own_thread=False,
        )
        self._scheduled = False
        self._in_thread: asyncio.Future[None] | None = None
        self._write_s = 0.0
        self._later: asyncio.TimerHandle | None = None

    @property
    def origin(self) -> str:
        return self._ledger.origin

    @property
    def root(self) -> Path:
        return self._ledger.root

    @property
    def vkey(self) -> str:
        """The verifier key of this ledger."""
        return (self.root / "vkey").read_text().strip()

    @property
    def size(self) -> int:
        return self._ledger.size

    @property
    def fault(self) -> LedgerUnavailable | None:
        return self._ledger.fault

    async def append(self, entry: AnyEntry, turn: int = 0) -> Stamp:
        """The stamp of *entry*, once it is durable; else :class:`LedgerUnavailable`. *turn*: its place among what
        several gateways changed, if it has one."""
        future: asyncio.Future[None] = self._loop.create_future()
        stamp = self._ledger.append(entry, future, turn)
        self._schedule()
        await future
        return stamp

    def append_later(self, entry: AnyEntry) -> Stamp:
        """The stamp that *entry* will have; for what follows an effect and need not be waited for."""
        stamp = self._ledger.append(entry)
        if not self._scheduled and self._later is None:
            self._later = self._loop.call_later(LATER_S, self._schedule)
        return stamp

    def _schedule(self) -> None:
        """Commit soon, with everything that is appended until then."""
        if self._later is not None:
            self._later.cancel()
            self._later = None
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._gather, self._ledger.size, MAX_TURNS)

    def _gather(self, size: int, turns: int) -> None:
        """While each turn of the loop brings more entries, let them join: one flush serves them all."""
        if turns and self._ledger.size > size:
            self._loop.call_soon(self._gather, self._ledger.size, turns - 1)
        else:
            self._commit()

    def _commit(self) -> None:
        if self._in_thread is not None:
            return  # when the thread is done, it commits again
        self._scheduled = False
        if self._write_s > SLOW_WRITE_S:
            self._in_thread = self._loop.run_in_executor(None, self._write)
            self._in_thread.add_done_callback(self._after_thread)
        else:
            self._write()

    def _after_thread(self, _done: asyncio.Future[None]) -> None:
        self._in_thread = None
        if self._scheduled:
            self._commit()

    def _write(self) -> None:
        begin = time.perf_counter()
        self._ledger.commit()
        self._write_s += (time.perf_counter() - begin - self._write_s) * SMOOTHING

    def lines(self, start: int = 0) -> Iterator[tuple[int, Line]]:
        """Every entry from index *start* on, those included that nobody has waited for yet."""
        self._ledger.commit()
        return self._ledger.lines(start)

    def since(self, wall_us: int) -> Iterator[tuple[int, Line]]:
        """Every entry after *wall_us* (Unix microseconds), and some from before."""
        self._ledger.commit()
        return self._ledger.since(wall_us)

    async def prune(self, first: int) -> None:
        """Forget the entries below index *first*, which somebody else keeps, but for their hashes."""
        await asyncio.to_thread(self._ledger.prune, first)

    async def end(self) -> None:
        """Say that this is all, then :meth:`close`. A ledger that can say nothing more is only closed."""
        with contextlib.suppress(LedgerUnavailable):
            await self.append(entries.End())
        await self.close()

    async def close(self) -> None:
        """Write and seal what is there."""
        if self._later is not None:
            self._later.cancel()
        if self._in_thread is not None:
            await asyncio.wait([self._in_thread])
        await asyncio.to_thread(self._ledger.close)

    def _on_durable(self, tokens: Sequence[object], error: LedgerUnavailable | None) -> None:
        waiting = [token for token in tokens if isinstance(token, asyncio.Future)]
        if not waiting or self._loop.is_closed():
            return
        if threading.get_ident() == self._loop_thread:
            _resolve(waiting, error)
        else:
            self._loop.call_soon_threadsafe(_resolve, waiting, error)


def _resolve(futures: list[asyncio.Future[None]], error: LedgerUnavailable | None) -> None:
    for future in futures:
        if future.done():
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
