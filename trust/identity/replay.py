"""Nonces that were seen: each signed request is accepted once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from trust.reasons import Reason, Unverifiable

MAX_NONCES: Final = 1_000_000
"""About 150 MB. More signed requests than this inside one lifetime are refused, never forgotten early."""


class Nonces:
    """Remembers each nonce until its signature has expired. ``spent``: what was so before, as :attr:`kept` gave it."""

    def __init__(self, spent: Iterable[tuple[float, str]] = ()) -> None:
        self._order = deque(spent)
        self._seen = {nonce for _, nonce in self._order}

    @property
    def kept(self) -> list[tuple[float, str]]:
        """Until when (Unix seconds), and which, in that order."""
        return list(self._order)

    def spend(self, nonce: str, expires_at: float, now: float) -> None:
        """Remember *nonce*, or :class:`Unverifiable` (``replayed``) if it was spent before."""
        self.require_fresh(nonce, now)
        self.remember(nonce, expires_at)

    def require_fresh(self, nonce: str, now: float) -> None:
        """Nothing, or :class:`Unverifiable` (``replayed``) if *nonce* was spent before."""
        while self._order and self._order[0][0] <= now:
            self._seen.discard(self._order.popleft()[1])
        if nonce in self._seen:
            raise Unverifiable(Reason.REPLAYED, "this nonce was used before")
        if len(self._seen) >= MAX_NONCES:
            raise Unverifiable(Reason.OVERLOADED, "too many signed requests to remember")

    def remember(self, nonce: str, expires_at: float) -> None:
        """*nonce* is spent."""
        self._seen.add(nonce)
        # Lifetimes are at most MAX_LIFE_S apart, so first in, first out keeps a nonce a little longer, never shorter.
        self._order.append((max(expires_at, self._order[-1][0] if self._order else 0.0), nonce))
