"""The gateway's record: ledger first, then state. Nothing else writes either."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

import msgspec

from edge.durable import DurableLedger
from gateway import fold
from gateway.store import Store
from trust.ledger.entries import AnyEntry, Stamp
from trust.ledger.log import LedgerDamaged
from trust.ledger.writer import LedgerUnavailable

Document = TypeVar("Document", bound=msgspec.Struct)


class Records:
    """Appends entries and folds them. Commands that look before they write hold :attr:`deciding`.
    ``version`` rises with each change of state."""

    def __init__(self, ledger: DurableLedger, store: Store) -> None:
        self.ledger = ledger
        self.store = store
        self.deciding = asyncio.Lock()
        self._listeners: list[Callable[[AnyEntry], None]] = []
        self.fault: LedgerUnavailable | None = None
        self._read: dict[type, tuple[int, list[object]]] = {}
        self.version = 0
        self._catch_up()

    def _catch_up(self) -> None:
        """Apply what the ledger holds beyond the projection: after a crash, or all of it after a deletion."""
        following = self.store.progress(self.ledger.origin)
        if following > self.ledger.size:
            raise LedgerDamaged(
                f"{self.ledger.root}: the state has applied {following} entries, but the ledger holds "
                f"{self.ledger.size}; an older ledger was put in its place"
            )
        self.store.begin()
        for index, line in self.ledger.lines(following):
            fold.apply(self.store, line.stamp, line.entry)
            following = index + 1
        self.store.commit(self.ledger.origin, following)
        self.version = following

    def cached(self, kind: type[Document]) -> list[Document]:
        """All documents of *kind*, read once per change; for what asks often."""
        known = self._read.get(kind)
        version = self.store.version(kind)
        if known is None or known[0] != version:
            known = self._read[kind] = (version, list(self.store.all(kind)))
        return known[1]  # type: ignore[return-value]

    def listen(self, listener: Callable[[AnyEntry], None]) -> None:
        """Call *listener* after each change of state."""
        self._listeners.append(listener)

    async def change(self, entry: AnyEntry) -> Stamp:
        """Record *entry* durably, then apply it; its stamp. The caller holds :attr:`deciding`."""
        stamp = await self._append(entry)
        try:
            self.store.begin()
            fold.apply(self.store, stamp, entry)
            self.store.commit(self.ledger.origin, stamp.seq + 1)
            self.version = stamp.seq + 1
        except Exception as cause:
            # The ledger says it happened and the state does not: only a restart, which folds again, agrees.
            self.fault = LedgerUnavailable(f"the state could not follow the ledger: {cause}")
            raise self.fault from cause
        for listener in self._listeners:
            listener(entry)
        return stamp

    async def note(self, entry: AnyEntry) -> Stamp:
        """Record *entry*, which changes no state."""
        return await self._append(entry)

    async def _append(self, entry: AnyEntry) -> Stamp:
        if self.fault is not None:
            raise self.fault
        return await self.ledger.append(entry)
