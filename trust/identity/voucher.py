"""Vouchers: the issuer of a capability says that a node, by the key that it holds, has it until a time.

Where data is cannot be proved in software. What can be had is the word of whoever runs the place, bound to the one key
that the node there holds: a voucher that was copied to another node says nothing of that one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from trust.identity import jws
from trust.identity.keys import PublicKey, Signer
from trust.reasons import Reason, Unverifiable, visible

TYP: Final = "licet-voucher+jwt"
MAX_LIFE_S: Final = 366 * 86_400
CLOCK_SKEW_S: Final = 60


class Voucher(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``capability`` as a word (``data_locality=berlin``), ``node`` a DID, ``key`` its thumbprint; Unix seconds."""

    capability: str
    node: str
    key: str
    issued_at: int
    expires_at: int


def seal(voucher: Voucher, key: Signer) -> str:
    return jws.seal(msgspec.json.encode(voucher), TYP, key)


def open_voucher(token: str, issuers: Mapping[str, PublicKey], *, node: str, key: str, now: float) -> Voucher:
    """The voucher in *token*, if the issuer of its capability (*issuers*: by word) signed it for this *node* and *key*
    and it holds now; else :class:`Unverifiable`."""
    try:
        claimed = msgspec.convert(jws.peek(token, TYP), Voucher)
    except msgspec.ValidationError as bad:
        raise _refuse(str(bad)) from None
    issuer = issuers.get(claimed.capability)
    if issuer is None:
        known = ", ".join(sorted(issuers)) or "none"
        raise _refuse(f"nobody is configured to vouch for {visible(claimed.capability)}; configured: {known}")
    voucher = msgspec.json.decode(jws.open_sealed(token, TYP, issuer), type=Voucher)
    if voucher.node != node or voucher.key != key:
        raise _refuse(f"made for {visible(voucher.node)} and another key than this node has")
    if not voucher.issued_at - CLOCK_SKEW_S <= now < voucher.expires_at:
        raise _refuse("outside of its time")
    if voucher.expires_at - voucher.issued_at > MAX_LIFE_S:
        raise _refuse(f"it holds for more than {MAX_LIFE_S // 86_400} days")
    return voucher


def _refuse(detail: str) -> Unverifiable:
    return Unverifiable(Reason.UNAUTHENTICATED, f"voucher: {detail}")
