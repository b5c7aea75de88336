"""Bytes kept beside a ledger by their SHA-256, when they are too large for an entry."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

from trust.canonical import sha256_hex
from trust.ledger.tiles import write_atomically


class Blobs:
    """Files named by digest; written durably before any entry names them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def add(self, data: bytes) -> str:
        """The digest of *data*, which can be read from now on."""
        digest = sha256_hex(data)
        await self.put(digest, data)
        return digest

    async def put(self, digest: str, data: bytes) -> None:
        """Raises :class:`ValueError` for what has another digest."""
        if sha256_hex(data) != digest:
            raise ValueError(f"its SHA-256 is not {digest}")
        path = self._directory / digest
        try:
            os.utime(path)  # it is needed from now on
        except FileNotFoundError:
            await asyncio.to_thread(write_atomically, path, data, flush=True)

    def holds(self, digest: str) -> bool:
        return self.get(digest) is not None

    async def forget(self, before_us: int) -> None:
        """Remove what nobody has added since then (Unix microseconds)."""
        for path in await asyncio.to_thread(lambda: list(self._directory.glob("*"))):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime_ns // 1000 < before_us:  # here, where nothing is added meanwhile
                    path.unlink()
            await asyncio.sleep(0)

    def get(self, digest: str) -> bytes | None:
        """The bytes, or None when they are missing or not what their name says."""
        path = self._directory / digest
        if len(digest) != 64 or not path.exists():
            return None
        data = path.read_bytes()
        return data if sha256_hex(data) == digest else None
