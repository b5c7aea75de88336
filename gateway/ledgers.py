"""Every log of the mesh as this gateway has it: its own and the copies that it witnesses; found, read and proved."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final, Self

import msgspec

from edge.clock import SystemClock
from edge.durable import DurableLedger
from gateway.index import Filter, Index, Page, Source
from gateway.records import Records
from gateway.witness import Witness
from trust.ledger import checkpoint, entries, proofs
from trust.ledger.merkle import TILE_WIDTH
from trust.ledger.proofs import Tree
from trust.ledger.tiles import read_entries
from trust.reasons import Reason, Unverifiable, visible

INTERVAL_S: Final = 1.0
_log = logging.getLogger("licet.gateway")


class Sealed(msgspec.Struct, frozen=True):
    """One log as far as its last checkpoint, ``note``, seals it."""

    origin: str
    root: Path
    size: int
    note: bytes

    @classmethod
    def at(cls, root: Path) -> Self:
        origin, key = checkpoint.parse_vkey((root / "vkey").read_text())
        note = (root / "checkpoint").read_bytes()
        return cls(origin, root, checkpoint.open_checkpoint(note, origin, key).size, note)

    def entries(self, start: int) -> Iterator[bytes]:
        """Every entry from index *start* on."""
        bundle = start // TILE_WIDTH
        return islice(read_entries(self.root, self.size, bundle), start - bundle * TILE_WIDTH, None)


class Ledgers:
    """Of one gateway. The index follows what is sealed, about a second behind."""

    def __init__(self, records: Records, witness: Witness, path: Path, clock: SystemClock) -> None:
        self._records = records
        self._own: DurableLedger = records.ledger
        self._witness = witness
        self._clock = clock
        self._wake = asyncio.Event()
        self.index = Index(path, self.sources)
        witness.listen(lambda _origin: self._wake.set())

    def sources(self) -> Iterator[Source]:
        """All logs, as far as they are sealed (and, but for our own, cosigned)."""
        for root in (self._own.root, *self._witness.copies()):
            yield Sealed.at(root)

    async def work(self) -> None:
        """Keep the index current, for ever."""
        while True:
            try:
                await self.index.follow()
            except Exception:
                _log.exception("the index could not follow; it is tried again")
            try:
                async with asyncio.timeout(INTERVAL_S):
                    await self._wake.wait()
            except TimeoutError:
                continue
            self._wake.clear()

    async def find(self, asked: Filter, by: str) -> Page:
        """What *by* asks for; that it was asked is recorded."""
        try:
            page = await self.index.find(asked)
        except ValueError as bad:
            raise Unverifiable(Reason.MALFORMED_REQUEST, str(bad)) from None
        await self._records.note(entries.Query(by, "find", told(asked), len(page.rows)))
        return page

    async def run(self, run: str, by: str) -> Page:
        """Everything of one run in all logs, the oldest first; what only names the action or the approval too."""
        page = await self.index.run(run)
        await self._records.note(entries.Query(by, "timeline", run, len(page.rows)))
        return page

    async def state(self) -> list[dict[str, object]]:
        """Each log: how far it is sealed, seen and indexed, and what contradicts it."""
        reach = await self.index.reach()
        witnessed = {log.origin: log for log in self._witness.logs()}
        found: list[dict[str, object]] = []
        for root in (self._own.root, *self._witness.copies()):
            log = Sealed.at(root)
            seen = witnessed.get(log.origin)
            found.append(
                {
                    "origin": log.origin,
                    "sealed": log.size,
                    "indexed": reach.get(log.origin, 0),
                    "witnessed_us": seen.at_us if seen is not None else 0,
                    "wrong": seen.wrong if seen is not None else "",
                }
            )
        return found

    def vkey(self, origin: str) -> str:
        """The verifier key of a log."""
        return (self.sealed(origin).root / "vkey").read_text().strip()

    def sealed(self, origin: str) -> Sealed:
        """The log *origin*, or :class:`Unverifiable`."""
        known = {log.origin: log for log in map(Sealed.at, (self._own.root, *self._witness.copies()))}
        if origin not in known:
            raise Unverifiable(Reason.NOT_FOUND, f'no log "{visible(origin)}" is here; here are: {", ".join(known)}')
        return known[origin]

    async def read(self, origin: str, index: int, by: str) -> bytes:
        """The exact bytes of one entry; that *by* read it is recorded."""
        data = self._entry(origin, index)
        await self._records.note(entries.Query(by, "entry", f"{origin}#{index}", 1))
        return data

    def _entry(self, origin: str, index: int) -> bytes:
        source = self.sealed(origin)
        if not 0 <= index < source.size:
            raise Unverifiable(Reason.NOT_FOUND, f"{origin} has {source.size} sealed entries; there is no {index}")
        number, place = divmod(index, TILE_WIDTH)
        for at, data in enumerate(read_entries(source.root, min(source.size, (number + 1) * TILE_WIDTH), number)):
            if at == place:
                return data
        raise Unverifiable(Reason.NOT_FOUND, f"{origin}#{index} was pruned; only its hash is kept")

    def proof(self, origin: str, index: int) -> bytes:
        """A C2SP tlog-proof of one entry, under the last checkpoint with its cosignatures."""
        source = self.sealed(origin)
        return proofs.write(index, Tree(source.root, source.size).inclusion(index), source.note)

    def close(self) -> None:
        self.index.close()


def told(asked: Filter) -> str:
    """A filter in words, as it is recorded."""
    given = {name: getattr(asked, name) for name in asked.__struct_fields__}
    defaults = Filter()
    return " ".join(f"{name}={value}" for name, value in given.items() if value != getattr(defaults, name))[:2000]
