"""Pushing facts: a signed line to every sidecar and node once a second, and at once when something changed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Final

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
from trust.ledger.shipment import log_of

ALIVE: Final = b"\n"
"""A line that says nothing but that somebody is there."""
BACK_MS: Final = 1000
"""Nothing but somebody who sets it takes a clock back so far."""
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
        trust_domain: str,
    ) -> None:
        self._records = records
        self._registry = registry
        self._stops = stops
        self._standings = standings
        self._subjects = subjects
        self._bundles = bundles
        self._key = key
        self._trust_domain = trust_domain
        self._changed = asyncio.Event()
        self.closing = False
        records.listen(self._on_change)

    def _on_change(self, entry: AnyEntry) -> None:
        if not isinstance(entry, _ELSEWHERE):
            self.wake()

    def wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def facts(self, agent: str, as_of_ms: int, revoked: tuple[str, ...] | None = None, instance: str = "") -> Facts:
        """What holds for *agent*, as far as it is known here; that is as of *as_of_ms*. *instance*: of its sidecar."""
        record = self._registry.agent(agent)
        return Facts(
            as_of_ms=as_of_ms,
            version=self._records.told_version,
            agent=record.agent,
            standing=self._standings.standing(agent),
            bundle=sealed.digest if (sealed := self._bundles.of(record.namespace).sealed) else "",
            stopped=self._stops.of(record.agent),
            rotate=record.rotate,
            heard=self._standings.heard(agent, log_of(self._trust_domain, "sidecar", record.via or agent, instance)),
            breakers=self._stops.breakers(agent, record.namespace),
            epoch=record.epoch,
            keys=tuple(key.key for key in record.keys),
            revoked=revoked,
            erasures=self._subjects.erasures,
        )

    async def lines(self, agent: str, instance: str = "") -> AsyncIterator[bytes]:
        """For a sidecar, until the gateway closes."""
        told: tuple[str, ...] | None = None
        async for moment in self._moments():
            if moment is None:
                yield ALIVE
                continue
            revoked = self._stops.revoked_links()
            facts = self.facts(agent, moment, revoked if revoked != told else None, instance)
            yield feed.seal(facts, self._key)
            told = revoked

    def _told_to(self, node: str, stopped: tuple[str, ...]) -> tuple[str, ...]:
        """A node of one namespace hears of its agents."""
        namespace = self._registry.node(node).namespace
        if not namespace:
            return stopped
        return tuple(name for name in stopped if self._registry.agent(name).namespace == namespace)

    async def stops(self, node: str) -> AsyncIterator[bytes]:
        """For a node, until the gateway closes."""
        async for moment in self._moments():
            if moment is None:
                yield ALIVE
                continue
            stopped = self._told_to(node, self._stops.everyone_stopped())
            yield feed.seal(feed.Stops(moment, self._records.told_version, node, stopped), self._key)

    async def _moments(self) -> AsyncIterator[int | None]:
        """As of when each line of one feed is, in Unix milliseconds: each later than the one before, unless this clock
        was put back. While it is not
        known here what other gateways changed there is none (None): an old truth must not look new."""
        last, heard_before = 0, float("-inf")
        while not self.closing:
            changed, heard = self._changed, self._records.heard()
            if heard > heard_before:
                moment = int((time.time() - (time.monotonic() - heard)) * 1000)
                went_back = moment < last - BACK_MS
                heard_before, last = heard, moment if went_back else max(last + 1, moment)
                yield last
            else:
                yield None
            await self._pause(changed)

    async def _pause(self, changed: asyncio.Event) -> None:
        try:
            async with asyncio.timeout(feed.HEARTBEAT_S):
                await changed.wait()
        except TimeoutError:
            return
