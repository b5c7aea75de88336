"""Compact JWS with one algorithm and one type per use: the form of every signed statement of Licet.

The one door to PyJWT. Its decoder takes the last of duplicate claims, ignores a wrong ``typ`` and lets
``exp`` be missing, so the header and claims pass our own strict reader first; PyJWT checks the signature.
"""

from __future__ import annotations

from typing import Final

import jwt

from trust.canonical import JsonObject, read_object
from trust.identity.keys import PublicKey, SecretKey, unb64url
from trust.reasons import Reason, Unverifiable

MAX_TOKEN_BYTES: Final = 1 << 16
"""64 KiB: the limit of one token in a delegation chain, and plenty for every other."""

_jws = jwt.PyJWS(algorithms=["EdDSA"])


def _refuse(detail: str) -> Unverifiable:
    return Unverifiable(Reason.UNAUTHENTICATED, detail)


def seal(payload: bytes, typ: str, key: SecretKey) -> str:
    """Sign *payload* as type *typ*: three base64url parts with dots between."""
    return _jws.encode(payload, key.handle, algorithm="EdDSA", headers={"typ": typ}, sort_headers=True)


def open_sealed(token: str, typ: str, key: PublicKey) -> bytes:
    """The payload of *token*, or :class:`Unverifiable` unless it is a *typ* signed by *key*."""
    _require_header(token, typ)
    try:
        return bytes(_jws.decode(token, key.handle, algorithms=["EdDSA"]))
    except jwt.InvalidTokenError:
        raise _refuse(f"the signature of this {typ} does not verify") from None


def peek(token: str, typ: str) -> JsonObject:
    """The claims of *token* before anybody has believed them, to find the key that must have signed it."""
    _require_header(token, typ)
    return read_object(unb64url(token.split(".")[1]))


def _require_header(token: str, typ: str) -> None:
    if len(token) > MAX_TOKEN_BYTES:
        raise _refuse("the token is too long")
    parts = token.split(".")
    if len(parts) != 3 or not all(parts):
        raise _refuse("expected three base64url parts with dots between")
    header = read_object(unb64url(parts[0]))
    if header != {"alg": "EdDSA", "typ": typ}:
        raise _refuse(f"expected exactly the header alg EdDSA, typ {typ}")
    unb64url(parts[1])
    unb64url(parts[2])
