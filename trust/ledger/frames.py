"""Frames of the write-ahead segments: ``[length u32][crc32c u32][bytes]``, big-endian, in zero-filled files.

A segment is filled with zeros when it is made, so that appending changes no metadata and one device flush
makes a batch durable. Length 0 therefore means: nothing was written here yet.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

import crc32c

from trust.ledger.entries import MAX_ENTRY_BYTES

HEADER: Final = struct.Struct(">II")
_PIECE: Final = 1 << 20


def frame(data: bytes) -> bytes:
    """One frame that holds *data*."""
    return HEADER.pack(len(data), crc32c.crc32c(data)) + data


@dataclass(frozen=True, slots=True)
class Tail:
    """Where the valid frames of a segment end, and how many bytes after that are not zero."""

    offset: int
    torn_bytes: int


class Scan:
    """Reads the frames of one segment in order; :attr:`tail` is known when the iteration has ended. A segment is read
    piece by piece, however long it is."""

    def __init__(self, segment: bytes | BinaryIO) -> None:
        self._segment = io.BytesIO(segment) if isinstance(segment, bytes) else segment
        self.tail: Tail | None = None

    def __iter__(self) -> Iterator[bytes]:
        read, offset = self._segment.read, 0
        while len(head := read(HEADER.size)) == HEADER.size:
            length, checksum = HEADER.unpack(head)
            data = read(length) if 0 < length <= MAX_ENTRY_BYTES else b""
            if not data or len(data) < length or crc32c.crc32c(data) != checksum:
                break
            yield data
            offset += HEADER.size + length
        self.tail = Tail(offset, self._torn(offset))

    def _torn(self, offset: int) -> int:
        """How many bytes there are from *offset* to the last that is not zero."""
        self._segment.seek(offset)
        at = torn = 0
        while piece := self._segment.read(_PIECE):
            used = len(piece.rstrip(b"\0"))
            torn = at + used if used else torn
            at += len(piece)
        return torn
