"""Chains that were verified already: a chain comes with every request of its holder, and costs a signature a link."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Final

from trust.identity import delegation
from trust.identity.delegation import Authority
from trust.identity.keys import PublicKey
from trust.reasons import Reason, Unverifiable

MAX_BYTES: Final = 8 << 20
"""Of all chains that are remembered. The one that was used longest ago is verified again when it comes back."""


class VerifiedChains:
    """Of one trust domain. Kept by their SHA-256: somebody else's long chains must not fill the memory."""

    def __init__(self, issuer: PublicKey, trust_domain: str) -> None:
        self._issuer = issuer
        self._trust_domain = trust_domain
        self._known: OrderedDict[bytes, tuple[Authority, int]] = OrderedDict()
        self._bytes = 0

    def authority(self, chain: str, now: float) -> Authority:
        """What *chain* gives at *now* (Unix seconds), if every link of it holds, or :class:`Unverifiable`."""
        name = hashlib.sha256(chain.encode()).digest()
        found = self._known.get(name)
        if found is None:
            return self._remember(name, len(chain), self._verified(chain, now))
        self._known.move_to_end(name)
        if now >= found[0].expires_at:
            raise Unverifiable(Reason.DELEGATION_INVALID, "delegation: a token of this chain came to its end")
        return found[0]

    def _verified(self, chain: str, now: float) -> Authority:
        audience = delegation.audience(self._trust_domain)
        return delegation.open_chain(
            chain, issuer=self._issuer, trust_domain=self._trust_domain, audience=audience, now=now
        )

    def _remember(self, name: bytes, size: int, authority: Authority) -> Authority:
        self._known[name] = (authority, size)
        self._bytes += size
        while self._bytes > MAX_BYTES:
            self._bytes -= self._known.popitem(last=False)[1][1]
        return authority

    def __len__(self) -> int:
        return len(self._known)
