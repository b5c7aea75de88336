"""The SQL console: one question at a time to a copy of the index, in a process that can do nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import msgspec

from gateway.index import Index
from trust.ledger import exports
from trust.ledger.rows import Row
from trust.reasons import Reason, Unverifiable, visible

SECONDS: Final = 10.0
"""For one question, from when all rows are there."""
LOADING_S: Final = 60.0
MAX_ROWS: Final = 10_000
MAX_WAITING: Final = 4
PROGRAM: Final = Path(__file__).resolve().with_name("duck.py")
"""Never imported here: DuckDB has no business in the process that holds the gateway's key."""
_TYPES: Final = {"time": "TIMESTAMP", "index": "BIGINT", "step": "INTEGER", "policies": "VARCHAR[]"}
COLUMNS: Final = {name: _TYPES.get(name, "VARCHAR") for name in ("time", *exports.COLUMNS)}
"""Of the table ``entries``."""
MAX_LOADED: Final = 1_000_000
"""The newest rows of the index; more would not fit into the memory that one question may take."""
BATCH: Final = 5_000
MAX_PARQUET_BYTES: Final = 400 << 20
"""Twice, in the directory for passing files, while it is written: what a pod has there is little."""


class Answer(msgspec.Struct, frozen=True):
    """``more``: there were more rows than are told. ``loaded``: over how many entries was asked, of ``entries``."""

    columns: list[str]
    rows: list[list[Any]]
    more: bool
    loaded: int = 0
    entries: int = 0


class _Told(msgspec.Struct, frozen=True):
    columns: list[str] = []
    rows: list[list[Any]] = []
    more: bool = False
    error: str = ""


class Room:
    """One process for all questions, started with the first and again after one that took too long."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._one = asyncio.Lock()
        self._asking: set[str] = set()
        self._generation = index.generation
        self._process: Process | None = None
        self._loaded: dict[str, int] = {}
        self._count = 0

    async def ask(self, sql: str, by: str) -> Answer:
        """What *sql* finds; :class:`Unverifiable` with the database's own words if it cannot be answered. One question
        of each person (*by*) at a time, and few that wait: nobody asks everybody else out of the room."""
        if by in self._asking:
            raise Unverifiable(Reason.OVERLOADED, "your last question is still being answered")
        if len(self._asking) >= MAX_WAITING:
            raise Unverifiable(Reason.OVERLOADED, f"{MAX_WAITING} people are asking already")
        self._asking.add(by)
        try:
            return await self._ask(sql)
        finally:
            self._asking.discard(by)

    async def _ask(self, sql: str) -> Answer:
        async with self._one:
            try:
                async with asyncio.timeout(LOADING_S):
                    process, entries = await self._current()
                async with asyncio.timeout(SECONDS):
                    await _send(process, {"sql": sql, "most": MAX_ROWS})
                    told = msgspec.json.decode(await _receive(process), type=_Told)
            except BaseException as bad:
                await self.close()  # it may be in the midst of anything
                if isinstance(bad, TimeoutError):
                    raise Unverifiable(
                        Reason.MALFORMED_REQUEST, f"no answer within {SECONDS:.0f} s; ask for less"
                    ) from None
                if isinstance(bad, asyncio.IncompleteReadError | ConnectionError):
                    raise Unverifiable(
                        Reason.MALFORMED_REQUEST, "the question needed more memory than it may have; ask for less"
                    ) from None
                raise
        if told.error:
            raise Unverifiable(Reason.MALFORMED_REQUEST, visible(told.error, 2000))
        return Answer(told.columns, told.rows, told.more, self._count, entries)

    async def _current(self) -> tuple[Process, int]:
        """The process with all rows that there are, and how many entries the index has."""
        reach = await self._index.reach()
        total = sum(reach.values())
        began_anew = self._generation != self._index.generation
        self._generation = self._index.generation
        if self._process is None or self._process.returncode is not None or began_anew:
            await self.close()
            self._process = await _start()
            self._loaded = await self._index.from_the_newest(MAX_LOADED)
            self._count = 0
        for origin, end in reach.items():
            async for rows in self._index.rows(origin, self._loaded.get(origin, 0), end, BATCH):
                await _send_rows(self._process, rows)
                self._count += len(rows)
            self._loaded[origin] = end
        return self._process, total

    async def close(self) -> None:
        process, self._process = self._process, None
        self._loaded = {}
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()


async def _start(*arguments: str) -> Process:
    """With nothing of our environment, and no directory from which it would take a module."""
    command = (sys.executable, "-I", str(PROGRAM), *arguments)
    process = await asyncio.create_subprocess_exec(
        *command, stdin=PIPE, stdout=PIPE, env={"HOME": "/nonexistent"}, cwd="/"
    )
    await _send(process, {"columns": COLUMNS})
    return process


async def _send_rows(process: Process, rows: list[Row]) -> None:
    def encoded() -> bytes:
        return msgspec.json.encode({"rows": [shaped(row) for row in rows]})

    await _send_bytes(process, await asyncio.to_thread(encoded))


async def _send(process: Process, message: dict[str, Any]) -> None:
    await _send_bytes(process, msgspec.json.encode(message))


async def _send_bytes(process: Process, data: bytes) -> None:
    if process.stdin is None:
        raise ConnectionError("no way in")
    process.stdin.write(len(data).to_bytes(4, "big") + data)
    await process.stdin.drain()


async def _receive(process: Process) -> bytes:
    if process.stdout is None:
        raise ConnectionError("no way out")
    length = int.from_bytes(await process.stdout.readexactly(4), "big")
    return await process.stdout.readexactly(length)


def shaped(row: Row) -> dict[str, Any]:
    """One row as the table has it."""
    return {**exports.flat(row), "policies": list(row.policies)}


async def parquet(path: str, batches: AsyncIterator[list[Row]]) -> None:
    """Write *batches* to a Parquet file, or :class:`Unverifiable` if they are too many for one."""
    process = await _start("--parquet", path, str(MAX_PARQUET_BYTES))
    try:
        with contextlib.suppress(ConnectionError):  # it ended, and how is what counts
            async for rows in batches:
                await _send_rows(process, rows)
        if process.stdin is not None:
            process.stdin.close()
        if await process.wait():
            most = f"{MAX_PARQUET_BYTES >> 20} MiB of Parquet could not be written"
            raise Unverifiable(Reason.BODY_TOO_LARGE, f"{most}; ask for less time, or for jsonl or csv, which stream")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
