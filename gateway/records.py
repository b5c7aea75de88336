"""The gateway's record: ledger first, then state. Nothing else writes either."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from edge.durable import DurableLedger
from gateway import fold
from gateway.store import Store
from trust.ledger.entries import AnyEntry, Stamp


class Records:
    """Appends entries and folds them. Commands that look before they write hold :attr:`deciding`."""

    def __init__(self, ledger: DurableLedger, store: Store) -> None:
        self.ledger = ledger
        self.store = store
        self.deciding = asyncio.Lock()
        self._listeners: list[Callable[[AnyEntry], None]] = []
        self._catch_up()

    def _catch_up(self) -> None:
        """Apply what the ledger holds beyond the projection: after a crash, or all of it after a deletion."""
        following = self.store.progress(self.ledger.origin)
        self.store.begin()
        for index, line in self.ledger.lines(following):
            fold.apply(self.store, line.stamp, line.entry)
            following = index + 1
        self.store.commit(self.ledger.origin, following)

    def listen(self, listener: Callable[[AnyEntry], None]) -> None:
        """Call *listener* after each change of state."""
        self._listeners.append(listener)

    async def change(self, entry: AnyEntry) -> Stamp:
        """Record *entry* durably, then apply it; its stamp. The caller holds :attr:`deciding`."""
        stamp = await self.ledger.append(entry)
        self.store.begin()
        fold.apply(self.store, stamp, entry)
        self.store.commit(self.ledger.origin, stamp.seq + 1)
        for listener in self._listeners:
            listener(entry)
        return stamp

    async def note(self, entry: AnyEntry) -> Stamp:
        """Record *entry*, which changes no state."""
        return await self.ledger.append(entry)
