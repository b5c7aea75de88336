"""The write-ahead segments of one ledger: which files, in which order, and where the next frame goes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Final

from trust.ledger.disk import Disk
from trust.ledger.frames import Scan, Tail
from trust.ledger.tiles import write_atomically

SEGMENT_BYTES: Final = 64 << 20
_BUFFER: Final = 1 << 18
_SPARE: Final = "spare.segment"


@dataclass(frozen=True, slots=True)
class Segment:
    """One file; ``first`` is the index of its first entry."""

    path: Path
    first: int

    @contextmanager
    def scan(self) -> Iterator[Scan]:
        with self.path.open("rb", buffering=_BUFFER) as file:
            yield Scan(file)


class ShortWrite(OSError):
    """The device took fewer bytes than it was given."""


class Segments:
    """The directory ``wal/`` of one ledger and the segment that is being written."""

    def __init__(self, directory: Path, disk: Disk, segment_bytes: int) -> None:
        self.directory = directory
        self._disk = disk
        self._bytes = segment_bytes
        self._fd = -1
        self._offset = 0
        self._making = threading.Lock()
        """Whoever needs the next segment while it is being made waits for it, instead of making it a second time."""

    def all(self) -> list[Segment]:
        """In order of their entries."""
        return [Segment(path, int(path.stem)) for path in sorted(self.directory.glob("[0-9]*.segment"))]

    def forget(self, first: int) -> None:
        """Remove the files in which every entry is below index *first*, the oldest first; the last one stays."""
        kept = self.all()
        for segment, following in pairwise(kept):
            if following.first > first:
                break
            segment.path.unlink(missing_ok=True)

    def resume(self, segment: Segment, tail: Tail, torn_copy: Path) -> None:
        """Go on after the last valid frame of *segment*; what stands after it is kept aside, then zeroed."""
        self._fd = self._disk.open(segment.path)
        self._offset = tail.offset
        if tail.torn_bytes:
            write_atomically(torn_copy, os.pread(self._fd, tail.torn_bytes, tail.offset), flush=True)
            self._write_fully(bytes(tail.torn_bytes))

    def start(self, first: int) -> None:
        """Begin a segment whose first entry has index *first*."""
        spare = self.directory / _SPARE
        path = self.directory / f"{first:020d}.segment"
        with self._making:
            if not spare.exists():
                self._disk.create(spare, self._bytes)
            self._disk.rename(spare, path)
        self.close()
        self._fd, self._offset = self._disk.open(path), 0

    def prepare(self) -> None:
        """Make the next segment ahead of time; filling it inside a commit would stall every action."""
        spare = self.directory / _SPARE
        with self._making:
            if self._offset * 2 > self._bytes and not spare.exists():
                self._disk.create(spare, self._bytes)

    def fits(self, size: int) -> bool:
        return self._offset + size <= self._bytes

    def write(self, data: bytes) -> None:
        """Append durably, or raise; after that the caller must never write again."""
        self._write_fully(data)
        self._offset += len(data)

    def _write_fully(self, data: bytes) -> None:
        written = self._disk.write(self._fd, data, self._offset)
        if written != len(data):
            raise ShortWrite(f"{written} of {len(data)} bytes were written")

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def start_of(self, wall_us: int, when: Callable[[bytes], int]) -> int:
        """An index before everything that was written after *wall_us* (Unix microseconds): where the last segment
        begins that began before then. *when*: an entry's own time."""
        before = 0
        for segment in reversed(self.all()):
            with segment.scan() as scan:
                first = next(iter(scan), None)
            before = segment.first
            if first is not None and when(first) < wall_us:
                break
        return before

    def frames(self, start: int) -> Iterator[tuple[int, bytes]]:
        """Every (index, entry) from index *start* on, as far as frames are valid."""
        segments = self.all()
        for segment, following in zip_longest(segments, segments[1:]):
            if following is not None and following.first <= start:
                continue
            with segment.scan() as scan:
                for index, data in enumerate(scan, segment.first):
                    if index >= start:
                        yield index, data
