"""Delegated authority on its way in: chains that the agent's programs bring, and whether they hold now.

A chain is verified here, offline; how far the agents in it are trusted, and whether any of it was revoked, the gateway
says, at most five seconds ago. A program that cannot send a header is given a token of its own that stands for the
agent's token and the chain together.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict
from pathlib import Path
from typing import Final

import msgspec

from edge.client import Broken, Unreachable
from edge.clock import SystemClock, new_id
from sidecar.forward import refusal_of
from sidecar.identity import Identity
from sidecar.world import World
from trust.facts import Mandate
from trust.feed import SIDE_EFFECTS_STALE_S
from trust.identity import delegation
from trust.identity.delegation import Authority
from trust.identity.keys import PublicKey, Signer, b64url
from trust.ledger.tiles import write_atomically
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


class Mandates:
    """Of one sidecar, and so of one agent."""

    def __init__(self, identity: Identity, world: World, directory: Path, token: str, clock: SystemClock) -> None:
        self._identity = identity
        self._world = world
        self._directory = directory
        self._token = token
        self._clock = clock
        self._opened: OrderedDict[str, Opened] = OrderedDict()
        self._chains: dict[str, str] = {}
        self._load()

    async def open(self, chain: str) -> Opened:
        """*chain* as this agent may use it now, or :class:`Unverifiable`."""
        known = self._opened.get(chain)
        authority = known.authority if known is not None else self._verified(chain)
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

    def _verified(self, chain: str) -> Authority:
        enrolment = self._identity.enrolment
        authority = delegation.open_chain(
            chain,
            issuer=self._identity.gateway,
            trust_domain=enrolment.trust_domain,
            audience=delegation.audience(enrolment.trust_domain),
            now=self._clock.now(),
        )
        if authority.holder.raw not in self._identity.own_keys():
            raise Unverifiable(Reason.NOT_YOURS, "this chain ends at a key that is not this agent's")
        return authority

    def _require_believed(self, authority: Authority) -> None:
        """Nothing of it is among what the gateway's feed says was revoked."""
        names = [f"root:{authority.root}", f"principal:{authority.principal}"]
        names += [f"token:{token}" for token in authority.tokens] + [f"key:{key}" for key in authority.keys]
        for name in names:
            if name in self._world.revoked:
                raise Unverifiable(Reason.REVOKED, f"{name} was revoked")

    async def _standing(self, chain: str) -> Standing:
        body = msgspec.json.encode({"chain": chain})
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

    # Tokens of their own for programs

    def accept(self, chain: str) -> tuple[str, Authority]:
        """A token with which a program acts under *chain*; the same one each time. It outlives a restart."""
        authority = self._verified(chain)
        name = authority.tokens[-1]
        write_atomically(self._directory / f"{name}.chain", chain.encode("ascii"), flush=True)
        return self._remember(name, chain), authority

    def chain_of(self, token: bytes) -> str | None:
        """The chain that *token* stands for."""
        return self._chains.get(hashlib.sha256(token).hexdigest())

    def _remember(self, name: str, chain: str) -> str:
        token = b64url(hmac.digest(self._token.encode(), b"licet mandate " + name.encode(), "sha256"))
        self._chains[hashlib.sha256(token.encode()).hexdigest()] = chain
        return token

    def hand_over(self, old: Signer, new: PublicKey) -> None:
        """The agent's key is replaced: chains that end at the old one get one more token, for the new one. Those that
        are at their ceiling stay as they are; the gateway honours the old key until it has drained."""
        for path in sorted(self._directory.glob("*.chain")):
            chain = path.read_text("ascii").strip()
            try:
                handed = delegation.hand_over(chain, new, now=int(self._clock.now()), token_id=new_id("aat"), key=old)
            except Unverifiable:
                continue
            write_atomically(path, handed.encode("ascii"), flush=True)
            self._remember(path.stem, handed)

    def _load(self) -> None:
        """Those of before a restart; what is over is removed."""
        for path in sorted(self._directory.glob("*.chain")):
            chain = path.read_text("ascii").strip()
            try:
                self._verified(chain)
                self._remember(path.stem, chain)
            except Unverifiable:
                path.unlink()


class _Told(msgspec.Struct, frozen=True):
    standing: Standing
