"""Who must not act: kills, revocations and open circuit breakers, asked before every step that could do harm."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final, Literal, get_args

import msgspec

from edge.clock import SystemClock
from gateway.fold import namespace_of
from gateway.records import Records
from gateway.state import AgentRecord, KeyHolder, Killed, Revoked, Root, ServerRecord, Sponsored, Tripped
from trust.facts import Agent
from trust.feed import Stopped
from trust.identity.delegation import MAX_LIFE_S
from trust.identity.keys import PublicKey, unb64url
from trust.ledger import entries
from trust.reasons import Reason, Unverifiable, visible
from trust.standing.breaker import Trip

EVERYBODY: Final = "all"
TEAM: Final = "team:"
What = Literal["agent", "key", "token", "root", "session", "principal"]
_FOR_EVER: Final = frozenset({"key", "principal"})
_FOR_A_WHILE: Final = frozenset({"token", "root"})
_NAME: Final = re.compile(r"[A-Za-z0-9_.@-]{1,128}")
_HASH: Final = re.compile(r"[A-Za-z0-9_-]{43}")
MAX_REASON: Final = 1_000
_NAMES: Final = {
    "key": (_HASH, "its thumbprint, 43 letters, digits, - and _, as `licet agents show` prints it"),
    "token": (_HASH, "its hash, 43 letters, digits, - and _, as `licet agents delegate` and the ledger have it"),
    "root": (re.compile(r"root_[A-Za-z0-9]{1,64}"), "its id, which begins with root_"),
    "session": (re.compile(r"ses_[A-Za-z0-9]{1,64}"), "its id, which begins with ses_"),
}


class Stops:
    """Commands that record, and questions that read what was recorded."""

    def __init__(self, records: Records, clock: SystemClock) -> None:
        self._records = records
        self._store = records.store
        self._clock = clock
        self._stopped: tuple[tuple[int, ...], tuple[str, ...]] = (), ()

    # Commands

    async def kill(self, target: str, by: str, reason: str) -> tuple[str, str]:
        """Stop an agent, a team or everybody; (what *target* was taken for, what to know beside it)."""
        _require_reason(reason)
        async with self._records.deciding:
            found = self._target(target, by)
            before = self._store.get(Killed, found)
            taken_over = before is not None and before.namespace and not self._within(by)  # else that could be undone
            if before is not None and not taken_over:
                return found, f"it was stopped already, by {before.by}: {before.reason}"
            await self._records.change(entries.Kill("killed", found, by, reason))
        return found, ""

    async def unkill(self, target: str, by: str, reason: str) -> tuple[str, str]:
        """Let *target* go on; (what it was taken for, what keeps it from acting still)."""
        _require_reason(reason)
        async with self._records.deciding:
            names = (target,) if self._within(by) else (target, TEAM + target)
            found = next((name for name in names if self._store.get(Killed, name)), None)
            before = self._store.get(Killed, found) if found is not None else None
            if before is not None and self._within(by) and before.namespace != self._within(by):
                raise Unverifiable(
                    Reason.NOT_YOURS, f"{visible(target)} was stopped by the mesh, which alone lifts that"
                )
            if found is None:
                raise Unverifiable(Reason.NOT_FOUND, f'"{visible(target)}" is not stopped{self._instead(target, by)}')
            await self._records.change(entries.Kill("lifted", found, by, reason))
        record = self._store.get(AgentRecord, found)
        still = None if record is None else self.of(record.agent)
        return found, "" if still is None else f"it still may not act: {still.reason}: {still.detail}"

    def _instead(self, target: str, by: str) -> str:
        """What somebody may have meant who wants *target* to go on."""
        record = self._store.get(AgentRecord, target)
        if record is not None:
            revoked = self.revoked_of(record.agent)
            if revoked is not None:
                return f" but revoked ({revoked.what} {revoked.id}: {revoked.reason}), which is for good"
            killed = self.killed(record.agent)
            if killed is not None:
                return f" by itself, but {killed.target} is: unkill {killed.target}"
        there = {record.agent.name for record in self._seen(by)} if self._within(by) else None
        stopped = ", ".join(
            killed.target
            for killed in self._store.all(Killed)
            if there is None or killed.target in there or killed.target.startswith(f"{TEAM}{self._within(by)}/")
        )
        stopped = stopped or "nobody"
        return f"; stopped now: {stopped}"

    def _within(self, by: str) -> str:
        """The namespace of who asks; empty: the mesh."""
        return namespace_of(self._store, by)

    def _seen(self, by: str) -> Iterator[AgentRecord]:
        """The agents that are there for who asks."""
        within = self._within(by)
        return (record for record in self._store.all(AgentRecord) if within in ("", record.namespace))

    def _target(self, target: str, by: str) -> str:
        if target == EVERYBODY or self._store.get(AgentRecord, target) is not None:
            return target
        team = target.removeprefix(TEAM)
        if any(team in record.agent.teams for record in self._store.all(AgentRecord)):
            return TEAM + team
        agents = list(self._seen(by))
        teams = sorted({TEAM + team for record in agents for team in record.agent.teams})
        everybody = [] if self._within(by) else [EVERYBODY]
        known = ", ".join([*(record.agent.name for record in agents[:20]), *teams[:20], *everybody])
        told = f'no agent and no team "{visible(target)}" is registered; what can be stopped: {known}'
        raise Unverifiable(Reason.NOT_FOUND, told)

    async def revoke(self, what: str, name: str, by: str, reason: str) -> str:
        """*name* is not believed any more, for good; what to know beside that."""
        if what not in get_args(What):
            raise Unverifiable(
                Reason.MALFORMED_REQUEST, f"{visible(what)}: expected one of {', '.join(get_args(What))}"
            )
        form, expected = _NAMES.get(what, (_NAME, "letters, digits and _.@-"))
        if form.fullmatch(name) is None:
            raise Unverifiable(Reason.MALFORMED_REQUEST, f'"{visible(name)}" names no {what}; expected {expected}')
        _require_reason(reason)
        async with self._records.deciding:
            if what == "agent" and self._store.get(AgentRecord, name) is None:
                known = ", ".join(record.agent.name for record in self._seen(by)) or "none"
                raise Unverifiable(Reason.NOT_FOUND, f'no agent "{visible(name)}" is registered; registered: {known}')
            before = self._store.get(Revoked, f"{what}:{name}")
            if before is not None:
                return f"it was revoked already, by {before.by}: {before.reason}"
            note = self._require_likely(what, name)
            entry = entries.Revocation(msgspec.convert(what, What), name, by, reason)
            await self._records.change(entry)
        return note

    def _require_likely(self, what: str, name: str) -> str:
        """It is for good, so what the gateway would know must be known: whose principals and roots there are. Keys and
        tokens may be made where nobody sees them: of those, a doubt."""
        known: list[str] = []
        match what:
            case "key":
                known = [thumbprint(holder.key) for holder in self._store.all(KeyHolder)]
            case "token":
                known = [root.token for root in self._store.all(Root)]
            case "principal":
                known = sorted({record.agent.owner for record in self._store.all(AgentRecord)})
            case "root":
                known = [root.root for root in self._store.all(Root)]
            case _:
                return ""
        if name in known:
            return ""
        if what in ("key", "token"):
            return f"no {what} of this name was given out here; if you meant one that was, is it spelled right?"
        told = ", ".join(known[:10]) or "none"
        raise Unverifiable(Reason.NOT_FOUND, f'no {what} "{visible(name)}" is known here; known: {told}')

    async def trip(self, trip: Trip) -> None:
        """A circuit breaker opens; that it is open already changes nothing."""
        async with self._records.deciding:
            if self._open(trip.target) is None:
                entry = entries.Breaker(trip.target, trip.rule, trip.count, trip.until_s * 1_000_000)
                await self._records.change(entry)

    # Questions

    def revoked(self, what: What, name: str) -> Revoked | None:
        return self._store.get(Revoked, f"{what}:{name}")

    def revoked_of(self, agent: Agent) -> Revoked | None:
        return self.revoked("agent", agent.name) or self.revoked("principal", agent.owner)

    def killed(self, agent: Agent) -> Killed | None:
        names = (EVERYBODY, agent.name, *(TEAM + team for team in agent.teams))
        return next((found for name in names if (found := self._store.get(Killed, name))), None)

    def of(self, agent: Agent) -> Stopped | None:
        """Why *agent* must not act, if it must not."""
        revoked = self.revoked_of(agent)
        if revoked is not None:
            return Stopped(Reason.REVOKED, f"{revoked.what} {revoked.id}: {revoked.reason}")
        killed = self.killed(agent)
        return None if killed is None else Stopped(Reason.KILLED, killed.reason)

    def require(self, agent: Agent, whose: str = "") -> None:
        """Nothing, if *agent* may act, or :class:`Unverifiable`, whose detail begins with *whose*."""
        stopped = self.of(agent)
        if stopped is not None:
            raise Unverifiable(Reason(stopped.reason), whose + stopped.detail)

    def require_believed(self, pairs: Iterable[tuple[What, str]]) -> None:
        """Nothing, if none of *pairs* was revoked."""
        for what, name in pairs:
            revoked = self.revoked(what, name)
            if revoked is not None:
                raise Unverifiable(Reason.REVOKED, f"{what} {visible(name)}: {revoked.reason}")

    def require_closed(self, agent: str, server: str) -> None:
        """Nothing, if no circuit breaker is open between *agent* and *server*."""
        for target in (f"agent:{agent}", f"server:{server}"):
            tripped = self._open(target)
            if tripped is not None:
                raise circuit_open(tripped.target, tripped.rule, tripped.until_us / 1e6 - self._clock.now())

    def _open(self, target: str) -> Tripped | None:
        found = self._store.get(Tripped, target)
        return found if found is not None and found.until_us > self._clock.wall_us() else None

    def breakers(self, agent: str, namespace: str) -> dict[str, int]:
        """Open circuit breakers that concern *agent*: target → until when, Unix seconds."""
        now, own = self._clock.wall_us(), f"agent:{agent}"
        return {
            one.target: one.until_us // 1_000_000
            for one in self._records.cached(Tripped)
            if one.until_us > now and (one.target == own or self._may_call(one.target, namespace))
        }

    def _may_call(self, target: str, namespace: str) -> bool:
        """Whether a breaker's *target* is a server that is there for agents of *namespace*."""
        kind, _, name = target.partition(":")
        server = self._store.get(ServerRecord, name) if kind == "server" else None
        return server is not None and server.namespace in ("", namespace)

    def revoked_links(self) -> tuple[str, ...]:
        """``what:id`` of what delegation chains are made of, for sidecars. Tokens and roots only for as long as one
        that was made before could live."""
        since = self._clock.wall_us() - MAX_LIFE_S * 1_000_000
        return tuple(
            f"{r.what}:{r.id}"
            for r in self._records.cached(Revoked)
            if r.what in _FOR_EVER or (r.what in _FOR_A_WHILE and r.at_us > since)
        )

    def everyone_stopped(self) -> tuple[str, ...]:
        """Names of agents that must not act; what a node compares tickets with."""
        version = self._store.version
        now = (version(AgentRecord), version(Killed), version(Revoked))
        if self._stopped[0] != now:
            self._stopped = now, tuple(sorted(self._all_stopped()))
        return self._stopped[1]

    def _all_stopped(self) -> set[str]:
        """From what was stopped: that is little, and agents may be many."""
        found: set[str] = set()
        teams: set[str] = set()
        for killed in self._store.all(Killed):
            if killed.target.startswith(TEAM):
                teams.add(killed.target.removeprefix(TEAM))
            elif killed.target != EVERYBODY:
                found.add(killed.target)
        for revoked in self._store.all(Revoked):
            if revoked.what == "agent":
                found.add(revoked.id)
            elif revoked.what == "principal":
                own = self._store.get(Sponsored, revoked.id)
                for sponsored in (*([own] if own else []), *self._store.within(Sponsored, f"{revoked.id}/")):
                    found.update(sponsored.agents)
        everybody = self._store.get(Killed, EVERYBODY) is not None
        if everybody or teams:
            found.update(
                one.agent.name
                for one in self._records.cached(AgentRecord)
                if everybody or not teams.isdisjoint(one.agent.teams)
            )
        return found


def _require_reason(reason: str) -> None:
    if not reason.strip():
        raise Unverifiable(Reason.MALFORMED_REQUEST, "say why: the reason is recorded, and told")
    if len(reason) > MAX_REASON:
        raise Unverifiable(
            Reason.MALFORMED_REQUEST, f"a reason of {len(reason)} characters; expected up to {MAX_REASON}"
        )


def circuit_open(target: str, rule: str, left_s: float) -> Unverifiable:
    retry = max(1, int(left_s) + 1)
    return Unverifiable(Reason.CIRCUIT_OPEN, f"{target} ({rule}); open for {retry} s more", retry)


def thumbprint(key: str) -> str:
    """The name of a key (raw, base64url) in revocations and chains."""
    return PublicKey(unb64url(key)).thumbprint
