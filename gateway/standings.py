"""Standing while the gateway runs: what it observes becomes evidence, in the order of its own ledger."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Any, Final

import msgspec

from edge.clock import SystemClock
from gateway.fold import Shelf
from gateway.records import Records
from gateway.registry import Registry
from gateway.state import Heard, Moved, Settled
from gateway.stops import Stops
from trust.ledger import entries
from trust.ledger.entries import AnyEntry, Stamp
from trust.ledger.writer import LedgerUnavailable
from trust.reasons import Reason, Unverifiable
from trust.standing import fold, rules, score
from trust.standing.decay import day_of, left
from trust.standing.score import LOWEST, NEGATIVE_HALF_LIFE, Book, Standing

MAX_OBSERVED: Final = 10_000
"""What waits for its consequences to be written."""
MIN_REPORT_S: Final = 0.5
AGAIN_S: Final = 1.0
_log = logging.getLogger("licet.gateway")


class Standings:
    """The books of all agents."""

    def __init__(self, records: Records, registry: Registry, stops: Stops, clock: SystemClock) -> None:
        self._records = records
        self._registry = registry
        self._stops = stops
        self._clock = clock
        self._shelf = Shelf(records.store)
        self._observed: asyncio.Queue[tuple[Stamp, AnyEntry]] = asyncio.Queue()
        self._settled = asyncio.Event()
        self._reported: dict[str, float] = {}

    def standing(self, agent: str) -> Standing:
        """What holds of *agent* now; of whom nothing is known, the lowest."""
        book = self._shelf.book(agent)
        return LOWEST if book is None else score.standing(book, int(self._clock.now()))

    # Evidence

    async def ended(self, outcome: entries.Outcome) -> None:
        """The gateway saw how an action ended: recorded, and evidence if it is worth anything today."""
        await self._room()
        stamp = self._records.ledger.append_later(outcome)
        book = self._shelf.book(outcome.agent)
        at_s = stamp.wall_us // 1_000_000
        counts = outcome.status == "done" and not outcome.at_home
        if counts and book is not None and rules.worth_of_outcome(book, outcome.risk, at_s):
            self._observed.put_nowait((stamp, outcome))

    async def _room(self) -> None:
        """Who observes more than can be written waits, before it is recorded: the order of both is the same."""
        while self._observed.qsize() >= MAX_OBSERVED:
            self._settled.clear()
            await self._settled.wait()

    def require_due(self, origin: str) -> None:
        """Nothing, if a sidecar may report again; each report can move many scores."""
        now = self._clock.mono()
        if now - self._reported.get(origin, float("-inf")) < MIN_REPORT_S:
            raise Unverifiable(Reason.OVERLOADED, f"one report in {MIN_REPORT_S} s; tell the rest in the next", 1)
        self._reported[origin] = now

    async def refused(self, entry: entries.Reported) -> bool:
        """An agent's sidecar, or the gateway itself, refused it something; whether that is news. What was told before
        changes nothing."""
        await self._room()
        async with self._records.deciding:
            if entry.first <= self.heard(entry.agent, entry.origin):
                return False
            stamp = await self._records.change(entry)
            self._observed.put_nowait((stamp, entry))
            return True

    def heard(self, agent: str, origin: str) -> int:
        """The last refusal of this ledger that is known, or -1."""
        found = self._records.store.get(Heard, f"{agent}|{origin}")
        return -1 if found is None else found.last

    async def work(self) -> None:
        """Write what follows, in the order in which it was observed, for ever."""
        while True:
            stamp, entry = await self._observed.get()
            try:
                await self._settle_surely(stamp.seq, stamp.wall_us // 1_000_000, entry)
            except Exception:
                _log.exception("standing could not follow entry %d", stamp.seq)
            finally:
                self._observed.task_done()
                self._settled.set()

    async def _settle_surely(self, index: int, at_s: int, entry: AnyEntry) -> None:
        """Until it is written, or nothing can be written here any more: what gateways share may be away for a while."""
        done: Counter[tuple[int, str, str]] = Counter()
        while True:
            try:
                return await self._settle(index, at_s, entry, Counter(done), done)
            except LedgerUnavailable as fault:
                _log.error("standing was not written: %s", fault)
                if self._records.fault is not None or self._records.ledger.fault is not None:
                    return None
            await asyncio.sleep(AGAIN_S)

    async def _settle(
        self,
        index: int,
        at_s: int,
        entry: AnyEntry,
        written: Counter[tuple[int, str, str]],
        done: Counter[tuple[int, str, str]] | None = None,
    ) -> None:
        """Write what follows and is not *written* yet; *done* counts what was."""
        async with self._records.deciding:
            for due in fold.follows(self._shelf, index, at_s, entry):
                key = (due.cause, due.rule, due.agent)
                if written[key]:
                    written[key] -= 1
                    continue
                await self._records.change(due)
                if done is not None:
                    done[key] += 1

    async def settle_the_rest(self) -> None:
        """At the start: write what follows from the last entries of before, if the end came in between."""
        settled = self._records.store.get(Settled, self._records.ledger.origin)
        start = settled.cause if settled is not None else 0
        lines = list(self._records.ledger.lines(start))
        written: Counter[tuple[int, str, str]] = Counter(
            (line.entry.cause, line.entry.rule, line.entry.agent)
            for _, line in lines
            if isinstance(line.entry, entries.Standing)
        )
        void = {line.entry.seq for _, line in lines if isinstance(line.entry, entries.Void)}
        for index, line in lines:
            if index in void:
                continue
            await self._settle(index, line.stamp.wall_us // 1_000_000, line.entry, written)

    async def drain(self) -> None:
        """Until what follows from everything that stands in the log so far is written."""
        async with self._records.deciding:  # whoever holds it may have written what it observed, and not yet said so
            pass
        await self._observed.join()

    # What people do

    async def vouch(self, voucher: str, target: str, milli: int, by: str, reason: str) -> None:
        """*voucher* stakes *milli* thousandths of its earned evidence for *target*."""
        async with self._records.deciding:
            at_s = int(self._clock.now())
            giving, getting = self._book(voucher), self._book(target)
            for name in (voucher, target):
                self._stops.require(self._registry.agent(name).agent)
            try:
                stake = rules.staked(giving, getting, milli, at_s)
            except rules.Refused as no:
                raise Unverifiable(Reason.NOT_YOURS, str(no)) from None
            after = rules.with_received(getting, stake, at_s)
            await self._change("vouched", getting, after, at_s, by, reason, other=voucher, milli=milli)
            without = rules.with_given(giving, stake, at_s)
            await self._change("staked", giving, without, at_s, by, reason, other=target, milli=milli)

    async def clear(self, agent: str, by: str, reason: str) -> None:
        """A person lifts the cap that a critical event left."""
        async with self._records.deciding:
            book, at_s = self._book(agent), int(self._clock.now())
            if not book.critical:
                raise Unverifiable(Reason.MALFORMED_REQUEST, f"{agent} is under no cap that could be cleared")
            await self._change("cleared", book, rules.cleared(book, at_s), at_s, by, reason)

    async def grant(self, agent: str, allowed: bool, by: str, reason: str) -> None:
        """A person lets an attested agent pass 900, or takes that back."""
        async with self._records.deciding:
            book, at_s = self._book(agent), int(self._clock.now())
            if allowed and not self._registry.agent(agent).agent.attested:
                raise Unverifiable(Reason.MALFORMED_REQUEST, f"{agent} is not attested, so it cannot be verified")
            if book.granted == allowed:
                has = "may be verified already" if allowed else "has no grant that could be withdrawn"
                raise Unverifiable(Reason.MALFORMED_REQUEST, f"{agent} {has}")
            rule = "granted" if allowed else "ungranted"
            await self._change(rule, book, rules.granted(book, allowed, at_s), at_s, by, reason)

    def _book(self, agent: str) -> Book:
        book = self._shelf.book(agent)
        if book is None:
            self._registry.known_agent(agent)
            raise Unverifiable(Reason.NOT_FOUND, f"nothing is known of {agent}")
        return book

    async def _change(
        self, rule: str, before: Book, after: Book, at_s: int, by: str, reason: str, **details: Any
    ) -> None:
        if not reason.strip():
            raise Unverifiable(Reason.MALFORMED_REQUEST, "say why: the reason is recorded")
        day = day_of(at_s)
        entry = entries.Standing(
            rule=rule,  # type: ignore[arg-type]
            agent=before.agent,
            cause=fold.BY_A_PERSON,
            at_s=at_s,
            before=score.score(before, day),
            after=score.score(after, day),
            by=by,
            reason=reason,
            **details,
        )
        await self._records.change(entry)

    # Stories

    def story(self, agent: str) -> dict[str, Any]:
        """Where the score of *agent* comes from: what counts now, and everything that moved it."""
        book, now = self._book(agent), int(self._clock.now())
        day = day_of(now)
        held = self.standing(agent)
        moved = self._records.store.within(Moved, f"{agent}|")
        return {
            "agent": agent,
            "score": held.score,
            "tier": held.tier,
            "ring": held.ring,
            "evidence": {
                "earned": score.earned(book, day),
                "vouched": score.vouched(book, day),
                "negative": left(book.negative, NEGATIVE_HALF_LIFE, day),
                "cap": score.cap(book),
                "prior": score.PRIOR,
                "prior_weight": score.PRIOR_WEIGHT,
            },
            "earned_today": list(book.today) if book.day == day else [0, 0, 0, 0],
            "caps_a_day": list(rules.OUTCOME_DAY_MILLI),
            "next_tier_since": book.rising_s,
            "moved": [{"index": m.index, **msgspec.to_builtins(m.entry)} for m in moved],
        }

    def lately(self, agent: str, most: int) -> list[Moved]:
        """What moved its score last, the oldest first."""
        return self._records.store.newest(Moved, f"{agent}|", most)[::-1]

    def books(self) -> list[Book]:
        return self._shelf.books()
