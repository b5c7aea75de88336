"""The C2SP tlog-tiles layout on disk: ``tile/<L>/<N>[.p/<W>]`` and ``tile/entries/<N>[.p/<W>]``.

Source: c2sp.org/tlog-tiles. Tiles are replaced atomically. Those that are full are flushed before the checkpoint that
vouches for them; partial ones are derived from the frames, and can be made again.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from trust.ledger.merkle import HASH_BYTES, TILE_WIDTH, Edge
from trust.reasons import Reason, Unverifiable

LOOKS: Final = 5


def tile_name(number: int) -> str:
    """Three digits a path part, all but the last with an ``x``: 1234067 → ``x001/x234/067``."""
    parts = [f"{number % 1000:03d}"]
    while number >= 1000:
        number //= 1000
        parts.append(f"x{number % 1000:03d}")
    return "/".join(reversed(parts))


def tile_path(level: int | str, number: int, width: int) -> str:
    """Relative path; *level* is a number or ``entries``; a *width* below 256 names a partial tile."""
    full = f"tile/{level}/{tile_name(number)}"
    return full if width == TILE_WIDTH else f"{full}.p/{width}"


def pack_entries(entries: list[bytes]) -> bytes:
    """An entry bundle: each entry behind its length as a big-endian u16."""
    return b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)


def unpack_entries(bundle: bytes) -> list[bytes]:
    """Inverse of :func:`pack_entries`."""
    entries: list[bytes] = []
    offset = 0
    while offset < len(bundle):
        length = int.from_bytes(bundle[offset : offset + 2], "big")
        entry = bundle[offset + 2 : offset + 2 + length]
        if len(entry) < length or offset + 2 > len(bundle):
            raise Unverifiable(Reason.MALFORMED_REQUEST, "an entry bundle ends in the middle of an entry")
        entries.append(entry)
        offset += 2 + length
    return entries


def write_atomically(path: Path, data: bytes, *, flush: bool = False) -> None:
    """Replace *path* with *data* in one step, readable by this user only; with *flush*, durably."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            if flush:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    if flush:
        flush_path(path.parent)


def remove_tile(path: Path) -> None:
    """Remove a tile, whole or partial."""
    path.unlink(missing_ok=True)
    partial = path.with_name(path.name + ".p")
    if partial.is_dir():
        for old in partial.iterdir():
            old.unlink()
        partial.rmdir()


def flush_path(path: Path) -> None:
    """Make durable what a file holds, or the names in a directory."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class TileWriter:
    """Turns appended entries into tiles under *root*."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.edge = Edge()
        self._entries: list[bytes] = []
        self._unflushed: list[Path] = []

    def resume_entries(self, entries: list[bytes]) -> None:
        """Take over the entries of the last, partial bundle."""
        self._entries = entries

    def append_pruned(self, leaf: bytes) -> None:
        """An entry of which only the hash is left; whole bundles of them come one after the other."""
        self._entries = []
        self._grow(leaf)

    def append(self, entry: bytes, leaf: bytes) -> None:
        self._entries.append(entry)
        self._grow(leaf)
        if len(self._entries) == TILE_WIDTH:
            number = self.edge.size // TILE_WIDTH - 1
            self._write(tile_path("entries", number, TILE_WIDTH), pack_entries(self._entries))
            self._entries = []

    def _grow(self, leaf: bytes) -> None:
        for level, number, hashes in self.edge.append(leaf):
            self._write(tile_path(level, number, TILE_WIDTH), b"".join(hashes))

    def flush(self) -> None:
        """Make durable the tiles that became full: nobody looks at them again, and a power failure could empty them."""
        paths, self._unflushed = self._unflushed, []
        for path in [*paths, *{path.parent for path in paths}]:
            flush_path(path)

    def write_partial(self) -> None:
        """Write the right edge, so that a checkpoint of this size can be verified."""
        size = self.edge.size
        for level, hashes in enumerate(self.edge.levels):
            if hashes:
                number = size // TILE_WIDTH ** (level + 1)
                self._write(tile_path(level, number, len(hashes)), b"".join(hashes))
        if self._entries:
            self._write(tile_path("entries", size // TILE_WIDTH, len(self._entries)), pack_entries(self._entries))

    def _write(self, relative: str, data: bytes) -> None:
        path = self._root / relative
        if not path.parent.name.endswith(".p"):
            if path.exists() and path.read_bytes() == data:
                return  # it may be all that is left
            self._unflushed.append(path)
        write_atomically(path, data)
        stale = path.parent if path.parent.name.endswith(".p") else path.with_name(path.name + ".p")
        for old in stale.glob("[0-9]*") if stale.is_dir() else ():
            if old != path:
                old.unlink()


def read_entries(root: Path, size: int, first_bundle: int = 0) -> Iterator[bytes]:
    """The entries below index *size* from the entry bundles under *root*, beginning with one bundle."""
    for number in range(first_bundle, (size + TILE_WIDTH - 1) // TILE_WIDTH):
        width = min(TILE_WIDTH, size - number * TILE_WIDTH)
        entries = unpack_entries(_read_tile(root, "entries", number, width))
        if len(entries) < width:
            raise Unverifiable(
                Reason.MALFORMED_REQUEST, f"entry bundle {number} holds {len(entries)} entries, not {width}"
            )
        yield from entries[:width]


def read_hashes(root: Path, level: int, number: int, width: int) -> list[bytes]:
    """The first *width* hashes of one tile."""
    data = _read_tile(root, level, number, width)
    if len(data) < width * HASH_BYTES:
        raise Unverifiable(Reason.MALFORMED_REQUEST, f"tile {level}/{number} is too short")
    return [data[i * HASH_BYTES : (i + 1) * HASH_BYTES] for i in range(width)]


def _read_tile(root: Path, level: int | str, number: int, width: int) -> bytes:
    """A partial tile may meanwhile have become a wider one; any that is wide enough will do."""
    exact = root / tile_path(level, number, width)
    full = root / tile_path(level, number, TILE_WIDTH)
    partial = full.with_name(full.name + ".p")
    for _ in range(LOOKS):  # while it is looked for, one may have become another
        wider = sorted((p for p in partial.glob("[0-9]*") if int(p.name) > width), key=lambda p: int(p.name))
        for path in (exact, *wider, full):
            try:
                return path.read_bytes()
            except FileNotFoundError:
                continue
    raise Unverifiable(Reason.MALFORMED_REQUEST, f"{exact.relative_to(root)} is missing")
