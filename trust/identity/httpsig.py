"""Signed requests: RFC 9421 in one fixed profile (WIMSE HTTP signatures, Ed25519).

One signature named ``wimse``, no ``alg`` and no ``keyid`` (the WIT names the key), at most 60 seconds, a
nonce, and an audience that comes from configuration, never from ``Host``. The covered components are not
the signer's choice: all of :data:`COVERED` that are present, in this order, and a body always needs its
digest. So a verifier rebuilds the base from the request and compares, and there is nothing to negotiate.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from trust.identity.keys import SIGNATURE_BYTES, PublicKey, SecretKey
from trust.reasons import Reason, Unverifiable

COVERED: Final = (
    "@method",
    "@authority",
    "@request-target",
    "content-type",
    "content-digest",
    "workload-identity-token",
    "licet-delegation",
    "idempotency-key",
)
TAG: Final = "wimse-workload-to-workload"
LABEL: Final = "wimse"
MAX_LIFE_S: Final = 60
CLOCK_SKEW_S: Final = 5
_DERIVED: Final = frozenset(name for name in COVERED if name.startswith("@"))

_INPUT: Final = re.compile(
    rf"{LABEL}=(?P<params>\((?P<covered>(?:\"[@a-z-]+\"(?: (?!\))|(?=\))))*)\)"
    r";created=(?P<created>[0-9]{1,12})"
    r";expires=(?P<expires>[0-9]{1,12})"
    r";nonce=\"(?P<nonce>[A-Za-z0-9_-]{16,64})\""
    rf";tag=\"{TAG}\""
    r";wimse-aud=\"(?P<audience>[!#-\[\]-~]{1,256})\")"
)
_SIGNATURE: Final = re.compile(rf"{LABEL}=:(?P<value>[A-Za-z0-9+/]{{86}}==):")


class Request(msgspec.Struct, frozen=True):
    """What is signed of an HTTP request. Header names are lowercase; a name appears once per field line."""

    method: str
    authority: str
    target: str
    headers: Sequence[tuple[str, str]]
    body: bytes

    def only(self, name: str) -> str | None:
        """The value of a header that may stand at most once."""
        found = [value for header, value in self.headers if header == name]
        if len(found) > 1:
            raise _refuse(f"the header {name} stands {len(found)} times")
        return found[0].strip(" \t") if found else None


class Signed(msgspec.Struct, frozen=True):
    """What a verified signature says beside the request itself."""

    nonce: str
    expires_at: int
    base: bytes


def _refuse(detail: str) -> Unverifiable:
    return Unverifiable(Reason.UNAUTHENTICATED, f"request signature: {detail}")


def content_digest(body: bytes) -> str:
    """RFC 9530 ``Content-Digest`` with SHA-256."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode('ascii')}:"


def signature_base(components: Iterable[tuple[str, str]], params: str) -> bytes:
    """RFC 9421, section 2.5."""
    lines = [f'"{name}": {value}' for name, value in components]
    try:
        return "\n".join([*lines, f'"@signature-params": {params}']).encode("ascii")
    except UnicodeEncodeError:
        raise _refuse("a covered component is not ASCII") from None


def _components(request: Request) -> list[tuple[str, str]]:
    derived = {
        "@method": request.method,
        "@authority": request.authority.lower(),
        "@request-target": request.target,
    }
    found: list[tuple[str, str]] = []
    for name in COVERED:
        value = derived[name] if name in _DERIVED else request.only(name)
        if value is not None:
            found.append((name, value))
    return found


def sign(request: Request, *, wit: str, key: SecretKey, audience: str, created: int, nonce: str) -> dict[str, str]:
    """The headers that make *request* a signed one: its token, digest and signature."""
    added = {"workload-identity-token": wit}
    if request.body:
        added["content-digest"] = content_digest(request.body)
    complete = Request(
        request.method,
        request.authority,
        request.target,
        [*request.headers, *added.items()],
        request.body,
    )
    components = _components(complete)
    covered = " ".join(f'"{name}"' for name, _ in components)
    params = (
        f"({covered});created={created};expires={created + MAX_LIFE_S}"
        f';nonce="{nonce}";tag="{TAG}";wimse-aud="{audience}"'
    )
    signature = key.sign(signature_base(components, params))
    value = base64.b64encode(signature).decode("ascii")
    return added | {"signature-input": f"{LABEL}={params}", "signature": f"{LABEL}=:{value}:"}


def verify(request: Request, *, key: PublicKey, audience: str, now: float, not_before: float = 0.0) -> Signed:
    """What the signature on *request* says, or :class:`Unverifiable`.

    The nonce is for the caller to remember, and only now: a nonce remembered before the signature holds
    would let anybody burn another's. *not_before* is when the verifier began to remember: what was signed
    earlier may have been accepted before a restart.
    """
    given_input, given = request.only("signature-input"), request.only("signature")
    if given_input is None or given is None:
        raise _refuse("missing")
    match, value = _INPUT.fullmatch(given_input), _SIGNATURE.fullmatch(given)
    if match is None or value is None:
        raise _refuse("not in the one profile that is accepted")
    components = _components(request)
    if match["covered"] != " ".join(f'"{name}"' for name, _ in components):
        raise _refuse("does not cover exactly what the profile asks for")
    if request.body or request.only("content-digest") is not None:
        _check_digest(request)
    if match["audience"] != audience:
        raise _refuse("made for another audience")
    created, expires = int(match["created"]), int(match["expires"])
    if not created - CLOCK_SKEW_S <= now < expires or expires - created > MAX_LIFE_S:
        raise _refuse("outside of its time")
    if created < int(not_before):
        raise _refuse("made before this verifier started; sign again")
    base = signature_base(components, match["params"])
    signature = base64.b64decode(value["value"])
    if len(signature) != SIGNATURE_BYTES:
        raise _refuse("wrong length")
    key.verify(signature, base)
    return Signed(match["nonce"], expires, base)


def _check_digest(request: Request) -> None:
    if request.only("content-digest") != content_digest(request.body):
        raise _refuse("Content-Digest does not match the body")


def headers_of(mapping: Mapping[str, str]) -> list[tuple[str, str]]:
    """Header pairs as :class:`Request` wants them."""
    return [(name.lower(), value) for name, value in mapping.items()]
