"""Step 3 again, at the gateway: what an agent did through all its sidecars, before it is decided what it may do now.

Each sidecar counts what went through itself. Several gateways count in Redis, in the step that spends the action's id.
One gateway alone counts in its own memory, and only agents that have several sidecars, or one that was replaced, as
pods are. Whatever nobody counted yet is read from the ledgers. What was decided knowing too little goes back to its
sidecar with what is known (:data:`trust.recalled.MEMBER`), which decides again; so a person is asked where policy asks
one.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from edge.clock import SystemClock
from edge.shared import Counted, Shared
from gateway.index import Index
from gateway.records import Records
from gateway.state import LogRecord
from gateway.statements import Asked
from trust.identity.replay import Nonces
from trust.ledger import entries
from trust.ledger.shipment import log_of
from trust.policy.inventory import Inventory
from trust.reasons import Reason, Unverifiable, visible
from trust.recalled import DENIED, MAX_RUNS, SPANS, SPENT, Call, Past, Recalled
from trust.standing.rules import COUNTED
from trust.window import BUCKETS, DAY, Window

_SEVERAL: Final = ""
REMEMBER_S: Final = 120.0
"""Longer than any signature is valid, clock skew on both sides included: an action id is dispatched once."""
SEALED_S: Final = 30.0
"""Our own entries are in the index after so long, many times over; those of less long ago are known without it."""
BEHIND_S: Final = 5.0
"""For so long a call waits for the index to have read what there was at the start."""
FLYING_EVERY_S: Final = 0.25
_US: Final = 1_000_000
_SINCE: Final = """
agent = ?1 AND agent <> '' AND wall_us >= ?2 AND wall_us < ?3
AND action_id NOT IN (SELECT value FROM json_each(?4))
"""
"""Of an agent, from when until when, but for the actions that are known without the index. What is said twice of its
columns lets SQLite use an index that has no empty ones."""
_DISPATCHED: Final = f"""
SELECT server || '/' || tool, wall_us * ?5 / ?6, count(DISTINCT action_id) FROM entry
WHERE {_SINCE} AND kind = 'dispatch' AND step = 8 GROUP BY 1, 2
"""  # noqa: S608
_DENIED: Final = f"""
SELECT wall_us * ?5 / ?6, count(*) FROM entry
WHERE {_SINCE} AND kind = 'refusal' AND reason IN (SELECT value FROM json_each(?7)) GROUP BY 1
"""  # noqa: S608
_LABELLED: Final = f"""
SELECT server || '/' || tool, run, max(wall_us) FROM entry
WHERE {_SINCE} AND kind = 'dispatch' AND step = 8
  AND server || '/' || tool IN (SELECT value FROM json_each(?5)) GROUP BY 1, 2
"""  # noqa: S608
_WITH_KEY: Final = """
SELECT action_id FROM metered
WHERE idempotency_key = ?1 AND idempotency_key <> '' AND agent = ?2 AND status IS NOT 'refused' AND wall_us >= ?3
  AND action_id <> ?4 LIMIT 1
