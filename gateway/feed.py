"""Pushing facts: a signed line to every sidecar once a second, and at once when something changed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from edge.clock import SystemClock
from gateway.bundles import Bundles
from gateway.records import Records
from gateway.registry import Registry
from trust import feed
from trust.feed import Facts
from trust.identity.keys import SecretKey
from trust.ledger.entries import AnyEntry
from trust.standing.score import NEWCOMER


class Feed:
    """Signals travel by one event that is replaced each time it is set."""

    def __init__(
        self, records: Records, registry: Registry, bundles: Bundles, key: SecretKey, clock: SystemClock
    ) -> None:
        self._registry = registry
        self._bundles = bundles
        self._key = key
        self._clock = clock
        self._changed = asyncio.Event()
        self._last_ms = 0
        self.closing = False
        records.listen(self._on_change)

    def _on_change(self, _entry: AnyEntry) -> None:
        self.wake()

    def wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def facts(self, agent: str) -> Facts:
        """What holds for *agent* now."""
        record = self._registry.agent(agent)
        killed = self._registry.killed(agent)
        digest = self._bundles.sealed.digest if self._bundles.sealed else ""
        self._last_ms = max(self._last_ms + 1, int(self._clock.now() * 1000))
        return Facts(self._last_ms, record.agent, NEWCOMER, digest, killed.reason if killed else None)

    async def lines(self, agent: str) -> AsyncIterator[bytes]:
        """Until the gateway closes."""
        while not self.closing:
            changed = self._changed
            yield feed.seal(self.facts(agent), self._key)
            try:
                async with asyncio.timeout(feed.HEARTBEAT_S):
                    await changed.wait()
            except TimeoutError:
                continue
