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
_log = logging.getLogger("licet.gateway")


class Proved(msgspec.Struct, frozen=True):
    """What came of one check of one capability: ``holds``, and in words how that was found."""

    capability: str
    level: str
    holds: bool
    how: str


class Prover:
    """Of one gateway. *issuers*: by the word of the capability for which they vouch."""

    def __init__(
        self,
        fleet: Fleet,
        challenger: Challenger,
        issuers: Iterable[IssuerConfig],
        gpu: GpuConfig | None,
        measured: Measured,
        policies: Callable[[], Compiled | None],
        trust_domain: str,
        clock: SystemClock,
    ) -> None:
        self._fleet = fleet
        self._challenger = challenger
        self._issuers = {one.capability: one for one in issuers}
        self._keys: Mapping[str, PublicKey] = {word: one.public for word, one in self._issuers.items()}
        self._gpu = gpu
        self._gpus = Gpus(challenger, gpu) if gpu is not None else None
        self._measured = measured
        self._policies = policies
        self._trust_domain = trust_domain
        self._clock = clock

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
                await self._fleet.prove(name, proved, "gateway", "its issuer vouches for the node's key")
        for word in self._unproved(self._fleet.known(name)):
            await self._fleet.suspend(name, word, "gateway", "it was not found out yet")

    def _unproved(self, node: NodeRecord) -> list[str]:
        now = self._clock.wall_us()
        proved = {one.capability for one in node.evidence if one.level == "verified" and one.until_us > now}
        return [word for word in self._asked(node) if word not in proved]

    async def restore(self, name: str, capability: str, by: str, why: str) -> None:
        """What an operator restores counts again, unless this gateway can find out itself whether it should."""
        if capability in self._asked(self._fleet.known(name)):
            how = f"it counts again when the node shows it: `licet nodes verify {name}`"
            raise Unverifiable(Reason.MALFORMED_REQUEST, f"{capability} is asked of {name} by this gateway; {how}")
        await self._fleet.restore(name, capability, by, why)

    async def verify(self, name: str) -> list[Proved]:
        """Everything that can be asked of a node, asked now."""
        node = self._fleet.known(name)
        return [await self._find_out(node, word) for word in self._asked(node)]

    def _asked(self, node: NodeRecord) -> dict[str, float]:
        """Capabilities that this gateway finds out itself, each with how long (seconds) it then holds: nearness is a
        part of what an issuer with a limit has bound to the node's key, and a GPU of what is called one."""
        found = {word: self._issuers[word].verified_for_s for word in self._timed(node)}
        if self._gpu is not None and gpus.asked_of(node):
            found[GPU] = self._gpu.verified_for_s
        return found

    def _timed(self, node: NodeRecord) -> list[str]:
        now = self._clock.wall_us()
        bound = {one.capability for one in node.evidence if one.level == "bound" and one.until_us > now}
        return sorted(word for word in bound if word in self._issuers and self._issuers[word].within_ms)

    async def _find_out(self, node: NodeRecord, word: str) -> Proved:
        found = [await self._near(node, self._issuers[word].within_ms)] if word in self._timed(node) else []
        if word == GPU and self._gpus is not None:
            found.append(await self._gpus.look(node))
        holds, how = all(one.holds for one in found) and bool(found), "; ".join(one.how for one in found)
        if holds:
            until = self._clock.wall_us() + int(self._asked(node)[word] * 1e6)
            await self._fleet.prove(node.name, Evidence(word, "verified", until), "gateway", how)
        else:
            await self._fleet.suspend(node.name, word, "gateway", how)
        return Proved(word, "verified", holds, how)

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
                alive = [one for one in self._fleet.candidates() if one.alive]
                for one in alive:
                    if GPU in one.holds:
                        await self._look_at_work(one.node.name)
                due = [one.node.name for one in alive if self._due(one.node)]
                await asyncio.gather(*(self.verify(name) for name in due))  # one that hangs holds up no other
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
        now = self._clock.wall_us()
        until = {one.capability: one.until_us for one in node.evidence if one.level == "verified"}
        return any(until.get(word, 0) < now + for_s * 5e5 for word, for_s in self._asked(node).items())
