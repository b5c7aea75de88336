"""Handing entries on: what answers a question, to the last page, in the form that another program takes."""

from __future__ import annotations

import asyncio
import tempfile
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Final, Literal, get_args

import msgspec

from gateway import sql
from gateway.ledgers import Ledgers
from gateway.questions import MAX_ROWS, Filter
from trust.ledger import entries, exports
from trust.ledger.merkle import TILE_WIDTH
from trust.ledger.rows import Row
from trust.reasons import Reason, Unverifiable, visible

Form = Literal["csv", "jsonl", "parquet", "ocsf", "cloudevents"]
TYPES: Final[dict[Form, str]] = {
    "csv": "text/csv; charset=utf-8",
    "jsonl": "application/jsonl",
    "parquet": "application/vnd.apache.parquet",
    "ocsf": "application/jsonl",
    "cloudevents": "application/jsonl",
}
SUFFIXES: Final[dict[Form, str]] = {
    "csv": "csv",
    "jsonl": "jsonl",
    "parquet": "parquet",
    "ocsf": "ocsf.jsonl",
    "cloudevents": "cloudevents.jsonl",
}
MAX_BUNDLES: Final = 64
CHUNK: Final = 1 << 16


def form(text: str) -> Form:
    """One of the forms, or :class:`Unverifiable`."""
    for known in get_args(Form):
        if text == known:
            found: Form = known
            return found
    raise Unverifiable(
        Reason.MALFORMED_REQUEST, f'format "{visible(text)}": expected one of {", ".join(get_args(Form))}'
    )


class Exporter:
    """One export; :meth:`chunks` reads as fast as they are taken."""

    def __init__(self, ledgers: Ledgers, asked: Filter, wanted: Form) -> None:
        self._ledgers = ledgers
        self._asked = msgspec.structs.replace(asked, limit=MAX_ROWS)
        self._form = wanted
        self._bundles: OrderedDict[tuple[str, int], list[bytes]] = OrderedDict()

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The file, piece by piece. What does not fit into one that has to be made first is :class:`Unverifiable`."""
        if self._form == "parquet":
            async for piece in self._parquet():
                yield piece
            return
        if self._form == "csv":
            yield exports.csv_header()
        async for rows in self._pages():
            yield await asyncio.to_thread(lambda rows=rows: b"".join(map(self._line, rows)))  # type: ignore[misc]

    async def _pages(self) -> AsyncIterator[list[Row]]:
        asked = self._asked
        while True:
            page = await self._ledgers.index.find(asked)
            if page.rows:
                yield page.rows
            if not page.next:
                return
            asked = msgspec.structs.replace(asked, after=page.next)

    def _line(self, row: Row) -> bytes:
        if self._form == "csv":
            return exports.csv_line(row)
        data = self._data(row.origin, row.index)
        if self._form == "jsonl":
            return exports.jsonl(data)
        if self._form == "cloudevents":
            return exports.cloudevent(row, data)
        return exports.ocsf(row, entries.decode(data), data)

    def _data(self, origin: str, index: int) -> bytes:
        """The exact bytes; neighbours lie in one file and are read once."""
        number, place = divmod(index, TILE_WIDTH)
        key = (origin, number)
        if key not in self._bundles or place >= len(self._bundles[key]):
            self._bundles[key] = self._ledgers.sealed(origin).bundle(number)
            if len(self._bundles) > MAX_BUNDLES:
                self._bundles.popitem(last=False)
        self._bundles.move_to_end(key)
        return self._bundles[key][place]

    async def _parquet(self) -> AsyncIterator[bytes]:
        with tempfile.TemporaryDirectory(prefix="licet-export-") as directory:
            path = Path(directory) / "entries.parquet"
            await sql.parquet(str(path), self._pages())
            with path.open("rb") as file:
                while piece := await asyncio.to_thread(file.read, CHUNK):
                    yield piece
