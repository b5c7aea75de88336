"""What nodes prove: vouchers of issuers when they join, and how far away they can be at most, asked again and again.

A voucher binds a capability to the node's key until it ends. An issuer may say how soon such a node answers at most
(``within_ms``); then the capability is verified only while the best of some echoes comes back in that time.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from edge.client import Broken, Unreachable
from edge.clock import SystemClock
from gateway.config import IssuerConfig
from gateway.fleet import Fleet
from gateway.reaching import Reaching
from gateway.router.capabilities import Evidence
from gateway.state import NodeRecord
from trust.identity import challenge, did, voucher
from trust.identity.challenge import Challenge
from trust.identity.keys import PublicKey, SecretKey, unb64url
from trust.ledger.writer import LedgerUnavailable
from trust.reasons import Reason, Unverifiable

ECHOES: Final = 5
"""The best of so many counts: a node that is near is so at least once."""
LOOK_S: Final = 5.0
ANSWER_S: Final = 5.0
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
        reaching: Reaching,
        issuers: Iterable[IssuerConfig],
        key: SecretKey,
        trust_domain: str,
        clock: SystemClock,
    ) -> None:
        self._fleet = fleet
        self._reaching = reaching
        self._issuers = {one.capability: one for one in issuers}
        self._keys: Mapping[str, PublicKey] = {word: one.public for word, one in self._issuers.items()}
        self._key = key
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
            await self._fleet.suspend(name, word, "gateway", "how far away the node is was not found out yet")

    def _unproved(self, node: NodeRecord) -> list[str]:
        now = self._clock.wall_us()
        near = {one.capability for one in node.evidence if one.level == "verified" and one.until_us > now}
        return [word for word in self._timed(node) if word not in near]

    async def verify(self, name: str) -> list[Proved]:
        """Everything that can be asked of a node, asked now."""
        node = self._fleet.known(name)
        return [await self._near(node, word) for word in self._timed(node)]

    def _timed(self, node: NodeRecord) -> list[str]:
        """Capabilities of which nearness is a part, and that an issuer has bound to the node's key."""
        now = self._clock.wall_us()
        bound = {one.capability for one in node.evidence if one.level == "bound" and one.until_us > now}
        return sorted(word for word in bound if word in self._issuers and self._issuers[word].within_ms)

    async def _near(self, node: NodeRecord, word: str) -> Proved:
        issuer = self._issuers[word]
        try:
            best_ms = min([await self._echo(node) for _ in range(ECHOES)]) / 1000
        except (Unreachable, Broken, Unverifiable, TimeoutError) as bad:
            # Whoever is too far away could otherwise just say nothing.
            how = f"it did not answer as it should: {bad or type(bad).__name__}"
            await self._fleet.suspend(node.name, word, "gateway", how)
            return Proved(word, "verified", False, how)
        how = f"the best of {ECHOES} echoes took {best_ms:.2f} ms, of {issuer.within_ms:g} ms"
        if best_ms > issuer.within_ms:
            await self._fleet.suspend(node.name, word, "gateway", how)
            return Proved(word, "verified", False, how)
        until = self._clock.wall_us() + int(issuer.verified_for_s * 1e6)
        await self._fleet.prove(node.name, Evidence(word, "verified", until), "gateway", how)
        return Proved(word, "verified", True, how)

    async def _echo(self, node: NodeRecord) -> int:
        """How long (microseconds) an answer of the holder of the node's key takes."""
        now = int(self._clock.now())
        asked = Challenge("echo", secrets.token_hex(16), node.name, node.epoch, now, now + 30)
        begun = self._clock.mono_ns()
        async with asyncio.timeout(ANSWER_S):
            async with self._reaching.send(node, "/v1/prove", {}, challenge.seal(asked, self._key).encode()) as reply:
                said = await reply.read(1 << 16)
        took = (self._clock.mono_ns() - begun) // 1000
        if reply.status != 200:
            raise Unverifiable(Reason.UNAUTHENTICATED, f"{node.name} answered {reply.status}")
        challenge.require_answer(asked, said.decode("ascii", "replace"), PublicKey(unb64url(node.key)))
        return took

    async def work(self) -> None:
        """Ask again before what was verified ends."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                due = [one.node.name for one in self._fleet.candidates() if one.alive and self._due(one.node)]
                await asyncio.gather(*(self.verify(name) for name in due))  # one that hangs holds up no other
            except LedgerUnavailable as fault:
                _log.error("ledger unavailable: %s", fault)
            except Exception:
                _log.exception("asking nodes for proofs failed; it is tried again")

    def _due(self, node: NodeRecord) -> bool:
        now = self._clock.wall_us()
        until = {one.capability: one.until_us for one in node.evidence if one.level == "verified"}
        half = {word: self._issuers[word].verified_for_s * 5e5 for word in self._timed(node)}
        return any(until.get(word, 0) < now + half[word] for word in half)
