"""Challenges: the gateway asks a node to show something, now; the node's answer is signed with its own key.

An *echo* proves only how far away the holder of the key can be at most: an answer cannot come sooner than light.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from trust.identity import jws
from trust.identity.keys import PublicKey, Signer, b64url, unb64url
from trust.reasons import Reason, Unverifiable

TYP: Final = "licet-challenge+jwt"
MAX_LIFE_S: Final = 60
CLOCK_SKEW_S: Final = 5


class Challenge(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For one ``node`` in one ``epoch``; ``nonce`` is hexadecimal; Unix seconds."""

    kind: Literal["echo"]
    nonce: str
    node: str
    epoch: int
    issued_at: int
    deadline: int


def seal(challenge: Challenge, key: Signer) -> str:
    return jws.seal(msgspec.json.encode(challenge), TYP, key)


def open_challenge(token: str, *, gateway: PublicKey, node: str, epoch: int, now: float) -> Challenge:
    """The challenge in *token*, if the gateway makes it to this node now; else :class:`Unverifiable`."""
    try:
        challenge = msgspec.json.decode(jws.open_sealed(token, TYP, gateway), type=Challenge)
    except msgspec.DecodeError as bad:
        raise _refuse(str(bad)) from None
    if (challenge.node, challenge.epoch) != (node, epoch):
        raise _refuse("made for another node or epoch")
    if not challenge.issued_at - CLOCK_SKEW_S <= now < challenge.deadline:
        raise _refuse("outside of its time")
    if challenge.deadline - challenge.issued_at > MAX_LIFE_S:
        raise _refuse("lives too long")
    return challenge


def _said(challenge: Challenge) -> bytes:
    return f"licet-echo {challenge.node} {challenge.epoch} {challenge.nonce}".encode()


def answer(challenge: Challenge, key: Signer) -> str:
    """The node's word that it heard this challenge (base64url)."""
    return b64url(key.sign(_said(challenge)))


def require_answer(challenge: Challenge, given: str, key: PublicKey) -> None:
    """:class:`Unverifiable` unless the holder of *key* answered this challenge."""
    key.verify(unb64url(given), _said(challenge))


def _refuse(detail: str) -> Unverifiable:
    return Unverifiable(Reason.TICKET_INVALID, f"challenge: {detail}")
