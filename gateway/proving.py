"""What nodes prove: vouchers of issuers when they join; how far away they can be at most, and GPUs, again and again.

A voucher binds a capability to the node's key until it ends. An issuer may say how soon such a node answers at most
(``within_ms``); then the capability is verified only while the best of some echoes comes back in that time. Where the
gateway asks for products (``[gateway.gpu]``), a GPU counts only while the node makes one in time.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import msgspec

from edge.clock import SystemClock
from gateway import gpus
from gateway.challenger import NO_ANSWER, Challenger, Found
from gateway.config import GpuConfig, IssuerConfig
from gateway.fleet import Fleet
from gateway.gpus import Gpus
from gateway.router.capabilities import GPU, Evidence
from gateway.router.measured import Measured
from gateway.state import NodeRecord
from trust.identity import did, voucher
from trust.identity.keys import PublicKey, unb64url
from trust.ledger.writer import LedgerUnavailable
from trust.policy.bundle import Compiled
from trust.reasons import Reason, Unverifiable

ECHOES: Final = 5
"""The best of so many counts: a node that is near is so at least once."""
LOOK_S: Final = 5.0
AGAIN_S: Final = 30.0
"""After a failure a node is asked again by itself no sooner than this; if what it showed was wrong, then twice as long
and so on: whoever may try again and again gets through by luck."""
LONGEST_S: Final = 3600.0
_log = logging.getLogger("licet.gateway")


class Proved(msgspec.Struct, frozen=True):
    """What came of one check of one capability: ``holds``, and in words how that was found."""

    capability: str
    level: str
    holds: bool
    how: str


class Asks:
    """What one gateway finds out itself about nodes: nearness is a part of what an issuer with a limit has bound to a
    node's key, and a GPU, where products are asked for, of what is called one."""

    def __init__(self, issuers: Iterable[IssuerConfig], gpu: GpuConfig | None, clock: SystemClock) -> None:
        self.issuers = {one.capability: one for one in issuers}
        self.gpu = gpu
        self._clock = clock

    def of(self, node: NodeRecord) -> dict[str, float]:
        """Capabilities of *node* that it has to show, each with how long (seconds) it then holds."""
        now = self._clock.wall_us()
        bound = sorted(one.capability for one in node.evidence if one.level == "bound" and one.until_us > now)
        limited = (self.issuers[word] for word in bound if word in self.issuers and self.issuers[word].within_ms)
        found = {issuer.capability: issuer.verified_for_s for issuer in limited}
        if self.gpu is not None and gpus.asked_of(node):
            found[GPU] = self.gpu.verified_for_s
        return found


