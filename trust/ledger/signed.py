"""Votes that had to be signed: a gateway's log followed, and each such vote's signature checked again."""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from trust.identity import passkeys
from trust.ledger.entries import ONCE, AnyEntry, Approval, Passkey, Person
from trust.reasons import Unverifiable


class _Asked(msgspec.Struct, frozen=True):
    """What stands for decision; ``wanted``: how many different people sign a yes to it, 0 if nobody signs; ``signed``:
    who has."""

    action_digest: str
    presented: str
    wanted: int
    under: str
    signed: frozenset[str] = frozenset()


class SignedVotes:
    """Entries are given in the order of their log, all of them, from the first."""

    def __init__(self) -> None:
        self.checked = 0
        self._keys: dict[str, Passkey] = {}
        self._asked: dict[str, _Asked] = {}

    def read(self, entry: AnyEntry) -> str | None:
        """What is wrong with *entry*, if it is a yes that should be signed."""
        if isinstance(entry, Passkey):
            if entry.event == "added":
                self._keys[entry.credential] = entry
            else:
                self._keys.pop(entry.credential, None)
        elif isinstance(entry, Person) and entry.event == "removed":
            self._keys = {name: key for name, key in self._keys.items() if key.person != entry.person}
        elif isinstance(entry, Approval):
            return self._step(entry)
        return None

    def _step(self, entry: Approval) -> str | None:
        asked = self._asked.get(entry.approval)
        if entry.event in ("requested", "edited"):
            under = entry.under or (asked.under if asked is not None else "")
            self._asked[entry.approval] = _Asked(entry.action_digest, entry.presented, _wanted(entry.request), under)
        elif asked is None:
            return f"{entry.approval}: {entry.event}, and it was never asked for"
        elif entry.event == "vote" and entry.decision == "approve":
            return self._vote(entry, asked)
        elif entry.event == "approved" and asked.wanted:
            if asked.under or entry.scope != ONCE:
                return f"{entry.approval} asks for signatures, and was given as part of something else, or for more"
            if len(asked.signed) < asked.wanted:
                return f"{entry.approval} was approved with {len(asked.signed)} of {asked.wanted} signatures"
        return None

    def _vote(self, vote: Approval, asked: _Asked) -> str | None:
        if not asked.wanted:
            return None
        if vote.signed is None:
            return f"{vote.by} said yes to {vote.approval} without the signature that it asks for"
        key = self._keys.get(vote.signed.credential)
        if key is None or key.person != vote.by:
            return f"the yes of {vote.by} to {vote.approval} was signed by a passkey that was not theirs then"
        challenge = passkeys.vote_challenge(asked.action_digest, "approve", vote.by, vote.approval, asked.presented)
        try:
            passkeys.require_signed(vote.signed, key.key, challenge=challenge, party=key.party)
        except Unverifiable as bad:
            return f"the yes of {vote.by} to {vote.approval} is not signed for what was asked: {bad.detail}"
        self.checked += 1
        if vote.seat in ("", vote.by):  # nobody signs for somebody else
            self._asked[vote.approval] = msgspec.structs.replace(asked, signed=asked.signed | {vote.by})
        return None


def _wanted(request: dict[str, Any] | None) -> int:
    """How many different people sign, at the least; what cannot be read wants more than there are."""
    terms = (request or {}).get("terms")
    if not isinstance(terms, dict) or not isinstance(terms.get("quorum"), dict):
        return sys.maxsize
    counts = [count for count in terms["quorum"].values() if isinstance(count, int)]
    return max([1, *counts]) if terms.get("step_up") else 0
