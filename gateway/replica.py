"""The record of one of several gateways: each writes its own ledger, and all fold the same changes in the same order.

A decision takes the turn, knows then everything that was changed before, and gives its change the next place in the
order. The change is in the own ledger first, under that place, and counts when it is in the order; whoever falls down
in between, or cannot reach the order, has an entry that never became a change, and says so in the next one (``void``).
What an entry only names (bundles, inventories, large requests, keys of subjects) is kept with the order before the
entry, and is on every gateway's own disk before the entry counts there.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Final, Protocol

import msgspec

from edge.backoff import Backoff
from edge.durable import DurableLedger
from gateway import fold
from gateway.order import PAGE, Change, Order, OrderDamaged, OrderIncomplete, OrderUnavailable
from gateway.records import Applied, Records
from gateway.state import Peer
from gateway.store import Store
from trust.ledger import entries
from trust.ledger.entries import AnyEntry, Line, Stamp
from trust.ledger.log import LedgerDamaged
from trust.ledger.writer import LedgerUnavailable
from trust.reasons import Reason, Unverifiable

SHARED_FROM: Final = 1 << 40
"""Beyond any version that a gateway told while it was alone."""
POLL_S: Final = 0.25
STALE_S: Final = 5.0
"""As old as a sidecar's facts may be before whatever has side effects is refused."""
AGAIN_S: Final = 0.2
START_S: Final = 60.0
"""How long a gateway that starts waits for the order to be there."""
_log = logging.getLogger("licet.gateway")


class Shelf(Protocol):
    """One kind of things that entries name, on this gateway's own disk."""

    def holds(self, name: str) -> bool: ...

    def get(self, name: str) -> bytes | None: ...

    async def put(self, name: str, data: bytes) -> object: ...


def named(entry: AnyEntry) -> Iterator[tuple[str, str]]:
    """(kind, name) of everything that *entry* names and that has to be there before it counts."""
    match entry:
        case entries.Bundle(event="activated" | "rolled_back"):
            yield "bundle", entry.digest
        case entries.Server() if entry.offer:
            yield "blob", entry.offer
        case entries.Approval() if entry.request is not None and entry.request.get("body_sha256"):
            yield "blob", entry.request["body_sha256"]
        case entries.Subject(event="made"):
            yield "subject", entry.key


class _Turn:
    """``async with``: decide alone, among all gateways."""

    def __init__(self, begin: Callable[[], Awaitable[None]], end: Callable[[], Awaitable[None]]) -> None:
        self.lock = asyncio.Lock()
        self._begin = begin
        self._end = end

    async def __aenter__(self) -> None:
        await self.lock.acquire()
        try:
            await self._begin()
        except BaseException:
            self.lock.release()
            raise

    async def __aexit__(
        self, _kind: type[BaseException] | None, _raised: BaseException | None, _where: TracebackType | None
    ) -> None:
        try:
            await self._end()
        finally:
            self.lock.release()


async def reach(order: Order, wake: Callable[[], None] = lambda: None) -> None:
    """Databases start beside gateways, and may need longer."""
    backoff, deadline = Backoff(), time.monotonic() + START_S
    while True:
        try:
            await order.open(wake)
            return
        except OrderDamaged:
            raise
        except OrderUnavailable as bad:
            if time.monotonic() > deadline:
                raise
            _log.warning("waiting for the order of changes: %s", bad)
            await asyncio.sleep(min(2.0, backoff.next()))


