"""Who must not act: kills, revocations and open circuit breakers, asked before every step that could do harm."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, Literal, get_args

import msgspec

from edge.clock import SystemClock
from gateway.records import Records
from gateway.state import AgentRecord, Killed, Revoked, Tripped
from trust.facts import Agent
from trust.feed import Stopped
from trust.identity.keys import PublicKey, unb64url
from trust.ledger import entries
from trust.reasons import Reason, Unverifiable, visible
from trust.standing.breaker import Trip

EVERYBODY: Final = "all"
TEAM: Final = "team:"
What = Literal["agent", "key", "token", "root", "session", "principal"]
_ID: Final = re.compile(r"[A-Za-z0-9_.@-]{1,128}")


class Stops:
    """Commands that record, and questions that read what was recorded."""

    def __init__(self, records: Records, clock: SystemClock) -> None:
        self._records = records
        self._store = records.store
        self._clock = clock

    # Commands

    async def kill(self, target: str, by: str, reason: str) -> str:
        """Stop an agent, a team or everybody; what *target* was taken for."""
        _require_reason(reason)
        async with self._records.deciding:
            found = self._target(target)
            await self._records.change(entries.Kill("killed", found, by, reason))
        return found

    async def unkill(self, target: str, by: str, reason: str) -> str:
        _require_reason(reason)
        async with self._records.deciding:
            found = next((name for name in (target, TEAM + target) if self._store.get(Killed, name)), None)
            if found is None:
                raise Unverifiable(Reason.NOT_FOUND, f'"{visible(target)}" is not stopped')
            await self._records.change(entries.Kill("lifted", found, by, reason))
        return found

    def _target(self, target: str) -> str:
        if target == EVERYBODY or self._store.get(AgentRecord, target) is not None:
            return target
        team = target.removeprefix(TEAM)
        if any(team in record.agent.teams for record in self._store.all(AgentRecord)):
            return TEAM + team
        raise Unverifiable(Reason.NOT_FOUND, f'no agent and no team "{visible(target)}" is registered')

    async def revoke(self, what: str, name: str, by: str, reason: str) -> None:
        """*name* is not believed any more, for good."""
        if what not in get_args(What):
            raise Unverifiable(
                Reason.MALFORMED_REQUEST, f"{visible(what)}: expected one of {', '.join(get_args(What))}"
            )
        if _ID.fullmatch(name) is None:
            raise Unverifiable(Reason.MALFORMED_REQUEST, f'"{visible(name)}" is not the name of a {what}')
        _require_reason(reason)
        async with self._records.deciding:
            if what == "agent" and self._store.get(AgentRecord, name) is None:
                raise Unverifiable(Reason.NOT_FOUND, f'no agent "{visible(name)}" is registered')
            entry = entries.Revocation(msgspec.convert(what, What), name, by, reason)
            await self._records.change(entry)

    async def trip(self, trip: Trip) -> None:
        """A circuit breaker opens; that it is open already changes nothing."""
        async with self._records.deciding:
            if self._open(trip.target) is None:
                entry = entries.Breaker(trip.target, trip.rule, trip.count, trip.until_s * 1_000_000)
                await self._records.change(entry)

    # Questions

    def revoked(self, what: What, name: str) -> Revoked | None:
        return self._store.get(Revoked, f"{what}:{name}")

    def killed(self, agent: Agent) -> Killed | None:
        names = (EVERYBODY, agent.name, *(TEAM + team for team in agent.teams))
        return next((found for name in names if (found := self._store.get(Killed, name))), None)

    def of(self, agent: Agent) -> Stopped | None:
        """Why *agent* must not act, if it must not."""
        revoked = self.revoked("agent", agent.name) or self.revoked("principal", agent.owner)
        if revoked is not None:
            return Stopped(Reason.REVOKED, f"{revoked.what} {revoked.id}: {revoked.reason}")
        killed = self.killed(agent)
        return None if killed is None else Stopped(Reason.KILLED, killed.reason)

    def require(self, agent: Agent) -> None:
        """Nothing, if *agent* may act, or :class:`Unverifiable`."""
        stopped = self.of(agent)
        if stopped is not None:
            raise Unverifiable(Reason(stopped.reason), stopped.detail)

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

    def breakers(self) -> dict[str, int]:
        """Open circuit breakers: target → until when, Unix seconds."""
        now = self._clock.wall_us()
        return {t.target: t.until_us // 1_000_000 for t in self._records.cached(Tripped) if t.until_us > now}

    def all_revoked(self) -> tuple[str, ...]:
        """``what:id`` of everything that a sidecar checks itself."""
        return tuple(f"{r.what}:{r.id}" for r in self._records.cached(Revoked) if r.what != "session")

    def everyone_stopped(self) -> tuple[str, ...]:
        """Names of agents that must not act; what a node compares tickets with."""
        return tuple(r.agent.name for r in self._records.cached(AgentRecord) if self.of(r.agent) is not None)


def _require_reason(reason: str) -> None:
    if not reason.strip():
        raise Unverifiable(Reason.MALFORMED_REQUEST, "say why: the reason is recorded, and told")


def circuit_open(target: str, rule: str, left_s: float) -> Unverifiable:
    retry = max(1, int(left_s) + 1)
    return Unverifiable(Reason.CIRCUIT_OPEN, f"{target} ({rule}); open for {retry} s more", retry)


def thumbprint(key: str) -> str:
    """The name of a key (raw, base64url) in revocations and chains."""
    return PublicKey(unb64url(key)).thumbprint
