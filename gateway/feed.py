"""Pushing facts: a signed line to every sidecar and node once a second, and at once when something changed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from edge.clock import SystemClock
from gateway.bundles import Bundles
from gateway.records import Records
from gateway.registry import Registry
from gateway.standings import Standings
from gateway.stops import Stops
from gateway.subjects import Subjects
from trust import feed
from trust.feed import Facts
from trust.identity.keys import SecretKey
from trust.ledger import entries
from trust.ledger.entries import AnyEntry

_ELSEWHERE: Final = (entries.Witness, entries.Approval, entries.Deputy, entries.SignIn, entries.SavedQuery)
"""Changes on which nothing depends that is told here; they are many."""


class Feed:
    """Signals travel by one event that is replaced each time it is set."""

    def __init__(
        self,
        records: Records,
        registry: Registry,
        stops: Stops,
        standings: Standings,
        subjects: Subjects,
        bundles: Bundles,
        key: SecretKey,
        clock: SystemClock,
        trust_domain: str,
    ) -> None:
        self._records = records
        self._registry = registry
        self._stops = stops
        self._standings = standings
        self._subjects = subjects
        self._bundles = bundles
        self._key = key
        self._clock = clock
        self._trust_domain = trust_domain
        self._changed = asyncio.Event()
        self._last_ms = 0
        self.closing = False
        records.listen(self._on_change)

    def _on_change(self, entry: AnyEntry) -> None:
        if not isinstance(entry, _ELSEWHERE):
            self.wake()

    def wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _moment(self) -> int:
        self._last_ms = max(self._last_ms + 1, int(self._clock.now() * 1000))
        return self._last_ms

    def facts(self, agent: str, revoked: tuple[str, ...] | None = None) -> Facts:
        """What holds for *agent* now."""
        record = self._registry.agent(agent)
        return Facts(
            as_of_ms=self._moment(),
            version=self._records.version,
            agent=record.agent,
            standing=self._standings.standing(agent),
            bundle=self._bundles.sealed.digest if self._bundles.sealed else "",
            stopped=self._stops.of(record.agent),
            rotate=record.rotate,
            heard=self._standings.heard(agent, f"{self._trust_domain}/sidecar/{record.via or agent}"),
            breakers=self._stops.breakers(agent),
            epoch=record.epoch,
            keys=tuple(key.key for key in record.keys),
            revoked=revoked,
            erasures=self._subjects.erasures,
        )

    async def lines(self, agent: str) -> AsyncIterator[bytes]:
        """For a sidecar, until the gateway closes."""
        told: tuple[str, ...] | None = None
        while not self.closing:
            changed = self._changed
            revoked = self._stops.revoked_links()
            yield feed.seal(self.facts(agent, revoked if revoked != told else None), self._key)
            told = revoked
            await self._pause(changed)

    async def stops(self, node: str) -> AsyncIterator[bytes]:
        """For a node, until the gateway closes."""
        while not self.closing:
            changed = self._changed
            stopped = self._stops.everyone_stopped()
            yield feed.seal(feed.Stops(self._moment(), self._records.version, node, stopped), self._key)
            await self._pause(changed)

    async def _pause(self, changed: asyncio.Event) -> None:
        try:
            async with asyncio.timeout(feed.HEARTBEAT_S):
                await changed.wait()
        except TimeoutError:
            return
