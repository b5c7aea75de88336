"""A wire that can be watched, cut and slowed: a TCP proxy between two parts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass
class Wire:
    """``sent`` and ``answered`` are all bytes that went towards the *target* and back. ``cut``: answers are lost, after
    the request arrived; ``slow_s``: each answer waits so long."""

    target: int
    port: int = 0
    sent: bytearray = field(default_factory=bytearray)
    answered: bytearray = field(default_factory=bytearray)
    cut: bool = False
    slow_s: float = 0.0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Wire]:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        self._tasks: set[asyncio.Task[None]] = set()
        try:
            yield self
        finally:
            await self.close()

    async def close(self) -> None:
        """Nobody answers here any more."""
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.sleep(0)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            there_reader, there = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.close()
            return
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await asyncio.gather(self._forth(reader, there), self._back(there_reader, writer))
        writer.close()
        there.close()
        self._tasks.discard(task)

    async def _forth(self, reader: asyncio.StreamReader, there: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            self.sent += data
            there.write(data)
            await there.drain()
        there.close()

    async def _back(self, there: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await there.read(65536):
            await asyncio.sleep(self.slow_s)
            if self.cut:
                break
            self.answered += data
            writer.write(data)
            await writer.drain()
        writer.close()
