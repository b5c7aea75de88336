"""The witness of every sidecar's and node's log: it keeps a copy, cosigns what is consistent, and remembers the rest.

A log is known by its origin, which its workload's identity gives it, and by the key that it came with first. What it
sealed once it can neither change nor take back: that is refused, recorded, and said to whoever asks.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from edge.clock import SystemClock
from gateway.gaps import SILENT_US
from gateway.records import Records
from gateway.state import AgentRecord, Lacking, LogRecord, NodeRecord
from trust.identity.keys import SecretKey
from trust.identity.wit import Workload
from trust.ledger import checkpoint, entries, pruning
from trust.ledger.checkpoint import Checkpoint
from trust.ledger.entries import AnyEntry
from trust.ledger.merkle import EMPTY_ROOT
from trust.ledger.mirror import Forked, Mirror, Unfit
from trust.ledger.shipment import Received, Shipment, is_log_of
from trust.reasons import Reason, Unverifiable, visible

TELL_S: Final = 30.0
JUST_NOW_US: Final = 60_000_000
ASIDE: Final = ".aside"
MAX_NOTE: Final = 2000
"""Of a checkpoint that is shipped here; with our line it must fit into what other gateways take."""
_KINDS: Final = {"agent": "sidecar", "node": "node"}
_log = logging.getLogger("licet.gateway")


class Witness:
    """Of one gateway. *directory* holds a copy of each log; *on_new* hears of logs that grew."""

    def __init__(self, records: Records, directory: Path, name: str, key: SecretKey, clock: SystemClock) -> None:
        self._records = records
        self._directory = directory
        self.name = name
        self._key = key
        self._clock = clock
        self._mirrors: dict[str, Mirror] = {}
        self._busy: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._listeners: list[Callable[[str], None]] = []
        self._seen_us: dict[str, int] = {}
        self._told: dict[str, float] = {}
        """When each log's size was last changed for all gateways."""
        self.elsewhere: Callable[[str, int], bool] = lambda _origin, _have: False
        """Whether another gateway has more of a log than so many entries, which then come from there."""
        self.on_anew: Callable[[str], object] = lambda _origin: None
        """Called when the copy of a log is put aside, and another begins."""
        records.listen(self._on_change)

    def _on_change(self, entry: AnyEntry) -> None:
        """A log begins anew: the copy of the former one is kept aside, on every gateway."""
        if isinstance(entry, entries.Log) and entry.event == "renewed":
            self._mirrors.pop(entry.origin, None)
            self._put_aside(entry.origin)
            self.on_anew(entry.origin)

    def _put_aside(self, origin: str) -> Path:
        """Where the copy of a log lies from now on; no log has this directory for its own."""
        path, aside = self.path(origin), self._directory / ASIDE
        where = aside / f"{path.name}.until-{self._clock.wall_us()}"
        if path.exists():
            aside.mkdir(mode=0o700, exist_ok=True)
            path.rename(where)
            self.on_anew(origin)
        return where

    def _is_of(self, origin: str, known: LogRecord) -> bool:
        """Whether the copy that is here, if one is, is of the log with this key."""
        vkey = self.path(origin) / "vkey"
        return not vkey.exists() or vkey.read_text().strip() == known.vkey

    def listen(self, listener: Callable[[str], None]) -> None:
        """Call *listener* with the origin of each log that was cosigned further."""
        self._listeners.append(listener)

    @property
    def vkey(self) -> str:
        return checkpoint.witness_vkey(self.name, self._key.public)

    def logs(self) -> list[LogRecord]:
        """All but our own."""
        own = self._records.ledger.origin
        return [log for log in self._records.cached(LogRecord) if log.origin != own]

    def copies(self) -> list[Path]:
        """Where the copies lie of which something was cosigned."""
        paths = (self.path(log.origin) for log in self.logs())
        return [path for path in paths if (path / "checkpoint").exists()]

    def vouch(self, note: bytes) -> bytes:
        """A cosignature on a checkpoint of our own log."""
        return checkpoint.cosign(note, self.name, self._key, int(self._clock.now()))

    def seen_us(self, known: LogRecord) -> int:
        """When *known* was last cosigned, also if it had not grown; Unix microseconds."""
        return max(known.at_us, self._seen_us.get(known.origin, 0))

    def path(self, origin: str) -> Path:
        """Where the copy of a log lies."""
        return self._directory / origin.replace("/", "_")

    async def receive(self, workload: Workload, shipment: Shipment, bundle: list[bytes]) -> Received:
        """What *workload* ships of its own log, taken and cosigned as far as it holds."""
        origin, _ = checkpoint.parse_vkey(shipment.vkey)
        if not is_log_of(origin, workload.trust_domain, _KINDS[workload.kind], workload.name):
            told = f"a verifier key of {visible(origin)}; expected one of a log of {workload.name}"
            raise Unverifiable(Reason.NOT_YOURS, told)
        if len(shipment.checkpoint) > MAX_NOTE:
            told = f"a checkpoint of {len(shipment.checkpoint)} characters; it may have {MAX_NOTE}"
            raise Unverifiable(Reason.MALFORMED_REQUEST, told)
        async with self._busy[origin]:
            known = await self._meet(origin, shipment.vkey)
            try:
                mirror = await self._mirror(origin)
                wanted = max(mirror.size, shipment.pruned - 1)
                comes_from_there = self._seen_elsewhere(known) or self.elsewhere(origin, wanted)
                if shipment.first != mirror.size or (shipment.pruned and not known.wrong and comes_from_there):
                    return Received(mirror.size)
                return await self._take(workload, origin, mirror, shipment, bundle)
            except Unfit as bad:
                await self._begin_anew(origin, bad)
                return Received(0)
            except Exception as bad:
                # What was taken and not sealed is nothing, and of what could not be written memory knows too much.
                self._mirrors.pop(origin, None)
                if not isinstance(bad, Forked):
                    raise
                await self._alarm(origin, str(bad))
                raise Unverifiable(Reason.FORKED, str(bad)) from None

    def _seen_elsewhere(self, known: LogRecord) -> bool:
        """Whether another gateway may have cosigned more of a log just now, which is copied from there a moment later.
        Else its writer could ship to one, and have another put its copy aside, again and again."""
        return self._records.shared and self._clock.wall_us() - known.at_us < JUST_NOW_US

    def _may_name(self, workload: Workload) -> frozenset[str] | None:
        """A sidecar tells of its own agent and its guests; a node of a namespace of the agents there."""
        agents = self._records.cached(AgentRecord)
        if workload.kind == "agent":
            return frozenset({workload.name, *(one.agent.name for one in agents if one.via == workload.name)})
        node = self._records.store.get(NodeRecord, workload.name)
        if node is None or not node.namespace:
            return None
        return frozenset(one.agent.name for one in agents if one.namespace == node.namespace)

    async def _take(
        self, workload: Workload, origin: str, mirror: Mirror, shipment: Shipment, bundle: list[bytes]
    ) -> Received:
        if shipment.pruned:
            await asyncio.to_thread(mirror.take_pruned, shipment.first, bundle, shipment.pruned, by_writer=True)
        else:
            await asyncio.to_thread(mirror.take, shipment.first, bundle, self._may_name(workload))
        if not shipment.checkpoint:
            return Received(mirror.size)
        note = shipment.checkpoint.encode()
        sealed = mirror.check(note)
        line = checkpoint.cosign(note, self.name, self._key, int(self._clock.now()))
        known = self._records.store.get(LogRecord, origin)
        if sealed.size > mirror.known.size or known is None or known.size < sealed.size:
            await self._remember(origin, mirror, sealed)
        await self._tell_pruned(origin, mirror, workload.name)
        await asyncio.to_thread(mirror.keep, sealed, note + line)
        self._seen_us[origin] = self._clock.wall_us()
        for listener in self._listeners:
            listener(origin)
        return Received(mirror.size, line.decode())

    async def _tell_pruned(self, origin: str, mirror: Mirror, by: str) -> None:
        """Of some entries only hashes came; a hole is never without its reason."""
        if mirror.newly_pruned:
            await self._records.note(entries.Pruned(origin, mirror.newly_pruned, self._clock.wall_us(), by))

    async def _remember(self, origin: str, mirror: Mirror, sealed: Checkpoint) -> None:
        """Before it is said: whoever holds the cosignature may rely on it. Where others wait for the turn meanwhile, in
        our own log and copy, and for all of them twice a minute: they copy the log, and would find a fork so."""
        seen = _entry_of(sealed)
        now = self._clock.mono()
        if self._records.shared and now - self._told.get(origin, float("-inf")) < TELL_S:
            await self._records.note(seen)
            return
        async with self._records.deciding:
            known = self._records.store.get(LogRecord, origin)
            if known is not None and known.size > mirror.known.size:
                # Another gateway cosigned more meanwhile, which has to be the beginning of this.
                raise Unverifiable(Reason.OVERLOADED, f"another gateway has {known.size} entries; ship on")
            await self._records.change(seen)
        self._told[origin] = now

    async def _begin_anew(self, origin: str, why: Unfit) -> None:
        """Our copy is put aside, and what was seen of the log stays known to all."""
        self._mirrors.pop(origin, None)
        async with self._records.deciding:
            known = self._records.store.get(LogRecord, origin)
            if known is not None and known.size < why.known.size and self._is_of(origin, known):
                await self._records.change(_entry_of(why.known))
        where = self._put_aside(origin)
        _log.error("the copy of %s is kept in %s, and begins anew: %s", origin, where, why)
        await self._records.note(entries.Gap("copy_aside", f"{origin}: {why}; it is kept in {ASIDE}/{where.name}"))

    async def _meet(self, origin: str, vkey: str) -> LogRecord:
        known = self._records.store.get(LogRecord, origin)
        if known is None:
            async with self._records.deciding:
                known = self._records.store.get(LogRecord, origin)
                if known is None:
                    await self._records.change(entries.Log("met", origin, vkey))
                    return LogRecord(origin, vkey)
        if known.closed:
            todo = f"if it is not, `licet audit renew {origin} --reason …`"
            raise Unverifiable(Reason.FORKED, f"{origin} was closed, as gone for good: {known.closed}; {todo}")
        if known.vkey != vkey:
            detail = "it came with another key than before, as if it had begun anew"
            await self._alarm(origin, detail)
            todo = f"an operator looks at it, then `licet audit renew {origin} --reason …`"
            raise Unverifiable(Reason.FORKED, f"{origin}: {detail}; {todo}")
        return known

    async def _alarm(self, origin: str, detail: str) -> None:
        """Recorded once for each thing that is wrong."""
        known = self._records.store.get(LogRecord, origin)
        if known is not None and known.wrong == detail:
            return
        _log.error("the log %s contradicts itself: %s", origin, detail)
        async with self._records.deciding:
            await self._records.change(entries.Log("forked", origin, detail=detail))

    async def renew(self, origin: str, by: str, reason: str, pruned: int = 0) -> None:
        """A person knows why a log begins anew, or that nobody has any more what is below index *pruned*; the copy of
        the former one is kept aside."""
        await self._said_of("renewed", origin, by, reason, pruned)

    async def close(self, origin: str, by: str, reason: str) -> None:
        """A person knows that whoever wrote a log is gone for good: nobody misses what is newer, and nothing more is
        taken. What is here stays as it is."""
        known = self._records.store.get(LogRecord, origin)
        quiet_us = self._clock.wall_us() - self.seen_us(known) if known is not None else SILENT_US
        if quiet_us < SILENT_US:
            told = f"{visible(origin)} was heard {quiet_us // 1_000_000} s ago: whoever writes it is not gone"
            raise Unverifiable(Reason.MALFORMED_REQUEST, told)
        await self._said_of("closed", origin, by, reason)

    async def _said_of(
        self, event: Literal["renewed", "closed"], origin: str, by: str, reason: str, pruned: int = 0
    ) -> None:
        if not reason.strip():
            raise Unverifiable(Reason.MALFORMED_REQUEST, "say why: the reason is recorded")
        async with self._busy[origin], self._records.deciding:
            if self._records.store.get(LogRecord, origin) is None:
                names = ", ".join(log.origin for log in self.logs()) or "none"
                raise Unverifiable(Reason.NOT_FOUND, f'no log "{visible(origin)}" is witnessed; witnessed: {names}')
            await self._records.change(entries.Log(event, origin, by=by, reason=reason, pruned=pruned))

    async def _mirror(self, origin: str) -> Mirror:
        """Our copy, which has to agree with whatever any gateway cosigned; for who has it to himself. It is opened in a
        thread: after a crash all of it is read."""
        known = self._records.store.get(LogRecord, origin)
        if known is None:
            raise Unverifiable(Reason.NOT_FOUND, f"no log {origin}")
        mirror = self._mirrors.get(origin)
        if mirror is None or (mirror.known.size < known.size <= mirror.size):
            _, key = checkpoint.parse_vkey(known.vkey)
            if not self._is_of(origin, known):
                self._put_aside(origin)  # it began anew while this gateway did not hear of it
            lacking = self._records.store.get(Lacking, origin)
            lacks = lacking.below if lacking is not None and not known.size else 0
            mirror = await asyncio.to_thread(Mirror, self.path(origin), origin, key, seen(known), lacks)
            now = self._records.store.get(LogRecord, origin)
            if now is None or now.vkey != known.vkey:
                raise Unverifiable(Reason.OVERLOADED, f"{origin} began anew at this moment; ship on")
            self._mirrors[origin] = mirror
        elif mirror.known.size < known.size:
            mirror.known = seen(known)
        return mirror

    async def prune(self, origin: str, first: int) -> None:
        """Forget what our copy of a log has below index *first*, which begins a tile."""
        async with self._busy[origin]:
            await asyncio.to_thread(self._prune, self.path(origin), first)

    @staticmethod
    def _prune(root: Path, first: int) -> None:
        pruning.flush_hashes(root, first)
        pruning.drop(root, first)

    # What other gateways have

    async def meet_gateway(self, origin: str, vkey: str) -> None:
        """The log of a gateway that shares the state is copied too."""
        async with self._records.deciding:
            if self._records.store.get(LogRecord, origin) is None:
                await self._records.change(entries.Log("met", origin, vkey))

    async def copied(self, origin: str) -> int | None:
        """How many entries of a log are here; None for one that is not copied."""
        known = self._records.store.get(LogRecord, origin)
        if known is None or known.wrong or origin == self._records.ledger.origin or self._busy[origin].locked():
            return None
        async with self._busy[origin]:
            try:
                return (await self._mirror(origin)).size
            except Unfit as bad:
                await self._begin_anew(origin, bad)
                return 0
            except (Forked, Unverifiable):
                return None

    async def adopt(self, origin: str, shipment: Shipment, bundle: list[bytes], by: str) -> None:
        """What the gateway *by* has of a log. It proves itself: the log's key signed it, and if it is not a gateway's
        own, it was cosigned."""
        async with self._busy[origin]:
            known = self._records.store.get(LogRecord, origin)
            try:
                mirror = await self._mirror(origin)
                if known is None or shipment.vkey != known.vkey or shipment.first != mirror.size:
                    return
                if shipment.pruned:
                    await asyncio.to_thread(mirror.take_pruned, shipment.first, bundle, shipment.pruned)
                else:
                    await asyncio.to_thread(mirror.take, shipment.first, bundle)
                await self._adopted(origin, mirror, shipment.checkpoint.encode(), by)
            except Unfit as bad:
                await self._begin_anew(origin, bad)
            except Exception as bad:
                self._mirrors.pop(origin, None)
                if not isinstance(bad, Forked):
                    raise
                await self._alarm(origin, str(bad))

    async def _adopted(self, origin: str, mirror: Mirror, note: bytes, by: str) -> None:
        """*note* seals what was taken, unless it is not the last of it, or older than what is known already."""
        if not note or mirror.size < mirror.known.size:
            return
        sealed = mirror.check(note)
        at_s = checkpoint.cosigned_at(note, self.name, self._key.public)
        await self._tell_pruned(origin, mirror, by)
        await asyncio.to_thread(mirror.keep, sealed, note)
        self._seen_us[origin] = at_s * 1_000_000
        for listener in self._listeners:
            listener(origin)


def _entry_of(sealed: Checkpoint) -> entries.Witness:
    root = base64.b64encode(sealed.root).decode("ascii")
    return entries.Witness(sealed.origin, sealed.size, root, sealed.time_ms)


def seen(known: LogRecord) -> Checkpoint:
    """The last checkpoint of a log that was cosigned."""
    root = base64.b64decode(known.root) if known.root else EMPTY_ROOT
    return Checkpoint(known.origin, known.size, root, known.time_ms)
