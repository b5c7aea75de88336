"""Challenges: the gateway asks a node to show something, now; the node's answer is signed with its own key.

- An *echo* proves only how far away the holder of the key can be at most: an answer cannot come sooner than light.
- *ready* asks it to make ready for a product, so that the time of that is not counted.
- A *product* proves that so much arithmetic was done in so much time (:mod:`trust.product`): the answer is the
  commitment to its rows, and *rows* then asks for some of them.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from trust.canonical import sha256_hex
from trust.identity import jws
from trust.identity.keys import PublicKey, Signer, b64url, unb64url
from trust.reasons import Reason, Unverifiable

TYP: Final = "licet-challenge+jwt"
MAX_LIFE_S: Final = 60
CLOCK_SKEW_S: Final = 5
MIN_SIZE: Final = 16
MAX_SIZE: Final = 32_768
ROWS: Final = 32
"""So many rows of a product are looked at."""

Size = Annotated[int, msgspec.Meta(ge=MIN_SIZE, le=MAX_SIZE)]
Row = Annotated[int, msgspec.Meta(ge=0, lt=MAX_SIZE)]


class Challenge(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For one ``node`` in one ``epoch``; ``nonce`` is hexadecimal, and the seed of a product; Unix seconds. ``size`` is
    that of a product, ``rows`` those that are asked for."""

    kind: Literal["echo", "ready", "product", "rows"]
    nonce: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
    node: str
    epoch: int
    issued_at: int
    deadline: int
    size: Size = MIN_SIZE
    rows: Annotated[tuple[Row, ...], msgspec.Meta(max_length=ROWS)] = ()


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
    if any(row >= challenge.size for row in challenge.rows):
        raise _refuse(f"asks for rows beyond {challenge.size}")
    return challenge


def _said(challenge: Challenge, shown: bytes) -> bytes:
    return f"licet-challenge {sha256_hex(msgspec.json.encode(challenge))} {sha256_hex(shown)}".encode()


def answer(challenge: Challenge, shown: bytes, key: Signer) -> bytes:
    """The node's word that it heard this challenge: a signature, a dot, and what it *shows* (both base64url)."""
    return f"{b64url(key.sign(_said(challenge, shown)))}.{b64url(shown)}".encode("ascii")


def open_answer(challenge: Challenge, given: bytes, key: PublicKey) -> bytes:
    """What the holder of *key* shows for this challenge; :class:`Unverifiable` if it was somebody else."""
    signature, dot, shown = given.decode("ascii", "replace").partition(".")
    if not dot:
        raise _refuse("the answer is no signature and what it stands under")
    what = unb64url(shown)
    key.verify(unb64url(signature), _said(challenge, what))
    return what


def _refuse(detail: str) -> Unverifiable:
    return Unverifiable(Reason.TICKET_INVALID, f"challenge: {detail}")
