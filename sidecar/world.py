"""What the sidecar knows from the gateway: the verified bundle and the facts feed, and how old they are."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Final

from edge.client import Broken, Unreachable
from edge.clock import SystemClock
from sidecar.identity import Identity
from trust import feed
from trust.feed import Facts
from trust.ledger import entries
from trust.ledger.tiles import write_atomically
from trust.policy import bundle
from trust.policy.bundle import BundleRejected, Compiled
from trust.reasons import Unverifiable

RETRY_S: Final = 0.5
POLL_S: Final = 20.0
_log = logging.getLogger("licet.sidecar")


class World:
    """Two tasks keep it current; decisions only read. What cannot be verified changes nothing."""

    def __init__(self, identity: Identity, directory: Path, clock: SystemClock) -> None:
        self._identity = identity
        self._directory = directory
        self._clock = clock
        self._received = float("-inf")
        self.facts: Facts | None = None
        self.bundle: Compiled | None = None
        self.loaded: list[entries.Bundle] = []
        """Bundles that became active and are not in the ledger yet."""
        self._load_last_good()

    def age_s(self) -> float:
        """Seconds since the feed last said something that could be verified."""
        return self._clock.mono() - self._received

    def _load_last_good(self) -> None:
        path = self._directory / "active.bundle"
        if path.exists():
            try:
                self._take(path.read_bytes())
            except (Unverifiable, BundleRejected) as bad:
                _log.error("the kept bundle is not usable: %s", bad)

    def _take(self, data: bytes) -> None:
        """Make the bundle in *data* active if it verifies, compiles and is newer than what there is."""
        sealed = bundle.open_bundle(data, self._identity.gateway)
        if self.bundle is not None and sealed.content.version <= self.bundle.content.version:
            return
        compiled = bundle.compile_bundle(sealed.content, sealed.digest)
        write_atomically(self._directory / f"{sealed.digest}.bundle", data, flush=True)
        write_atomically(self._directory / "active.bundle", data, flush=True)
        self.bundle = compiled
        self.loaded.append(
            entries.Bundle("loaded", sealed.content.version, sealed.digest, not_after=sealed.content.not_after)
        )

    async def follow_bundle(self) -> None:
        """Long-poll for the next bundle, for ever."""
        while True:
            known = self.bundle.digest if self.bundle else ""
            try:
                async with self._identity.send(
                    "GET",
                    f"/v1/bundle?wait={POLL_S:.0f}",
                    headers={"If-None-Match": f'"{known}"'} if known else {},
                    timeout_s=POLL_S + 10,
                ) as reply:
                    data = await reply.read()
                if reply.status == 200:
                    await asyncio.to_thread(self._take, data)
                elif reply.status != 304:
                    await asyncio.sleep(RETRY_S)
            except (Unreachable, Broken):
                await asyncio.sleep(RETRY_S)
            except (Unverifiable, BundleRejected) as bad:
                _log.error("a bundle was not accepted, the last good one stays: %s", bad)
                await asyncio.sleep(RETRY_S)

    async def follow_feed(self) -> None:
        """Read the feed, for ever."""
        while True:
            try:
                async with self._identity.send("GET", "/v1/feed", timeout_s=3600.0) as reply:
                    if reply.status == 200:
                        await self._read_feed(reply.chunks())
            except (Unreachable, Broken):
                pass
            await asyncio.sleep(RETRY_S)

    async def _read_feed(self, chunks: object) -> None:
        rest = b""
        async for chunk in chunks:  # type: ignore[attr-defined]
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._hear(line)

    def _hear(self, line: bytes) -> None:
        after = self.facts.as_of_ms if self.facts else 0
        try:
            self.facts = feed.open_line(
                line, self._identity.gateway, agent=self._identity.name, after_ms=after, now=self._clock.now()
            )
        except Unverifiable as bad:
            _log.warning("a line of the feed was not believed: %s", bad)
            return
        self._received = self._clock.mono()
