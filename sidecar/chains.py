"""Delegated authority on its way in: what a chain gives to one agent, and whether it holds now.

A chain is verified here, offline; how far the agents in it are trusted, and whether any of it was revoked, the gateway
says, at most five seconds ago.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from edge.client import Broken, Unreachable
from edge.clock import SystemClock
from sidecar.forward import refusal_of
from sidecar.identity import Identity
from sidecar.world import View
from trust.facts import Mandate
from trust.feed import SIDE_EFFECTS_STALE_S
from trust.identity import delegation
from trust.identity.chains import VerifiedChains
from trust.identity.delegation import Authority
from trust.identity.keys import PublicKey
from trust.reasons import Reason, Unverifiable
from trust.standing.score import Standing

MAX_TOLD: Final = 10_000


class Opened(msgspec.Struct, frozen=True):
    """A chain that holds: what it gives, and the lowest standing in it."""

    authority: Authority
    standing: Standing

    @property
    def mandate(self) -> Mandate:
        authority = self.authority
        return Mandate(authority.principal, authority.tokens, tuple(sorted(authority.tools)))


class Chains:
    """Those of one agent. *own_keys* are its raw public keys of the moment."""

    def __init__(
        self,
        agent: str,
        own_keys: Callable[[], frozenset[bytes]],
        identity: Identity,
        view: View,
        clock: SystemClock,
    ) -> None:
        self._agent = agent
        self._own_keys = own_keys
        self._identity = identity
        self._view = view
        self._clock = clock
        self._verified = VerifiedChains(identity.gateway, identity.enrolment.trust_domain)
        self._told: dict[str, tuple[Standing, float]] = {}
        self._because: dict[str, str] = {}

    def claimed(self, chain: str) -> Mandate:
        """What *chain* says of itself, for the record of a refusal: the principal only if every link of it holds."""
        try:
            authority = self._verified.authority(chain, self._clock.now())
        except Unverifiable:
            return Mandate("", delegation.named(chain))
        return Mandate(authority.principal, authority.tokens, tuple(sorted(authority.tools)))

    async def open(self, chain: str) -> Opened:
        """*chain* as this agent may use it now, or :class:`Unverifiable`."""
        authority = self.verified(chain)
        await self._require_believed(chain, authority)
        name, now = authority.tokens[-1], self._clock.mono()
        standing, asked = self._told.get(name, (None, now))
        if standing is None or now - asked > SIDE_EFFECTS_STALE_S:
            standing = await self._standing(chain)
            if len(self._told) >= MAX_TOLD:
                self._told.clear()
            self._told[name] = (standing, now)
        return Opened(authority, standing)

    def verified(self, chain: str) -> Authority:
        """What *chain* gives to this agent, if every link of it holds."""
        authority = self._verified.authority(chain, self._clock.now())
        if authority.holder.raw not in self._own_keys():
            own = " or ".join(PublicKey(raw).thumbprint for raw in sorted(self._own_keys()))
            told = f"this chain ends at the key {authority.keys[-1]}, and {self._agent} has {own or 'none'}"
            raise Unverifiable(Reason.NOT_YOURS, f"{told}; bring it to the sidecar of the agent that it was made for")
        return authority

    async def _require_believed(self, chain: str, authority: Authority) -> None:
        """Nothing of it is among what the gateway's feed says was revoked. Why, the gateway is asked once."""
        names = [f"root:{authority.root}", f"principal:{authority.principal}"]
        names += [f"token:{token}" for token in authority.tokens] + [f"key:{key}" for key in authority.keys]
        for name in names:
            if name in self._view.revoked:
                if name not in self._because:
                    self._because[name] = await self._why(chain, name)
                raise Unverifiable(Reason.REVOKED, self._because[name])

    async def _why(self, chain: str, name: str) -> str:
        """What the gateway says of a chain of which *name* was revoked; whatever that is, it was."""
        try:
            await self._standing(chain)
        except Unverifiable as bad:
            if bad.reason is Reason.REVOKED:
                return bad.detail
        return f"{name} was revoked"

    async def _standing(self, chain: str) -> Standing:
        body = msgspec.json.encode({"chain": chain, "agent": self._agent})
        headers = {"Content-Type": "application/json"}
        try:
            async with self._identity.send("POST", "/v1/authority", body, headers, timeout_s=5.0) as reply:
                answer = await reply.read()
        except (Unreachable, Broken) as bad:
            raise Unverifiable(Reason.STALE_FACTS, f"the gateway could not be asked about this chain: {bad}") from None
        if reply.status != 200:
            no = refusal_of(reply.status, answer)
            raise Unverifiable(no.reason, no.detail)
        return msgspec.json.decode(answer, type=_Told).standing


class _Told(msgspec.Struct, frozen=True):
    standing: Standing
