"""The three things that the writer asks of a disk, so that tests can make each of them fail."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from trust.ledger.tiles import flush_path

_FILL_CHUNK: Final = bytes(1 << 20)


class Disk:
    """The real one. Segments are opened with ``O_DSYNC``: a write returns when the device has it."""

    def create(self, path: Path, size: int) -> None:
        """Make *path*, *size* bytes of durable zeros; it appears under its name only when complete."""
        temporary = path.with_suffix(".tmp")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            for offset in range(0, size, len(_FILL_CHUNK)):
                os.pwrite(fd, _FILL_CHUNK[: size - offset], offset)
            os.fsync(fd)
        finally:
            os.close(fd)
        self.rename(temporary, path)

    def rename(self, old: Path, new: Path) -> None:
        """Durably."""
        old.rename(new)
        flush_path(new.parent)

    def open(self, path: Path) -> int:
        return os.open(path, os.O_RDWR | os.O_DSYNC)

    def write(self, fd: int, data: bytes, offset: int) -> int:
        """Durably write; the number of bytes that the device took."""
        return os.pwrite(fd, data, offset)
