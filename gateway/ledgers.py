"""Every log of the mesh as this gateway has it: its own and the copies that it witnesses; found, read and proved."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Final, Self

import msgspec

from edge.blobs import Blobs
from edge.clock import SystemClock
from edge.durable import DurableLedger
from edge.judging import KeyOf, open_sealed
from gateway import gaps
from gateway.gaps import Gap, LogState
from gateway.index import Index, RunSummary, Source
from gateway.questions import Filter, Page
from gateway.records import Records
from gateway.sql import Answer, Room
from gateway.state import Person
from gateway.witness import Witness
from trust.canonical import JsonObject
from trust.ledger import checkpoint, entries, proofs
from trust.ledger.entries import Deed
from trust.ledger.merkle import TILE_WIDTH
from trust.ledger.proofs import Tree
from trust.ledger.pruning import first_kept, first_to_keep, require_hashes
from trust.ledger.rows import Row
from trust.ledger.tiles import read_entries
from trust.ledger.verify import Undecidable
from trust.reasons import Reason, Unverifiable, visible

INTERVAL_S: Final = 1.0
CAUGHT_UP_S: Final = 5.0
PRUNE_EVERY_S: Final = 3600.0
DAY_US: Final = 86_400 * 1_000_000
MAX_ASKED: Final = 20_000
"""Bytes of a question, as it is recorded."""
_log = logging.getLogger("licet.gateway")


class Sealed(msgspec.Struct, frozen=True):
    """One log as far as its last checkpoint, ``note``, seals it."""

    origin: str
    root: Path
    size: int
    time_ms: int
    note: bytes

    @classmethod
    def at(cls, root: Path) -> Self:
        origin, key = checkpoint.parse_vkey((root / "vkey").read_text())
        note = (root / "checkpoint").read_bytes()
        sealed = checkpoint.open_checkpoint(note, origin, key)
        return cls(origin, root, sealed.size, sealed.time_ms, note)

    @property
    def first(self) -> int:
        """The index of the first entry that was not pruned."""
        return first_kept(self.root)

    def entries(self, start: int) -> Iterator[bytes]:
        """Every entry from index *start* on."""
        bundle = start // TILE_WIDTH
        return islice(read_entries(self.root, self.size, bundle), start - bundle * TILE_WIDTH, None)

    def bundle(self, number: int) -> list[bytes]:
        """The entries from index ``number * 256`` on, at most 256."""
        return list(read_entries(self.root, min(self.size, (number + 1) * TILE_WIDTH), number))

    def entry(self, index: int) -> bytes:
        """The exact bytes of one entry, or :class:`Unverifiable`."""
        if not 0 <= index < self.size:
            raise Unverifiable(Reason.NOT_FOUND, f"{self.origin} has {self.size} sealed entries; there is no {index}")
        if index < self.first:
            raise Unverifiable(Reason.NOT_FOUND, f"{self.origin}#{index} was pruned; only its hash is kept")
        number, place = divmod(index, TILE_WIDTH)
        return self.bundle(number)[place]

    def proof(self, index: int) -> bytes:
        """A C2SP tlog-proof of one entry, under this checkpoint with its cosignatures."""
        return proofs.write(index, Tree(self.root, self.size).inclusion(index), self.note)


class Proved(msgspec.Struct, frozen=True):
    """An entry is among the first ``sealed`` of its log, sealed at ``sealed_ms`` (Unix milliseconds, by the log's own
    clock) and cosigned by ``witness`` at ``cosigned_s`` (Unix seconds); empty and 0 if nobody cosigned it."""

    sealed: int
    sealed_ms: int
    witness: str
    cosigned_s: int


class Opened(msgspec.Struct, frozen=True):
    """A deed's complete arguments, and the salt of its digests if some are personal; ``missing``: why they are not
    here."""

    arguments: JsonObject
    salt: bytes = b""
    missing: str = ""


class Ledgers:
    """Of one gateway. The index follows what is sealed, about a second behind."""

    def __init__(
        self,
        records: Records,
        witness: Witness,
        path: Path,
        clock: SystemClock,
        key_of: KeyOf,
        keep_days: int = 0,
    ) -> None:
        self._key_of = key_of
        self._keep_days = keep_days
        self._prune_at = 0.0
        self._records = records
        self._own: DurableLedger = records.ledger
        self._witness = witness
        self._clock = clock
        self._wake = asyncio.Event()
        self._followed = asyncio.Event()
        self._listeners: list[Callable[[], None]] = []
        self.home = path.parent
        self._blobs = Blobs(self.home / "blobs")
        self.index = Index(path, self.sources)
        self._room = Room(self.index)
        self._anew: set[str] = set()
        witness.listen(lambda _origin: self._wake.set())
        witness.on_anew = self._anew.add

    def sources(self) -> Iterator[Source]:
        """All logs, as far as they are sealed (and, but for our own, cosigned)."""
        yield from self.sealed_logs()

    def sealed_logs(self) -> list[Sealed]:
        """Our own first. A copy whose checkpoint cannot be read hides no other."""
        found = [self._vouched(Sealed.at(self._own.root))]
        for root in self._witness.copies():
            try:
                found.append(Sealed.at(root))
            except (Unverifiable, OSError) as bad:
                self.index.stuck[root.name] = str(bad)
                _log.error("the copy %s cannot be read: %s", root, bad)
        return found

    def _vouched(self, own: Sealed) -> Sealed:
        """Our own log has another key than our identity: who believes the identity can believe the log by this."""
        return msgspec.structs.replace(own, note=own.note + self._witness.vouch(own.note))

    def listen(self, listener: Callable[[], None]) -> None:
        """Call *listener* when there is more to be found."""
        self._listeners.append(listener)

    async def work(self) -> None:
        """Keep the index current, for ever."""
        while True:
            try:
                while self._anew:
                    await self.index.forget(self._anew.pop())
                found = await self.index.follow()
                self._followed.set()  # whoever waits looks again; who comes later waits for the next time
                self._followed = asyncio.Event()
                if found:
                    for listener in self._listeners:
                        listener()
            except Exception:
                _log.exception("the index could not follow; it is tried again")
            await self._prune_when_due()
            try:
                async with asyncio.timeout(INTERVAL_S):
                    await self._wake.wait()
            except TimeoutError:
                continue
            self._wake.clear()

    async def _prune_when_due(self) -> None:
        """Once an hour, if entries are to be kept for so many days only."""
        now = self._clock.mono()
        if not self._keep_days or now < self._prune_at:
            return
        self._prune_at = now + PRUNE_EVERY_S
        try:
            await self.prune(self._clock.wall_us() - self._keep_days * DAY_US, "gateway")
        except Exception:
            _log.exception("old entries could not be pruned; it is tried again in an hour")

    async def _caught_up(self) -> None:
        """Until the index has what is in our own log now, or for so long that it seems stuck."""
        size = self._own.size
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CAUGHT_UP_S):
                while (await self.index.reach()).get(self._own.origin, 0) < size:
                    await self._followed.wait()

    @staticmethod
    async def _asked(page: Awaitable[Page]) -> Page:
        try:
            return await page
        except ValueError as bad:
            raise Unverifiable(Reason.MALFORMED_REQUEST, str(bad)) from None

    async def whole_run(self, run: str, most: int, by: Person, what: str) -> list[Row]:
        """All of one run, for *what* it is wanted; at most one row more than *most*. With what is in our own log when
        it is asked, which may take until the next seal."""
        await self._caught_up()
        found: list[Row] = []
        after = ""
        while len(found) <= most:
            page = await self.index.run(run, after, by.namespace)
            found += page.rows
            after = page.next
            if not after:
                break
        await self._records.note(entries.Query(by.name, what, run, len(found)))
        return found[: most + 1]

    async def find(self, asked: Filter, by: str) -> Page:
        """What *by* asks for; that it was asked is recorded."""
        page = await self._asked(self.index.find(asked))
        await self._records.note(entries.Query(by, "find", told(asked), len(page.rows)))
        return page

    async def run(self, run: str, by: Person, after: str = "") -> Page:
        """Everything of one run in all logs, the oldest first; what only names the action or the approval too."""
        page = await self._asked(self.index.run(run, after, by.namespace))
        await self._records.note(entries.Query(by.name, "timeline", run, len(page.rows)))
        return page

    async def runs(self, since_us: int, agent: str, by: Person) -> list[RunSummary]:
        """Which runs there were since then (Unix microseconds)."""
        found = await self.index.runs(since_us, agent, by.namespace)
        await self._records.note(entries.Query(by.name, "runs", f"since_us={since_us} agent={agent}", len(found)))
        return found

    async def prune(self, before_us: int, by: str) -> dict[str, int]:
        """Forget what sidecars and nodes said before then (Unix microseconds): of each log that was pruned, the first
        entry that is kept. What is forgotten is recorded first, so that a hole is never without its reason."""
        found: dict[str, int] = {}
        for log in self.sealed_logs():
            if log.origin.split("/")[1] == "gateway":
                continue
            try:
                first = await asyncio.to_thread(first_to_keep, log.root, log.size, before_us)
                if first > log.first:
                    await asyncio.to_thread(require_hashes, log.root, first)
                    await self._records.note(entries.Pruned(log.origin, first, before_us, by))
                    await self._witness.prune(log.origin, first)
                    await self.index.prune(log.origin, first)
                    found[log.origin] = first
            except (Unverifiable, OSError) as bad:
                _log.error("the copy of %s is not pruned: %s", log.origin, bad)
        return found

    async def sql(self, text: str, by: str) -> Answer:
        """What *by* asks in SQL; that it was asked, and how many rows that told, is recorded before it is answered."""
        if len(msgspec.json.encode(text)) > MAX_ASKED:
            raise Unverifiable(Reason.MALFORMED_REQUEST, f"a question of more than {MAX_ASKED} bytes; ask for less")
        try:
            answer = await self._room.ask(text, by)
        except BaseException:
            await self._records.note(entries.Query(by, "sql", text, 0))
            raise
        await self._records.note(entries.Query(by, "sql", text, len(answer.rows)))
        return answer

    async def exporting(self, asked: Filter, how: str, by: str) -> None:
        """Record that *by* takes away what answers *asked*, before the first of it is given."""
        count = await self.index.count(asked)
        await self._records.note(entries.Query(by, f"export {how}", told(asked), count))

    async def state(self) -> list[LogState]:
        """Each log, those included of which nothing was witnessed yet; our own first."""
        reach = await self.index.reach()
        sealed = {log.origin: log for log in self.sealed_logs()}
        own = sealed[self._own.origin]
        stuck = self.index.stuck
        indexed = reach.get(own.origin, 0)
        found = [LogState(own.origin, own.size, indexed, own.time_ms, stuck=stuck.get(own.origin, ""))]
        ended = await self.index.ended()
        for known in self._witness.logs():
            log = sealed.get(known.origin)
            size, time_ms = (log.size, log.time_ms) if log is not None else (0, 0)
            indexed = reach.get(known.origin, 0)
            seen_us = self._witness.seen_us(known)
            closed = known.closed or ("in good order" if known.origin in ended and indexed == size else "")
            told = (known, seen_us, stuck.get(known.origin, ""), closed)
            found.append(LogState(known.origin, size, indexed, time_ms, *told))
        return found

    async def gaps(self, since_us: int, by: str) -> list[Gap]:
        """What is missing since then (Unix microseconds)."""
        found = await gaps.find(self.index, await self.state(), since_us, self._clock.wall_us())
        await self._records.note(entries.Query(by, "gaps", f"since_us={since_us}", len(found)))
        return found

    def vkey(self, origin: str) -> str:
        """The verifier key of a log."""
        return (self.sealed(origin).root / "vkey").read_text().strip()

    def sealed(self, origin: str) -> Sealed:
        """The log *origin*, or :class:`Unverifiable`."""
        known = {log.origin: log for log in self.sealed_logs()}
        if origin not in known:
            raise Unverifiable(Reason.NOT_FOUND, f'no log "{visible(origin)}" is here; here are: {", ".join(known)}')
        return known[origin]

    async def read(self, origin: str, index: int, by: Person) -> bytes:
        """The exact bytes of one entry; that *by* read it is recorded. Of another namespace there is none."""
        await self.require_seen(origin, index, by)
        data = self.sealed(origin).entry(index)
        await self._records.note(entries.Query(by.name, "entry", f"{origin}#{index}", 1))
        return data

    async def require_seen(self, origin: str, index: int, by: Person) -> None:
        """Nothing, if the entry is there for *by*; else :class:`Unverifiable`."""
        if by.namespace and not await self.index.is_of(origin, index, by.namespace):
            raise Unverifiable(Reason.NOT_FOUND, f"nothing of {by.namespace} stands at {visible(origin)}#{index}")

    def opened(self, deed: Deed) -> Opened:
        """What is personal of a deed, if its key is still here."""
        if deed.sealed is None:
            return Opened(deed.arguments or {})
        try:
            arguments, salt = open_sealed(deed, deed.sealed, self._blobs, self._key_of)
        except Undecidable as bad:
            return Opened({}, missing=str(bad))
        except Unverifiable as bad:
            return Opened({}, missing=f"what is sealed is not what was decided: {bad.detail}")
        return Opened(arguments, salt)

    def proved(self, origin: str, index: int) -> Proved:
        """The proof of one entry, checked now from its exact bytes; :class:`Unverifiable` if it does not hold."""
        source = self.sealed(origin)
        named, key = checkpoint.parse_vkey((source.root / "vkey").read_text())
        proof = source.proof(index)
        proofs.require_proved(proof, source.entry(index), named, key)
        witness, its_key = checkpoint.parse_witness_vkey(self._witness.vkey)
        if origin == self._own.origin:
            return Proved(source.size, source.time_ms, "", 0)
        at = checkpoint.cosigned_at(proofs.read(proof)[2], witness, its_key)
        return Proved(source.size, source.time_ms, witness, at)

    async def close(self) -> None:
        await self._room.close()
        self.index.close()


def told(asked: Filter) -> str:
    """A filter in words, as it is recorded."""
    given = {name: getattr(asked, name) for name in asked.__struct_fields__}
    defaults = Filter()
    return " ".join(f"{name}={value}" for name, value in given.items() if value != getattr(defaults, name))[:MAX_ASKED]