class Prover:
    """Of one gateway."""

    def __init__(
        self,
        fleet: Fleet,
        challenger: Challenger,
        asks: Asks,
        measured: Measured,
        policies: Callable[[], Compiled | None],
        trust_domain: str,
        clock: SystemClock,
    ) -> None:
        self._fleet = fleet
        self._challenger = challenger
        self._asks = asks
        self._keys: Mapping[str, PublicKey] = {word: one.public for word, one in asks.issuers.items()}
        self._gpus = Gpus(challenger, asks.gpu) if asks.gpu is not None else None
        self._measured = measured
        self._policies = policies
        self._trust_domain = trust_domain
        self._clock = clock
        self._running: dict[str, asyncio.Task[list[Proved]]] = {}
        self._lies: dict[str, int] = {}
        self._not_before: dict[str, float] = {}

    async def joined(self, name: str, vouchers: Iterable[str]) -> None:
        """Look at the vouchers that a node brings; one that does not hold refuses it, so that nobody is surprised."""
        node = self._fleet.known(name)
        for token in vouchers:
            found = voucher.open_voucher(
                token,
                self._keys,
                node=did.of(self._trust_domain, "node", name),
                key=PublicKey(unb64url(node.key)).thumbprint,
                now=self._clock.now(),
            )
            proved = Evidence(found.capability, "bound", found.expires_at * 1_000_000)
            if proved not in self._fleet.known(name).evidence:
                await self._fleet.prove(node, proved, "gateway", "its issuer vouches for the node's key")

    def begin(self, name: str) -> None:
        """A node has joined: find out at once, unless it has lied and its time is not there."""
        if not self._lies.get(name) or self._clock.mono() >= self._not_before.get(name, 0.0):
            self._later(name)

    def _later(self, name: str) -> asyncio.Task[list[Proved]]:
        """Find out in the background; whoever hangs holds up nobody else."""
        running = self._running.get(name)
        if running is None or running.done():
            running = self._running[name] = asyncio.create_task(self._verify(name))
            running.add_done_callback(_told)
        return running

    async def restore(self, name: str, capability: str, by: str, why: str) -> None:
        """What an operator restores counts again, unless this gateway can find out itself whether it should."""
        if capability in self._asks.of(self._fleet.known(name)):
            how = f"it counts again when the node shows it: `licet nodes verify {name}`"
            raise Unverifiable(Reason.MALFORMED_REQUEST, f"{capability} is asked of {name} by this gateway; {how}")
        await self._fleet.restore(name, capability, by, why)

    async def verify(self, name: str) -> list[Proved]:
        """Everything that can be asked of a node, asked now, or as it is being asked already."""
        self._fleet.known(name)
        return await asyncio.shield(self._later(name))

    async def _verify(self, name: str) -> list[Proved]:
        node = self._fleet.known(name)
        found = {word: await self._look(node, word) for word in self._asks.of(node)}
        holds = all(one.holds for one in found.values())
        # Only the truth ends it: whoever could say nothing in between would be asked again as soon as before.
        lies = 0 if holds else self._lies.get(name, 0) + any(one.lied for one in found.values())
        self._lies[name] = lies
        wait_s = 0.0 if holds else min(AGAIN_S * 2 ** max(0, lies - 1), LONGEST_S)
        self._not_before[name] = self._clock.mono() + wait_s
        return [await self._note(node, word, one) for word, one in found.items()]

    async def _look(self, node: NodeRecord, word: str) -> Found:
        issuer = self._asks.issuers.get(word)
        looks = [self._near(node, issuer.within_ms)] if issuer is not None and issuer.within_ms else []
        if word == GPU and self._gpus is not None:
            looks.append(self._gpus.look(node))
        found = [await look for look in looks]
        holds = bool(found) and all(one.holds for one in found)
        return Found(holds, "; ".join(one.how for one in found), any(one.lied for one in found))

    async def _note(self, node: NodeRecord, word: str, found: Found) -> Proved:
        if found.holds:
            until = self._clock.wall_us() + int(self._asks.of(node)[word] * 1e6)
            await self._fleet.prove(node, Evidence(word, "verified", until), "gateway", found.how)
        else:
            await self._fleet.suspend(node.name, word, "gateway", found.how)
        return Proved(word, "verified", found.holds, found.how)

    async def _near(self, node: NodeRecord, within_ms: float) -> Found:
        asked = [self._challenger.challenge(node, secrets.token_hex(16)) for _ in range(ECHOES)]
        try:
            best_ms = min([(await self._challenger.ask(node, one)).took_us for one in asked]) / 1000
        except NO_ANSWER as bad:
            return Found.silent(bad)
        how = f"the best of {ECHOES} echoes took {best_ms:.2f} ms, of {within_ms:g} ms"
        return Found(best_ms <= within_ms, how)

    async def work(self) -> None:
        """Ask again before what was verified ends, and look at the work that GPUs do."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                for one in [one for one in self._fleet.candidates() if one.alive]:
                    if GPU in one.holds:
                        await self._look_at_work(one.node.name)
                    if self._due(one.node):
                        self._later(one.node.name)
            except LedgerUnavailable as fault:
                _log.error("ledger unavailable: %s", fault)
            except Exception:
                _log.exception("asking nodes for proofs failed; it is tried again")

    async def _look_at_work(self, name: str) -> None:
        bundle = self._policies()
        if bundle is None:
            return
        why = gpus.too_slow(self._measured, name, bundle.inventory, self._clock.mono_ns() // 1000)
        if why:
            await self._fleet.suspend(name, GPU, "gateway", why)

    def _due(self, node: NodeRecord) -> bool:
        if self._clock.mono() < self._not_before.get(node.name, 0.0):
            return False
        now = self._clock.wall_us()
        until = {one.capability: one.until_us for one in node.evidence if one.level == "verified"}
        return any(until.get(word, 0) < now + for_s * 5e5 for word, for_s in self._asks.of(node).items())


def _told(done: asyncio.Task[list[Proved]]) -> None:
    """What went wrong in the background is not lost."""
    if not done.cancelled() and (bad := done.exception()) is not None:
        _log.error("a node could not be asked for proofs: %s: %s", type(bad).__name__, bad)
