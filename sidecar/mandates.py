"""Tokens of their own for programs that cannot send a header: each stands for the agent's token and one chain."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from edge.clock import SystemClock, new_id
from sidecar.chains import Chains
from trust.identity import delegation
from trust.identity.delegation import Authority
from trust.identity.keys import PublicKey, Signer, b64url
from trust.ledger.tiles import write_atomically
from trust.reasons import Unverifiable


class Mandates:
    """Of one sidecar's own agent; kept in *directory*, so that they outlive a restart."""

    def __init__(self, chains: Chains, directory: Path, token: str, clock: SystemClock, *, removes: bool) -> None:
        """*removes*: what is over, for all workers."""
        self._chains = chains
        self._directory = directory
        self._token = token
        self._clock = clock
        self._known: dict[str, str] = {}
        self._seen = 0
        directory.mkdir(parents=True, exist_ok=True)
        over = self._load()
        for path in over if removes else ():
            path.unlink(missing_ok=True)

    def accept(self, chain: str) -> tuple[str, Authority]:
        """A token with which a program acts under *chain*; the same one each time. It outlives a restart."""
        authority = self._chains.verified(chain)
        name = authority.tokens[-1]
        write_atomically(self._directory / f"{name}.chain", chain.encode("ascii"), flush=True)
        return self._remember(name, chain), authority

    def chain_of(self, token: bytes) -> str | None:
        """The chain that *token* stands for. Another worker of this sidecar may have made it, or replaced it."""
        if self._directory.stat().st_mtime_ns != self._seen:
            self.read_again()
        return self._known.get(hashlib.sha256(token).hexdigest())

    def _remember(self, name: str, chain: str) -> str:
        token = b64url(hmac.digest(self._token.encode(), b"licet mandate " + name.encode(), "sha256"))
        self._known[hashlib.sha256(token.encode()).hexdigest()] = chain
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

    def read_again(self) -> None:
        """Know what other workers made. What does not hold may do so soon, when this one knows the agent's new key."""
        self._load()

    def _load(self) -> list[Path]:
        """Know those that are kept; which of them do not hold now."""
        over = []
        self._seen = self._directory.stat().st_mtime_ns
        for path in sorted(self._directory.glob("*.chain")):
            try:
                chain = path.read_text("ascii").strip()
                self._chains.verified(chain)
                self._remember(path.stem, chain)
            except FileNotFoundError:
                continue  # another worker removed it
            except Unverifiable:
                over.append(path)
        return over
