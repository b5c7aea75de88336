"""The gateway's record: ledger first, then state. Nothing else writes either."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, TypeVar

import msgspec

from edge.durable import DurableLedger
from gateway import fold
from gateway.store import Store
from trust.ledger.entries import AnyEntry, Stamp
from trust.ledger.log import LedgerDamaged
from trust.ledger.writer import LedgerUnavailable

Document = TypeVar("Document", bound=msgspec.Struct)
TURNED: Final = "its ledger has changes that it shared with other gateways; name their database in [gateway] database"


class Applied(msgspec.Struct, frozen=True):
    """A change and its ``place`` among all of them; ``own``: it was made here."""

    stamp: Stamp
    entry: AnyEntry
    place: int
    own: bool = True


class Records:
    """Appends entries and folds them. Commands that look before they write hold :attr:`deciding`.
    ``version`` rises with each change of state."""

    def __init__(self, ledger: DurableLedger, store: Store) -> None:
        self.ledger = ledger
        self.store = store
        self.deciding: AbstractAsyncContextManager[object] = asyncio.Lock()
        self._listeners: list[tuple[Callable[[AnyEntry], None], bool]] = []
        self.fault: LedgerUnavailable | None = None
        self.damaged = False
        """What several gateways share contradicts what is known here; each brings what it has when it starts again."""
        self._read: dict[type, tuple[int, list[object]]] = {}
        self.version = 0

    async def open(self) -> None:
        """Apply what the ledger holds beyond the projection: after a crash, or all of it after a deletion."""
        following = self.store.progress(self.ledger.origin)
        if following > self.ledger.size:
            raise LedgerDamaged(
                f"{self.ledger.root}: the state has applied {following} entries, but the ledger holds "
                f"{self.ledger.size}; an older ledger was put in its place"
            )
        self.store.begin()
        for index, line in self.ledger.lines(following):
            if line.stamp.turn:
                raise LedgerDamaged(f"{self.ledger.root}: {TURNED}")
            self.store.place = index
            fold.apply(self.store, line.stamp, line.entry)
            following = index + 1
        self.store.commit(self.ledger.origin, following)
        self.version = following

    async def close(self) -> None:
        """Nothing is changed any more."""

    @property
    def shared(self) -> bool:
        """Whether other gateways wait while a change is made here."""
        return False

    @property
    def told_version(self) -> int:
        """What sidecars and nodes are told, for whom it only rises."""
        return self.version

    def heard(self) -> float:
        """When all changes were known here last, as :func:`time.monotonic`: where nobody else changes anything, now."""
        return time.monotonic()

    def require_heard(self) -> None:
        """Nothing, if changes of others are known soon enough to be relied on; else :class:`Unverifiable`."""

    def cached(self, kind: type[Document]) -> list[Document]:
        """All documents of *kind*, read once per change; for what asks often."""
        known = self._read.get(kind)
        version = self.store.version(kind)
        if known is None or known[0] != version:
            known = self._read[kind] = (version, list(self.store.all(kind)))
        return known[1]  # type: ignore[return-value]

    def listen(self, listener: Callable[[AnyEntry], None], *, own: bool = False) -> None:
        """Call *listener* after each change of state; with *own*, only of those that were made here."""
        self._listeners.append((listener, own))

    async def change(self, entry: AnyEntry) -> Stamp:
        """Record *entry* durably, then apply it; its stamp. The caller holds :attr:`deciding`."""
        stamp = await self._append(entry)
        self._apply(self.ledger.origin, [Applied(stamp, entry, stamp.seq)])
        return stamp

    async def note(self, entry: AnyEntry) -> Stamp:
        """Record *entry*, which changes no state."""
        return await self._append(entry)

    async def _append(self, entry: AnyEntry, turn: int = 0) -> Stamp:
        if self.fault is not None:
            raise self.fault
        return await self.ledger.append(entry, turn)

    def _apply(self, of: str, changes: Sequence[Applied], mark: str = "") -> None:
        """What *changes* mean for the state, a projection *of* something, up to the one that *mark* names."""
        try:
            self.store.begin()
            for change in changes:
                self.store.place = change.place
                fold.apply(self.store, change.stamp, change.entry)
            following = changes[-1].place + 1
            self.store.commit(of, following, mark)
            self.version = following
        except Exception as cause:
            # The ledger says it happened and the state does not: only a restart, which folds again, agrees.
            self.fault = LedgerUnavailable(f"the state could not follow the ledger: {cause}")
            raise self.fault from cause
        for change in changes:
            for listener, own_only in self._listeners:
                if change.own or not own_only:
                    listener(change.entry)
