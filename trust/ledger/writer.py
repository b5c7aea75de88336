"""Group commit: everything that waits is written with one device flush, then all of it is resolved.

Whoever appends gets an index at once and is told later, through ``on_durable``, that the entry is on the device.
Either the writer's own thread commits, or its owner does, by :meth:`Writer.commit`: an event loop that commits
what one of its turns appended saves two hand-overs of the interpreter lock. The first error of any kind poisons
the writer for good: what a failed flush left on the device is unknowable, so it is never retried, and only a
restart, which reads the device, recovers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Final, Protocol

from trust.ledger.entries import MAX_ENTRY_BYTES, Stamp, stamped
from trust.ledger.frames import HEADER, frame
from trust.ledger.segments import Segments

MAX_BATCH_BYTES: Final = 4 << 20
"""One flush of 4 MiB takes a few milliseconds; larger batches would only add latency."""


class LedgerUnavailable(Exception):
    """Nothing can be recorded, so nothing may happen."""


class EntryInvalid(LedgerUnavailable):
    """What was to be recorded would not be read back, so it is not recorded, and what needs it does not happen."""


class EntryTooLarge(ValueError):
    """An entry must fit into a C2SP entry bundle."""


class Clock(Protocol):
    """Where time comes from."""

    def wall_us(self) -> int: ...

    def mono_ns(self) -> int: ...


OnDurable = Callable[[Sequence[object], LedgerUnavailable | None], None]
"""Called with the tokens of one batch when it is durable, or with why it is not; from whoever commits."""


class Writer:
    """Appends to the segments of one ledger."""

    def __init__(
        self,
        segments: Segments,
        *,
        origin: str,
        boot: str,
        clock: Clock,
        next_seq: int,
        on_durable: OnDurable,
        on_written: Callable[[list[bytes]], None],
    ) -> None:
        self._segments = segments
        self._origin = origin
        self._boot = boot
        self._clock = clock
        self._next = next_seq
        self._durable = next_seq
        self._on_durable = on_durable
        self._on_written = on_written
        self._lock = threading.Lock()
        self._committing = threading.Lock()
        self._queue: SimpleQueue[tuple[bytes, object] | None] = SimpleQueue()
        self.poison: LedgerUnavailable | None = None
        self._thread = threading.Thread(target=self._run, name=f"ledger {origin}", daemon=True)

    def start(self) -> None:
        """Commit in a thread of its own; without this the owner calls :meth:`commit`."""
        self._thread.start()

    @property
    def size(self) -> int:
        """Entries appended so far, durable or not."""
        return self._next

    def append(self, entry: bytes, token: object, turn: int = 0) -> Stamp:
        """The stamp of *entry*, whose index holds if it becomes durable; *token* comes back through ``on_durable``."""
        with self._lock:
            if self.poison is not None:
                raise self.poison
            stamp = Stamp(self._origin, self._next, self._boot, self._clock.wall_us(), self._clock.mono_ns(), turn)
            data = stamped(stamp, entry)
            if len(data) > MAX_ENTRY_BYTES:
                raise EntryTooLarge(f"a ledger entry has at most {MAX_ENTRY_BYTES} bytes, this one {len(data)}")
            self._next += 1
            self._queue.put((data, token))
            return stamp

    def fail(self, cause: Exception) -> LedgerUnavailable:
        """Refuse everything from now on."""
        with self._lock:
            if self.poison is None:
                self.poison = LedgerUnavailable(f"{type(cause).__name__}: {cause}")
            return self.poison

    def close(self) -> None:
        """Write what waits, then end."""
        self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join()
        else:
            self.commit()
        self._segments.close()

    def commit(self) -> None:
        """Make durable what waits now; not for a writer with a thread of its own."""
        with self._committing:
            while not self._queue.empty():
                batch, _ = self._take()
                if batch:
                    self._commit(batch)

    def _run(self) -> None:
        open_for_more = True
        while open_for_more:
            batch, open_for_more = self._take()
            if batch:
                self._commit(batch)

    def _take(self) -> tuple[list[tuple[bytes, object]], bool]:
        """Everything that waits, at least one item, up to :data:`MAX_BATCH_BYTES`; False when closing."""
        batch: list[tuple[bytes, object]] = []
        size = 0
        item = self._queue.get()
        while item is not None:
            batch.append(item)
            size += len(item[0])
            if size >= MAX_BATCH_BYTES:
                return batch, True
            try:
                item = self._queue.get_nowait()
            except Empty:
                return batch, True
        return batch, False

    def _commit(self, batch: list[tuple[bytes, object]]) -> None:
        entries = [data for data, _ in batch]
        tokens = [token for _, token in batch]
        try:
            if self.poison is not None:
                raise self.poison
            self._write(entries, self._durable)
        except Exception as cause:
            self._on_durable(tokens, self.fail(cause))
            return
        self._durable += len(entries)
        self._on_durable(tokens, None)
        self._on_written(entries)

    def _write(self, entries: list[bytes], first: int) -> None:
        total = sum(len(data) + HEADER.size for data in entries)
        if self._segments.fits(total):
            self._segments.write(b"".join(map(frame, entries)))
            return
        for index, data in enumerate(entries, first):
            framed = frame(data)
            if not self._segments.fits(len(framed)):
                self._segments.start(index)
            self._segments.write(framed)