"""
QUESTIONS: Final = {"dispatched": _DISPATCHED, "denied": _DENIED, "labelled": _LABELLED, "with key": _WITH_KEY}
_COUNTED: Final = msgspec.json.encode(sorted(map(str, COUNTED))).decode()


class _Done(msgspec.Struct, frozen=True):
    """A call of not long ago: the action, and through the sidecar with which log. ``since``: when Redis began to count
    its agent, if it counted it."""

    at: float
    action: str
    call: Call
    log: str
    since: float = 0.0


class _Seen(msgspec.Struct):
    """What a run has seen, which did something ``last``."""

    last: float
    labels: set[str] = set()


class _Did(msgspec.Struct):
    """Of one agent, which asked for something ``last``."""

    last: float
    windows: dict[str, Window] = {}
    labels: dict[str, float] = {}
    runs: dict[str, _Seen] = {}

    def window(self, name: str, span_s: int) -> Window:
        found = self.windows.get(name)
        if found is None:
            found = self.windows[name] = Window(span_s)
        return found

    def label(self, name: str, until: float, run: str, now: float) -> None:
        self.labels[name] = max(self.labels.get(name, 0.0), until)
        if run not in self.runs and len(self.runs) >= MAX_RUNS:
            self.runs = {one: seen for one, seen in self.runs.items() if seen.last > now - DAY}
        if run in self.runs or len(self.runs) < MAX_RUNS:
            seen = self.runs.setdefault(run, _Seen(now))
            seen.last = now
            seen.labels.add(name)
        else:
            self.labels[name] = max(self.labels[name], now + DAY)


class OwnCounts:
    """In the memory of this process; what :class:`edge.shared.Shared` does for several."""

    def __init__(self) -> None:
        self._did: dict[str, _Did] = {}

    def counts(self, agent: str) -> bool:
        """Whether *agent* is counted."""
        return agent in self._did

    def begin(self, agent: str, past: Past, now: float) -> None:
        """Count *agent* from now on; what it did before counts too. Whoever did nothing for a day is forgotten."""
        self._did = {
            name: did
            for name, did in self._did.items()
            if did.last > now - DAY or any(until > now for until in did.labels.values())
        }
        did = self._did[agent] = _Did(now)
        for (name, span_s, bucket), amount in past.counts.items():
            window = did.window(name, span_s)
            window.count(now)
            window.put(bucket, amount)
        for label, until, run in past.labels:
            did.label(label, until, run, now)

    def count(self, call: Call, in_flight: int, labels_keep_s: int, now: float) -> Counted:
        """*call* counts from now on. *in_flight*: calls of its agent, with this one."""
        did = self._did[call.agent]
        did.last = now
        before: list[int] = []
        for name, span_s, amount in (*call.counts, (DENIED, DAY, 0)):
            window = did.window(name, span_s)
            before.append(window.count(now))
            window.add(now, amount)
        did.labels = {label: until for label, until in did.labels.items() if until > now}
        seen = did.runs.get(call.run)
        labels = did.labels.keys() | (seen.labels if seen is not None else set())
        for label in call.labels:
            did.label(label, now + labels_keep_s, call.run, now)
        return Counted(call, now, Recalled.of(before, in_flight - 1, labels), now, whole=True, several=True)

    def uncount(self, counted: Counted) -> None:
        """The call did not happen. Its labels stay."""
        for name, span_s, amount in counted.call.counts:
            self._did[counted.call.agent].window(name, span_s).add(counted.at, -amount)

    def denied(self, agent: str, amount: int, now: float) -> None:
        """So much was refused to *agent*."""
        if agent in self._did:
            self._did[agent].window(DENIED, DAY).add(now, amount)


class Recall:
    """Of one gateway."""

    def __init__(
        self,
        records: Records,
        index: Index,
        shared: Shared | None,
        clock: SystemClock,
        labels_keep_s: int,
    ) -> None:
        self._records = records
        self._index = index
        self._shared = shared
        self._clock = clock
        self._labels_keep_s = labels_keep_s
        self._own = OwnCounts()
        self._sidecars: dict[str, str] = {}
        """Of each agent the log of its sidecar, or :data:`_SEVERAL`."""
        self._looking: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._reading: asyncio.Task[int] | None = None
        self._telling: dict[tuple[str, float], asyncio.Task[Past]] = {}
        self._spent = Nonces()
        self._recent: deque[_Done] = deque()
        self._claims: dict[str, tuple[str, float]] = {}
        """Of this process, in the last moments: which action has an idempotency key, and since when."""
        self._flying: set[str] = set()
        self._remember_recent()

    def _remember_recent(self) -> None:
        """After a restart: what was dispatched while signatures of before the restart are still valid."""
        now = self._clock.now()
        for _, line in self._records.ledger.since(int((now - REMEMBER_S) * _US)):
            at, entry = line.stamp.wall_us / _US, line.entry
            if isinstance(entry, entries.Dispatch) and entry.attempt == 1 and at > now - REMEMBER_S:
                self._spent.spend(entry.action_id, at + REMEMBER_S, at)
                if at > now - SEALED_S:
                    call = Call(entry.agent, entry.run, f"{entry.server}/{entry.tool}")
                    self._recent.append(_Done(at, entry.action_id, call, _log_of(entry.intent)))
                    if entry.idempotency_key:
                        self._claims[_key(entry.agent, entry.idempotency_key)] = (entry.action_id, at)

    async def count(self, asked: Asked, in_flight: int) -> tuple[Asked, Counted | None]:
        """Spend the action's id, and count it: what is asked with what its agent did through whatever sidecar, and
        what :meth:`uncount` takes back."""
        now = self._clock.now()
        self._spent.spend(asked.action.id, now + REMEMBER_S, now)
        call = _call(asked)
        asked.knowing(Recalled())  # what cannot be compared is refused before it counts
        if self._shared is not None:
            counted = await self._count_together(self._shared, asked, call, in_flight, now)
        elif await self._has_several(asked):
            counted = self._own.count(call, in_flight, self._labels_keep_s, self._clock.now())
        else:
            self._remember(asked, call, now)
            return asked, None
        self._remember(asked, call, now, counted.since)
        # The only sidecar of an agent knows all that it did, and better what is in flight.
        return asked.knowing(counted.before) if counted.several else asked, counted

    def _remember(self, asked: Asked, call: Call, now: float, since: float = 0.0) -> None:
        self._recent.append(_Done(now, asked.action.id, call, _log_of(asked.dispatch.intent), since))
        while self._recent[0].at < now - SEALED_S:
            self._recent.popleft()

    async def uncount(self, counted: Counted | None) -> None:
        """It was refused here. While Redis is away it stays counted."""
        if counted is None:
            return
        if self._shared is None:
            self._own.uncount(counted)
            return
        try:
            await self._shared.uncount(counted)
        except Unverifiable:
            return

    async def denied(self, agent: str, amount: int, log: str = "") -> None:
        """So much of *agent* was refused here, or by its sidecar that writes *log*."""
        if self._shared is None:
            if log and self._sidecars.get(agent, log) != log:
                self._sidecars[agent] = _SEVERAL
            self._own.denied(agent, amount, self._clock.now())
            return
        try:
            await self._shared.denied(agent, amount)
        except Unverifiable:
            return

    async def claim(self, asked: Asked) -> None:
        """Its idempotency key is that of *asked* alone, through whatever sidecar and whatever way, in a day; or
        :class:`Unverifiable`."""
        named, agent, action = asked.dispatch.idempotency_key, asked.agent.name, asked.action.id
        if not named:
            return
        now, key = self._clock.now(), _key(agent, named)
        await self._require_read()
        if self._shared is not None:
            holder = await self._shared.claim(key, action, DAY, SEALED_S, now)
        else:
            while self._claims and (oldest := next(iter(self._claims.items())))[1][1] < now - SEALED_S:
                del self._claims[oldest[0]]
            holder, _ = self._claims.setdefault(key, (action, now))
        if holder in (action, ""):
            for (before,) in await self._index.ask(_WITH_KEY, (named, agent, int((now - DAY) * _US), action)):
                holder = before
        if not holder:
            missing = "redis lost what it knew of idempotency keys a moment ago; ask again"
            raise Unverifiable(Reason.REPLAY_UNKNOWN, missing, int(SEALED_S))
        if holder != action:
            raise Unverifiable(Reason.REPLAYED, f"its idempotency_key was used before, by {visible(holder)}")

    async def release(self, asked: Asked) -> None:
        """Nothing happened, so the key is free again, if it was this action's."""
        if asked.dispatch.idempotency_key:
            key = _key(asked.agent.name, asked.dispatch.idempotency_key)
            if self._claims.get(key, ("", 0.0))[0] == asked.action.id:
                del self._claims[key]
            if self._shared is not None:
                await self._shared.release(key, asked.action.id)

    async def _require_read(self) -> None:
        """The index has read what there was at the start, or :class:`Unverifiable`: before that it knows too little."""
        if self._reading is None or (self._reading.done() and self._reading.exception() is not None):
            self._reading = asyncio.create_task(self._index.follow())
        if not self._reading.done():
            await asyncio.wait([self._reading], timeout=BEHIND_S)
        stuck = self._index.stuck.get(self._records.ledger.origin, "")
        if not self._reading.done() or self._reading.exception() is not None or stuck:
            told = f"the ledgers are being read again since the start{stuck and ': '}{stuck}; ask again"
            raise Unverifiable(Reason.STALE_FACTS, told)

    # Several gateways

    async def _count_together(self, shared: Shared, asked: Asked, call: Call, in_flight: int, now: float) -> Counted:
        counted = await shared.count(
            call,
            in_flight,
            self._labels_keep_s,
            _log_of(asked.dispatch.intent),
            nonce=f"action {asked.action.id}",
            created_at=asked.sender.claim.created_at,
            expires_at=now + REMEMBER_S,
            now=now,
        )
        self._flying.add(call.agent)
        if counted.whole:
            return counted
        past = await self._told_together(shared, asked, counted.since)
        several, before = counted.several or past.several, _with(counted.before, call, past, counted.at)
        return msgspec.structs.replace(counted, before=before, several=several)

    async def _told_together(self, shared: Shared, asked: Asked, since: float) -> Past:
        """What its agent did before, which Redis knows from then on; looked up once for all calls that wait for it."""
        agent, log = asked.agent.name, _log_of(asked.dispatch.intent)

        async def tell() -> Past:
            past = await self._past(agent, asked.bundle.inventory, since, since)
            past.several = len({log, *self._logs(asked)}) > 1
            await shared.seed(agent, past, self._labels_keep_s, since)
            return past

        task = self._telling.get((agent, since))
        if task is None:
            task = self._telling[agent, since] = asyncio.create_task(tell())
            task.add_done_callback(lambda _: self._telling.pop((agent, since), None))
        return await asyncio.shield(task)

    async def work(self, busy: Mapping[str, int]) -> None:
        """Tell the others, for ever, how many calls of each agent are in flight here."""
        while self._shared is not None:
            await asyncio.sleep(FLYING_EVERY_S)
            told = {agent: busy.get(agent, 0) for agent in self._flying.union(busy)}
            self._flying.clear()
            if told:
                await self._shared.flying(told)

    # One gateway

    async def _has_several(self, asked: Asked) -> bool:
        """Whether the agent uses, or used, more than one sidecar; if so it is counted from now on."""
        agent, log = asked.agent.name, _log_of(asked.dispatch.intent)
        if self._sidecars.get(agent) == log:
            return False
        if self._own.counts(agent):
            return True
        known = {log, self._sidecars.get(agent, log), *self._logs(asked)}
        known |= {done.log for done in self._recent if done.call.agent == agent}
        if len(known) == 1:
            self._sidecars[agent] = log
            return False
        self._sidecars[agent] = _SEVERAL  # from here on its other calls wait for the past
        async with self._looking[agent]:
            if not self._own.counts(agent):
                past = await self._past(agent, asked.bundle.inventory, self._clock.now())
                self._own.begin(agent, past, self._clock.now())
        self._looking.pop(agent, None)
        return True

    def _logs(self, asked: Asked) -> Iterator[str]:
        """The logs of all sidecars through which this agent ever asked."""
        store, sender = self._records.store, asked.sender.workload
        for name in {asked.agent.name, sender.name}:
            own = log_of(sender.trust_domain, "sidecar", name)
            yield from (one.origin for one in store.within(LogRecord, f"{own}/"))
            if store.get(LogRecord, own) is not None:
                yield own

    # The past

    async def _past(self, agent: str, inventory: Inventory, until: float, counted_since: float = 0.0) -> Past:
        """What the ledgers say that *agent* did before *until*; the last of what went through here from memory, but for
        what Redis counts already (*counted_since*)."""
        await self._require_read()
        await self._index.follow()
        past, keep_s = Past(), self._labels_keep_s
        recent = [done for done in self._recent if done.call.agent == agent]
        known = msgspec.json.encode([done.action for done in recent]).decode()
        manifests = {
            f"{name}/{tool.name}": tool.manifest
            for name, server in inventory.servers.items()
            for tool in server.tools.values()
        }

        def within(span_s: int) -> tuple[object, ...]:
            """The values of :data:`_SINCE`, from the oldest part of a window that counts then."""
            oldest = (int(until * BUCKETS / span_s) - BUCKETS) * span_s / BUCKETS
            return (agent, int(oldest * _US), int(until * _US), known)

        for span, span_s in SPANS:
            parts = (*within(span_s), BUCKETS, span_s * _US)
            for tool, bucket, count in await self._index.ask(_DISPATCHED, parts):
                past.add(span, span_s, bucket, count)
                past.add(f"{span} {tool}", span_s, bucket, count)
                if span_s == DAY and tool in manifests:
                    past.add(SPENT, DAY, bucket, count * manifests[tool].cents)
        for bucket, count in await self._index.ask(_DENIED, (*within(DAY), BUCKETS, DAY * _US, _COUNTED)):
            past.add(DENIED, DAY, bucket, count)
        labelled = msgspec.json.encode([tool for tool, manifest in manifests.items() if manifest.labels]).decode()
        for tool, run, last_us in await self._index.ask(_LABELLED, (*within(max(DAY, keep_s)), labelled)):
            past.labels += [(label, last_us / _US + keep_s, run) for label in manifests[tool].labels]
        for done in (one for one in recent if not counted_since or one.since != counted_since):
            manifest = manifests.get(done.call.tool)
            cents, labels = (manifest.cents, manifest.labels) if manifest is not None else (0, ())
            for name, span_s, amount in msgspec.structs.replace(done.call, cents=cents).counts:
                past.add(name, span_s, int(done.at * BUCKETS / span_s), amount)
            past.labels += [(label, done.at + keep_s, done.call.run) for label in labels]
        return past


def _call(asked: Asked) -> Call:
    action = asked.action
    manifest = asked.bundle.inventory.tool(action.server, action.tool).manifest
    return Call(asked.agent.name, action.run, action.name, tuple(manifest.labels), manifest.cents)


def _key(agent: str, named: str) -> str:
    return f"key {agent} {named}"


def _log_of(intent: str) -> str:
    return intent.partition("#")[0]


def _with(before: Recalled, call: Call, past: Past, at: float) -> Recalled:
    """*before* with the *past* that counted only after it."""
    did = OwnCounts()
    did.begin(call.agent, past, at)
    old = did.count(call, 1, 0, at).before
    added = {
        name: getattr(before, name) + getattr(old, name)
        for name in Recalled.__struct_fields__
        if name not in ("labels", "in_flight")
    }
    return msgspec.structs.replace(before, **added, labels=tuple(sorted({*before.labels, *old.labels})))
