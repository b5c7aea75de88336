"""Frames of the write-ahead segments: ``[length u32][crc32c u32][bytes]``, big-endian, in zero-filled files.

A segment is filled with zeros when it is made, so that appending changes no metadata and one device flush
makes a batch durable. Length 0 therefore means: nothing was written here yet.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import crc32c

from trust.ledger.entries import MAX_ENTRY_BYTES

HEADER: Final = struct.Struct(">II")


def frame(data: bytes) -> bytes:
    """One frame that holds *data*."""
    return HEADER.pack(len(data), crc32c.crc32c(data)) + data


@dataclass(frozen=True, slots=True)
class Tail:
    """Where the valid frames of a segment end, and how many bytes after that are not zero."""

    offset: int
    torn_bytes: int


class Scan:
    """Reads the frames of one segment in order; :attr:`tail` is known when the iteration has ended."""

    def __init__(self, segment: bytes) -> None:
        self._segment = segment
        self.tail: Tail | None = None

    def __iter__(self) -> Iterator[bytes]:
        offset, end = 0, len(self._segment)
        while offset + HEADER.size <= end:
            length, checksum = HEADER.unpack_from(self._segment, offset)
            start = offset + HEADER.size
            data = self._segment[start : start + length]
            if not 0 < length <= MAX_ENTRY_BYTES or len(data) < length or crc32c.crc32c(data) != checksum:
                break
            yield data
            offset = start + length
        self.tail = Tail(offset, len(self._segment[offset:].rstrip(b"\0")))
