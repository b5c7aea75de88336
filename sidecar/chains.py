"""Delegated authority on its way in: what a chain gives to one agent, and whether it holds now.

A chain is verified here, offline; how far the agents in it are trusted, and whether any of it was revoked, the gateway
says, at most five seconds ago.
"""

from __future__ import annotations

from collections import OrderedDict
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
from trust.identity.delegation import Authority
from trust.reasons import Reason, Unverifiable
from trust.standing.score import Standing

MAX_OPENED: Final = 256


class Opened(msgspec.Struct, frozen=True):
    """A chain that holds: what it gives, and the lowest standing in it. ``asked``: when the gateway was, in monotonic
    seconds."""

    authority: Authority
    standing: Standing
    asked: float

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
        self._opened: OrderedDict[str, Opened] = OrderedDict()

    async def open(self, chain: str) -> Opened:
        """*chain* as this agent may use it now, or :class:`Unverifiable`."""
        known = self._opened.get(chain)
        authority = known.authority if known is not None else self.verified(chain)
        if self._clock.now() >= authority.expires_at:
            raise Unverifiable(Reason.DELEGATION_INVALID, "delegation: a token is outside of its time")
        self._require_believed(authority)
        if known is None or self._clock.mono() - known.asked > SIDE_EFFECTS_STALE_S:
            asked = self._clock.mono()
            known = Opened(authority, await self._standing(chain), asked)
            self._opened[chain] = known
            if len(self._opened) > MAX_OPENED:
                self._opened.popitem(last=False)
        return known

    def verified(self, chain: str) -> Authority:
        """What *chain* gives to this agent, if every link of it holds."""
        enrolment = self._identity.enrolment
        authority = delegation.open_chain(
            chain,
            issuer=self._identity.gateway,
            trust_domain=enrolment.trust_domain,
            audience=delegation.audience(enrolment.trust_domain),
            now=self._clock.now(),
        )
        if authority.holder.raw not in self._own_keys():
            raise Unverifiable(Reason.NOT_YOURS, "this chain ends at a key that is not this agent's")
        return authority

    def _require_believed(self, authority: Authority) -> None:
        """Nothing of it is among what the gateway's feed says was revoked."""
        names = [f"root:{authority.root}", f"principal:{authority.principal}"]
        names += [f"token:{token}" for token in authority.tokens] + [f"key:{key}" for key in authority.keys]
        for name in names:
            if name in self._view.revoked:
                raise Unverifiable(Reason.REVOKED, f"{name} was revoked")

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
