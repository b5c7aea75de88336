"""Votes that had to be signed: a gateway's log followed, and each such vote's signature checked again."""

from __future__ import annotations

from typing import Any

import msgspec

from trust.identity import passkeys
from trust.ledger.entries import AnyEntry, Approval, Passkey, Person
from trust.reasons import Unverifiable


class _Asked(msgspec.Struct, frozen=True):
    """What stands for decision; ``step_up``: each yes to it is signed."""

    action_digest: str
    step_up: bool


class SignedVotes:
    """Entries are given in the order of their log, all of them or from some place on."""

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
            if entry.event in ("requested", "edited") and entry.request is not None:
                self._asked[entry.approval] = _Asked(entry.action_digest, _step_up(entry.request))
            elif entry.event == "vote" and entry.decision == "approve":
                return self._vote(entry)
        return None

    def _vote(self, vote: Approval) -> str | None:
        asked = self._asked.get(vote.approval)
        if asked is None:
            return None  # what it was for was pruned: whoever prunes keeps the gateway's own log whole
        if vote.signed is None:
            missing = f"{vote.by} said yes to {vote.approval} without the signature that it asks for"
            return missing if asked.step_up else None
        key = self._keys.get(vote.signed.credential)
        if key is None or key.person != vote.by:
            return f"the yes of {vote.by} to {vote.approval} was signed by a passkey that was not theirs then"
        challenge = passkeys.vote_challenge(asked.action_digest, "approve", vote.by, vote.approval)
        try:
            passkeys.require_signed(vote.signed, key.key, challenge=challenge, party=key.party)
        except Unverifiable as bad:
            return f"the yes of {vote.by} to {vote.approval} is not signed for what was asked: {bad.detail}"
        self.checked += 1
        return None


def _step_up(request: dict[str, Any]) -> bool:
    return bool(request["terms"].get("step_up"))
