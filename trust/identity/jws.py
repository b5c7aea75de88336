"""Compact JWS with one algorithm and one type per use: the form of every signed statement of Licet.

The one door to PyJWT. Its decoder takes the last of duplicate claims, ignores a wrong ``typ`` and lets
``exp`` be missing, so header and claims are read by our own strict reader, once; PyJWT checks the signature
over the very bytes that were read.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import jwt

from trust.canonical import JsonObject, jcs, read_object
from trust.identity.keys import PublicKey, Signer, b64url, unb64url
from trust.reasons import Reason, Unverifiable

MAX_TOKEN_BYTES: Final = 1 << 16
"""64 KiB: the limit of one token in a delegation chain, and plenty for every other."""

_eddsa = jwt.algorithms.OKPAlgorithm()


def _refuse(detail: str) -> Unverifiable:
    return Unverifiable(Reason.UNAUTHENTICATED, detail)


def seal(payload: bytes, typ: str, key: Signer) -> str:
    """Sign *payload* as type *typ*: three base64url parts with dots between."""
    signed = f"{_header(typ)}.{b64url(payload)}"
    return f"{signed}.{b64url(key.sign(signed.encode('ascii')))}"


@lru_cache(maxsize=32)
def _header(typ: str) -> str:
    return b64url(jcs({"alg": "EdDSA", "typ": typ}))


def open_sealed(token: str, typ: str, key: PublicKey) -> bytes:
    """The payload of *token*, or :class:`Unverifiable` unless it is a *typ* signed by *key*."""
    payload, signature = _parts(token, typ)
    signed = token[: token.rindex(".")].encode("ascii")
    if not _eddsa.verify(signed, key.handle, signature):
        raise _refuse(f"the signature of this {typ} does not verify")
    return payload


def peek(token: str, typ: str) -> JsonObject:
    """The claims of *token* before anybody has believed them, to find the key that must have signed it."""
    payload, _ = _parts(token, typ)
    return read_object(payload)


def _parts(token: str, typ: str) -> tuple[bytes, bytes]:
    """Payload and signature of *token*, if it is of this form and type."""
    if len(token) > MAX_TOKEN_BYTES:
        raise _refuse("the token is too long")
    parts = token.split(".")
    if len(parts) != 3 or not all(parts):
        raise _refuse("expected three base64url parts with dots between")
    header = read_object(unb64url(parts[0]))
    if header != {"alg": "EdDSA", "typ": typ}:
        raise _refuse(f"expected exactly the header alg EdDSA, typ {typ}")
    return unb64url(parts[1]), unb64url(parts[2])
