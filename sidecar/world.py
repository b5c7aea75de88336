"""What the sidecar knows from the gateway: the verified bundle and the facts feed, and how old they are."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edge.backoff import Backoff
from edge.client import Broken, Unreachable
from edge.clock import SystemClock
from edge.durable import DurableLedger
from sidecar.identity import Identity, detail_of
from sidecar.shipping import Shipper
from trust import feed
from trust.feed import Facts, Stopped
from trust.ledger import entries
from trust.ledger.tiles import write_atomically
from trust.ledger.writer import LedgerUnavailable
from trust.policy import bundle
from trust.policy.bundle import BundleRejected, Compiled
from trust.reasons import Reason, Unverifiable

RETRY_S: Final = 0.5
POLL_S: Final = 20.0
SILENT_S: Final = 3.0
"""The gateway speaks each second; a connection that says nothing for so long is dead, whatever the system says."""
_log = logging.getLogger("licet.sidecar")


class Ear:
    """What the gateway's feed says of one agent, and how old that is. What cannot be verified changes nothing."""

    def __init__(self, identity: Identity, agent: str, clock: SystemClock) -> None:
        self._identity = identity
        self._agent = agent
        self._clock = clock
        self._received = float("-inf")
        self.facts: Facts | None = None
        self.revoked: frozenset[str] = frozenset()
        self.first = asyncio.Event()

    def age_s(self) -> float:
        """Seconds since the feed last said something that could be verified."""
        return self._clock.mono() - self._received

    async def follow(self) -> None:
        """Read the feed, for ever."""
        asked = {
            "agent": self._agent if self._agent != self._identity.name else "",
            "instance": self._identity.instance,
        }
        target = "/v1/feed?" + "&".join(f"{name}={value}" for name, value in asked.items() if value)
        await listen(self._identity, self.hear, target.removesuffix("?"))

    def hear(self, line: bytes) -> bool:
        """Whether *line* was believed."""
        try:
            heard = feed.open_line(
                line, self._identity.gateway, agent=self._agent, after=self.facts, now=self._clock.now()
            )
        except Unverifiable as bad:
            _log.warning("a line of the feed was not believed: %s", bad)
            return False
        if heard.revoked is not None:
            self.revoked = frozenset(heard.revoked)
        self._tell(heard.stopped)
        self.facts = heard
        self.first.set()
        self._received = self._clock.mono()
        return True

    def _tell(self, stopped: Stopped | None) -> None:
        """Whoever looks at this process's output sees why it does nothing any more."""
        before = self.facts.stopped if self.facts is not None else None
        if stopped == before:
            return
        if stopped is None:
            _log.warning("%s may act again", self._agent)
        else:
            _log.error("%s was stopped: %s: %s", self._agent, stopped.reason, stopped.detail)