class Replica(Records):
    """Of one gateway; *shelves* by the kind of what they hold."""

    def __init__(self, ledger: DurableLedger, store: Store, order: Order, shelves: Mapping[str, Shelf]) -> None:
        super().__init__(ledger, store)
        self._order = order
        self._shelves = shelves
        self._turn = _Turn(self._take, self._give)
        self.deciding = self._turn
        self._unpublished: tuple[int, int] | None = None
        """(index, turn) of the entry of which it is not known whether it became a change."""
        self._heard = float("-inf")
        self._woken = asyncio.Event()
        self.lost = ""
        """Why the order is not heard, if it is not."""

    @property
    def shared(self) -> bool:
        return True

    @property
    def told_version(self) -> int:
        return SHARED_FROM + self.version

    @property
    def _of(self) -> str:
        return f"order {self._order.name}"

    @property
    def _last(self) -> int:
        """The turn of the last change that is applied here."""
        return max(0, self.version - 1)

    async def open(self) -> None:
        await reach(self._order, self._woken.set)
        self.version = self.store.progress(self._of)
        # Nobody listens yet: whoever is made afterwards reads the state as it is then.
        deadline, head = time.monotonic() + START_S, -1
        while True:
            async with self._turn.lock:
                try:
                    if not self.version:
                        await self._found()
                    self._require_same_past(await self._order.take(self._last))
                    await self._publish_the_rest()
                    await self._hear(self._order.news)
                    return
                except OrderIncomplete:
                    # The next turn is in the ledger of another gateway, which starts as well, or not.
                    now = await self._order.head()
                    deadline = time.monotonic() + START_S if now > head else deadline
                    head = now
                    if time.monotonic() > deadline:
                        raise
                finally:
                    await self._give()
            await asyncio.sleep(AGAIN_S)

    def _require_same_past(self, told: Sequence[Change]) -> None:
        """The database may have lost changes, which are brought again; it has no others in their place."""
        if self._last and told and told[0].turn == self._last and told[0].mark != self.store.mark:
            self._beyond(told)

    async def present(self, name: str, url: str, version: str) -> None:
        """Tell the others of this gateway, reached at *url* by them."""
        vkey = self.ledger.vkey
        async with self.deciding:
            known = self.store.get(Peer, name)
            if known is not None and known.origin != self.ledger.origin:
                raise LedgerDamaged(f"the name {name} belongs to the gateway with the log {known.origin}")
            if known is not None and known.vkey != vkey:
                raise LedgerDamaged(
                    f"{self.ledger.root}: gateway {name} had another ledger key before; two gateways need two names"
                )
            if known != Peer(name, self.ledger.origin, vkey, url):
                await self.change(entries.Replica(name, self.ledger.origin, vkey, url, version))

    async def _found(self) -> None:
        """A gateway that was alone until now brings its changes along, if it is the first."""
        alone = itertools.takewhile(lambda one: not one[1].stamp.turn, self.ledger.lines())
        own = [
            Change(0, line.stamp.origin, index, entries.stamped(line.stamp, entries.encode(line.entry)))
            for index, line in alone
            if isinstance(line.entry, fold.CHANGES)
        ]
        if not own or await self._order.published(self.ledger.origin) >= own[0].seq:
            return
        for change in own:
            await self._lend(entries.decode(change.body).entry)
        if not await self._order.found([msgspec.structs.replace(one, turn=n) for n, one in enumerate(own, 1)]):
            raise LedgerDamaged(
                f"{self.ledger.root}: it has {len(own)} changes of its own, and another gateway began the order; "
                "begin with an empty home, or with an empty database"
            )
        _log.info("the order of changes begins with the %d of this gateway", len(own))

    async def _publish_the_rest(self) -> None:
        """What stands in the own ledger under a turn and is not in the order: the next in it, if the turn is still
        free; else it is no change. More than one can only be missing if the database lost them."""
        published = await self._order.published(self.ledger.origin)
        if published >= self.ledger.size:
            raise LedgerDamaged(
                f"{self.ledger.root}: the order has entry {published} of it, but it holds {self.ledger.size}; "
                "an older ledger was put in its place"
            )
        since = list(self.ledger.lines(published + 1))
        void = {line.entry.seq for _, line in since if isinstance(line.entry, entries.Void)}
        missing = [(index, line) for index, line in since if line.stamp.turn and index not in void]
        head = await self._order.head()
        for index, line in missing:
            if line.stamp.turn == head + 1:
                await self._lend(line.entry)
                await self._order.publish(
                    Change(
                        line.stamp.turn,
                        line.stamp.origin,
                        index,
                        entries.stamped(line.stamp, entries.encode(line.entry)),
                    )
                )
                head += 1
            elif line.stamp.turn <= head and self._last <= head and len(missing) == 1:
                await self._void(index, line.stamp.turn, "the gateway fell before others could know of it")
            else:
                raise self._incomplete(head)
        if head < self._last:
            raise self._incomplete(head)

    def _incomplete(self, head: int) -> OrderIncomplete:
        return OrderIncomplete(
            f"the database has lost changes: it ends with turn {head}, and more are known here; turn {head + 1} is in "
            "the ledger of another gateway, which has to start too"
        )

    async def _void(self, seq: int, turn: int, why: str) -> None:
        await self._append(entries.Void(seq, turn, why))

    async def close(self) -> None:
        await self._order.close()

    # Hearing

    async def work(self) -> None:
        """Follow what others change, for ever."""
        backoff = Backoff()
        while True:
            self._woken.clear()
            wait = POLL_S
            try:
                async with self._turn.lock:
                    await self._hear(self._order.news)
                if self.lost:
                    _log.warning("the order of changes is heard again")
                self.lost, self.damaged = "", False
                backoff.reset()
            except LedgerUnavailable as bad:
                self.damaged = isinstance(bad, OrderDamaged)
                if str(bad) != self.lost:
                    _log.error("the order of changes is not heard, trying again: %s", bad)
                self.lost = str(bad)
                wait = max(wait, min(1.0, backoff.next()))
            except Exception:
                _log.exception("following the order of changes failed; it is tried again")
            try:
                async with asyncio.timeout(wait):
                    await self._woken.wait()
            except TimeoutError:
                continue

    def heard(self) -> float:
        return self._heard

    def require_heard(self) -> None:
        age = time.monotonic() - self._heard
        if age > STALE_S:
            because = f": {self.lost}" if self.lost else ""
            detail = f"what other gateways changed is not known here for {age:.0f} s{because}"
            raise Unverifiable(Reason.STALE_FACTS, detail)

    async def _hear(self, ask: Callable[[int], Awaitable[Sequence[Change]]]) -> None:
        """Apply everything that *ask* tells."""
        if self.fault is not None:
            raise self.fault
        more = True
        while more:
            at = time.monotonic()
            told = await ask(self._last)
            more, ask = len(told) >= PAGE, self._order.news
            following = self._beyond(told)
            if following:
                await self._take_in(following)
            if not more:
                self._heard = at

    async def _take_in(self, following: Sequence[Change]) -> None:
        lines = [self._opened(change) for change in following]
        for line in lines:
            await self._borrow(line.entry)
        here = self.ledger.origin
        mine = {change.seq for change in following if change.origin == here}
        if self._unpublished is not None and self._unpublished[0] in mine:
            self._unpublished = None
        applied = [
            Applied(line.stamp, line.entry, change.turn, own=change.origin == here)
            for change, line in zip(following, lines, strict=True)
        ]
        self._apply(self._of, applied, following[-1].mark)
        for line in lines:
            if isinstance(line.entry, entries.Subject) and line.entry.event == "erased":
                await self._order.drop("subject", line.entry.key)

    def _beyond(self, told: Sequence[Change]) -> Sequence[Change]:
        """The changes after the last that is applied here, which has to be among those that are *told*."""
        if self._last:
            if not told or told[0].turn != self._last or told[0].mark != self.store.mark:
                found = told[0].mark if told and told[0].turn == self._last else "nothing"
                raise OrderDamaged(
                    f"the database has lost changes: turn {self._last} was {self.store.mark}, and is {found} now; "
                    "every gateway that is started again brings what its own ledger has"
                )
            told = told[1:]
        for turn, change in enumerate(told, self._last + 1):
            if change.turn != turn:
                raise OrderDamaged(f"turn {turn} was taken out of the order")
        return told

    def _opened(self, change: Change) -> Line:
        line = entries.decode(change.body)
        if (line.stamp.origin, line.stamp.seq) != (change.origin, change.seq):
            raise OrderDamaged(f"turn {change.turn} is said to be {change.mark}, and is another entry")
        return line

    # Deciding

    async def _take(self) -> None:
        try:
            await self._hear(self._order.take)
            if self._unpublished is not None:
                # Whoever has the turn has seen all of them, so this one never was.
                seq, turn = self._unpublished
                await self._void(seq, turn, "the order could not be reached when it was made")
                self._unpublished = None
        except BaseException:
            # Whoever cannot use the turn holds up nobody else.
            await self._give()
            raise

    async def _give(self) -> None:
        try:
            await self._order.give()
        except OrderUnavailable as bad:
            # The session is over and the turn with it; everything that was decided is in the order already.
            _log.warning("the turn ended with its connection: %s", bad)

    async def change(self, entry: AnyEntry) -> Stamp:
        await self._lend(entry)
        seq, turn = self.ledger.size, self._last + 1
        try:
            stamp = await self._append(entry, turn)
        finally:
            # It has its place at once, whatever becomes of waiting for it.
            self._unpublished = (seq, turn) if self.ledger.size > seq else None
        change = Change(turn, stamp.origin, stamp.seq, entries.stamped(stamp, entries.encode(entry)))
        await self._order.publish(change)
        self._unpublished = None
        self._heard = time.monotonic()  # who has the turn knows of everything
        self._apply(self._of, [Applied(stamp, entry, stamp.turn)], change.mark)
        if isinstance(entry, entries.Subject) and entry.event == "erased":
            await self._order.drop("subject", entry.key)
        return stamp

    # What entries name

    async def _lend(self, entry: AnyEntry) -> None:
        """Others find with the order what *entry* names."""
        for kind, name in named(entry):
            data = self._shelves[kind].get(name)
            if data is not None:
                await self._order.keep(kind, name, data)

    async def _borrow(self, entry: AnyEntry) -> None:
        """Have here what *entry* names; what nobody has any more was destroyed, or is missed by whoever needs it."""
        for kind, name in named(entry):
            shelf = self._shelves[kind]
            if shelf.holds(name):
                continue
            data = await self._order.fetch(kind, name)
            if data is None:
                _log.warning("the %s %s, which an entry names, is not kept with the order", kind, name)
            else:
                try:
                    await shelf.put(name, data)
                except (ValueError, Unverifiable) as bad:
                    _log.error("the %s %s, which an entry names, is another one in the database: %s", kind, name, bad)