class View:
    """What a decision about one agent reads: the bundle of all, the facts of that one."""

    def __init__(self, world: World, ear: Ear) -> None:
        self._world = world
        self._ear = ear

    @property
    def bundle(self) -> Compiled | None:
        return self._world.bundle

    @property
    def facts(self) -> Facts | None:
        return self._ear.facts

    def identified(self) -> Facts:
        """The agent that this is about, unless somebody stopped it: then :class:`Unverifiable`."""
        told = self.facts
        if told is None:
            raise Unverifiable(Reason.STALE_FACTS, "the gateway has not been heard yet")
        if told.stopped is not None:
            raise Unverifiable(Reason(told.stopped.reason), told.stopped.detail)
        return told

    @property
    def revoked(self) -> frozenset[str]:
        """``what:id`` of everything that is not believed any more."""
        return self._ear.revoked

    def age_s(self) -> float:
        return self._ear.age_s()

    def require_witnessed(self) -> None:
        """Nothing, if somebody has seen the record lately; else :class:`Unverifiable`."""
        self._world.require_witnessed()

    async def heard(self, within_s: float) -> bool:
        """Whether the gateway said anything, or does so in this time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._ear.first.wait()
        return self._ear.facts is not None


class World:
    """Two tasks keep it current; decisions only read. What cannot be verified changes nothing."""

    def __init__(
        self,
        identity: Identity,
        directory: Path,
        ledger: DurableLedger,
        shipper: Shipper,
        clock: SystemClock,
        newest: int,
        unwitnessed_s: float,
    ) -> None:
        """*newest* is the highest version that the ledger saw loaded; an older bundle never comes back.
        *unwitnessed_s*: for how long what is recorded may stay unseen before nothing of high risk may happen."""
        self._identity = identity
        self._directory = directory
        self._ledger = ledger
        self._clock = clock
        self._version = newest - 1
        self._shipper = shipper
        self._unwitnessed_s = unwitnessed_s
        self.own = Ear(identity, identity.name, clock)
        self.bundle: Compiled | None = None

    @property
    def facts(self) -> Facts | None:
        """Of the agent that this sidecar belongs to."""
        return self.own.facts

    def age_s(self) -> float:
        return self.own.age_s()

    def require_witnessed(self) -> None:
        """Nothing, if the record was seen by the witness lately; else :class:`Unverifiable`."""
        behind = self._shipper.unwitnessed_s()
        if behind > self._unwitnessed_s:
            because = f": {self._shipper.fault}" if self._shipper.fault else ""
            detail = f"nobody has seen the record for {behind:.0f} s; the limit is {self._unwitnessed_s:.0f} s{because}"
            raise Unverifiable(Reason.UNWITNESSED, detail)

    async def load_last_good(self) -> None:
        """The bundle of before the restart, so that a decision needs no gateway that is away for a moment."""
        path = self._directory / "active.bundle"
        if path.exists():
            try:
                await self._take(path.read_bytes())
            except (Unverifiable, BundleRejected) as bad:
                _log.error("the kept bundle is not usable: %s", bad)

    async def _take(self, data: bytes) -> None:
        """Make the bundle in *data* active if it verifies, compiles and is newer; recorded before it decides."""
        sealed = bundle.open_bundle(data, self._identity.gateway)
        content = sealed.content
        if content.version <= self._version:
            return
        compiled = await asyncio.to_thread(bundle.compile_bundle, content, sealed.digest)
        await asyncio.to_thread(self._keep, sealed.digest, data)
        await self._ledger.append(entries.Bundle("loaded", content.version, sealed.digest, not_after=content.not_after))
        self._version = content.version
        self.bundle = compiled

    async def tell_again(self) -> None:
        """Record once more which bundle decides: an entry that said so may be forgotten, and an older bundle must never
        come back. :class:`Unverifiable` if none does."""
        if self.bundle is None:
            raise Unverifiable(Reason.NO_BUNDLE, "no bundle decides here; which was the newest stands only in the log")
        content = self.bundle.content
        told = entries.Bundle("loaded", content.version, self.bundle.digest, not_after=content.not_after)
        await self._ledger.append(told)

    def is_revoked(self) -> bool:
        """Who was revoked gets no policies any more, and need not be refused them twice a second."""
        return self.facts is not None and self.facts.stopped is not None and self.facts.stopped.reason == Reason.REVOKED

    def _keep(self, digest: str, data: bytes) -> None:
        write_atomically(self._directory / f"{digest}.bundle", data, flush=True)
        write_atomically(self._directory / "active.bundle", data, flush=True)

    async def follow_bundle(self) -> None:
        """Long-poll for the next bundle, for ever."""
        backoff = Backoff()
        while True:
            known = self.bundle.digest if self.bundle else ""
            if self.is_revoked():
                await asyncio.sleep(RETRY_S)
                continue
            try:
                async with self._identity.send(
                    "GET",
                    f"/v1/bundle?wait={POLL_S:.0f}",
                    headers={"If-None-Match": f'"{known}"'} if known else {},
                    timeout_s=POLL_S + 10,
                ) as reply:
                    data = await reply.read()
                if reply.status == 200:
                    await self._take(data)
                if reply.status in (200, 304):
                    backoff.reset()
                else:
                    await asyncio.sleep(backoff.after(reply.status, RETRY_S))
            except (Unreachable, Broken):
                await asyncio.sleep(RETRY_S)
            except (Unverifiable, BundleRejected, LedgerUnavailable) as bad:
                _log.error("a bundle was not accepted, the last good one stays: %s", bad)
                await asyncio.sleep(RETRY_S)
            except Exception:
                _log.exception("following the bundle failed; the last good one stays")
                await asyncio.sleep(RETRY_S)


async def listen(identity: Identity, hear: Callable[[bytes], bool], target: str = "/v1/feed") -> None:
    """Read the gateway's feed, line by line, for ever. A feed that falls silent, or of which nothing is believed, is
    opened again, at another address if there is one."""
    backoff, loop = Backoff(), asyncio.get_running_loop()
    while True:
        wait, at, silent = RETRY_S, identity.gateways.url, True
        try:
            async with asyncio.timeout(SILENT_S):
                reply = await identity.request("GET", target, timeout_s=3600.0)
            at, silent = identity.gateways.url, False
            with contextlib.closing(reply):
                if reply.status != 200:
                    wait = backoff.after(reply.status, RETRY_S)
                    if reply.status >= 500:
                        identity.gateways.leave(at)
                    told = detail_of(await reply.read())
                    _log.error(
                        "the gateway does not speak to %s (%s); asked again in %.1f s", identity.name, told, wait
                    )
                else:
                    backoff.reset()
                    rest, heard = b"", loop.time()
                    chunks = reply.chunks()
                    while loop.time() < heard + SILENT_S:
                        silent = True
                        async with asyncio.timeout(SILENT_S):
                            chunk = await anext(chunks)
                        silent = False
                        *lines, rest = (rest + chunk).split(b"\n")
                        believed = [hear(line) for line in lines if line]
                        if True in believed:
                            heard = loop.time()
                    identity.gateways.leave(at)
        except TimeoutError:
            # One that says nothing is not waited for either; one that is there and knows nothing new is left alone.
            identity.gateways.leave(at)
            if silent:
                identity.gateways.give_up(at)
        except (Unreachable, Broken, StopAsyncIteration):
            identity.gateways.leave(at)
        except Exception:
            _log.exception("following the feed failed; facts grow old until it succeeds")
        await asyncio.sleep(wait)
