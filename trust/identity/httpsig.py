"""Signed requests: RFC 9421 in one fixed profile (WIMSE HTTP signatures), in two forms.

The strong form is signed with the Ed25519 key that the request's WIT names: no ``alg``, no ``keyid``. The
session form is a MAC under a key that both sides derived when the session was opened by a strong request:
``alg="hmac-sha256"`` and ``keyid`` is the session. Either way: one signature named ``wimse``, at most 60 seconds,
a nonce, and an audience that comes from configuration, never from ``Host``. The covered components are not
the signer's choice: all of :data:`COVERED` that are present, in this order, and a body always needs its
digest. So a verifier rebuilds the base from the request and compares, and there is nothing to negotiate.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from trust.identity.keys import SIGNATURE_BYTES, PublicKey, Signer, unb64
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
MAC_ALGORITHM: Final = "hmac-sha256"
MAC_BYTES: Final = 32
MAX_LIFE_S: Final = 60
CLOCK_SKEW_S: Final = 5
_HEADERS: Final = frozenset(name for name in COVERED if not name.startswith("@"))
_ONCE: Final = _HEADERS | {"signature-input", "signature"}

_INPUT: Final = re.compile(
    rf"{LABEL}=(?P<params>\((?P<covered>(?:\"[@a-z-]+\"(?: (?!\))|(?=\))))*)\)"
    r";created=(?P<created>[0-9]{1,12})"
    r";expires=(?P<expires>[0-9]{1,12})"
    r";nonce=\"(?P<nonce>[A-Za-z0-9_-]{16,64})\""
    rf"(?:;alg=\"{MAC_ALGORITHM}\";keyid=\"(?P<session>[A-Za-z0-9_]{{1,64}})\")?"
    rf";tag=\"{TAG}\""
    r";wimse-aud=\"(?P<audience>[!#-\[\]-~]{1,256})\")"
)
_SIGNATURE: Final = re.compile(rf"{LABEL}=:(?P<value>[A-Za-z0-9+/]{{43,86}}={{1,2}}):")


class Request(msgspec.Struct, frozen=True):
    """What is signed of an HTTP request. Header names are lowercase; a name appears once per field line."""

    method: str
    authority: str
    target: str
    headers: Sequence[tuple[str, str]]
    body: bytes

    def only(self, name: str) -> str | None:
        """The value of a header that may stand at most once."""
        return _once(self).get(name)


class Claim(msgspec.Struct, frozen=True):
    """What a signature says of a request, in form and in time, before :func:`prove` held it against a key.

    ``session`` is empty in the strong form.
    """

    session: str
    nonce: str
    created_at: int
    expires_at: int
    base: bytes
    signature: bytes


def _refuse(detail: str) -> Unverifiable:
    return Unverifiable(Reason.UNAUTHENTICATED, f"request signature: {detail}")


def _once(request: Request) -> dict[str, str]:
    """The headers that matter here, each of which may stand once."""
    found: dict[str, str] = {}
    for name, value in request.headers:
        if name in _ONCE:
            if name in found:
                raise _refuse(f"the header {name} stands more than once")
            found[name] = value.strip(" \t")
    return found


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


def _components(request: Request, headers: Mapping[str, str]) -> list[tuple[str, str]]:
    known = {
        **headers,
        "@method": request.method,
        "@authority": request.authority.lower(),
        "@request-target": request.target,
    }
    return [(name, known[name]) for name in COVERED if name in known]


def sign(request: Request, *, wit: str, key: Signer, audience: str, created: int, nonce: str) -> dict[str, str]:
    """The headers that make *request* a signed one: its token, digest and signature."""
    added = {"workload-identity-token": wit}
    params, base = _prepared(request, added, audience, created, nonce, "")
    return added | _signature(params, key.sign(base))


def mac(request: Request, *, session: str, key: bytes, audience: str, created: int, nonce: str) -> dict[str, str]:
    """The headers that authenticate *request* within *session*: its digest and MAC."""
    added: dict[str, str] = {}
    params, base = _prepared(request, added, audience, created, nonce, session)
    return added | _signature(params, hmac.digest(key, base, "sha256"))


def _prepared(
    request: Request, added: dict[str, str], audience: str, created: int, nonce: str, session: str
) -> tuple[str, bytes]:
    """Signature parameters and base; the digest of a body joins *added*."""
    if request.body:
        added["content-digest"] = content_digest(request.body)
    components = _components(request, _once(request) | added)
    covered = " ".join(f'"{name}"' for name, _ in components)
    by = f';alg="{MAC_ALGORITHM}";keyid="{session}"' if session else ""
    params = (
        f"({covered});created={created};expires={created + MAX_LIFE_S}"
        f';nonce="{nonce}"{by};tag="{TAG}";wimse-aud="{audience}"'
    )
    return params, signature_base(components, params)


def _signature(params: str, signature: bytes) -> dict[str, str]:
    value = base64.b64encode(signature).decode("ascii")
    return {"signature-input": f"{LABEL}={params}", "signature": f"{LABEL}=:{value}:"}


def read(request: Request, *, audience: str, now: float, not_before: float = 0.0) -> Claim:
    """What the signature on *request* claims, if it is in the profile and in time, or :class:`Unverifiable`.

    *not_before* is when the verifier began to remember nonces: what was signed earlier may have been accepted
    before a restart.
    """
    headers = _once(request)
    match, value = (
        _INPUT.fullmatch(headers.get("signature-input", "")),
        _SIGNATURE.fullmatch(headers.get("signature", "")),
    )
    if match is None or value is None:
        raise _refuse("missing, or not in the one profile that is accepted")
    components = _components(request, headers)
    if match["covered"] != " ".join(f'"{name}"' for name, _ in components):
        raise _refuse("does not cover exactly what the profile asks for")
    if match["audience"] != audience:
        raise _refuse("made for another audience")
    created, expires = int(match["created"]), int(match["expires"])
    if not created - CLOCK_SKEW_S <= now < expires or expires - created > MAX_LIFE_S:
        raise _refuse("outside of its time")
    if created < int(not_before):
        raise _refuse("made before this verifier started; sign again")
    base = signature_base(components, match["params"])
    return Claim(match["session"] or "", match["nonce"], created, expires, base, unb64(value["value"]))


class Signed(msgspec.Struct, frozen=True):
    """What a signature base says by itself, for who has it from somebody else."""

    base: bytes
    nonce: str
    created_at: int
    audience: str
    components: Mapping[str, str]

    def component(self, name: str) -> str:
        """The value that was signed for *name*, or an empty string."""
        return self.components.get(f'"{name}"', "")


def read_base(base: bytes) -> Signed:
    """The base of a strong signature, taken apart; :class:`Unverifiable` if it is not one of this profile."""
    lines = base.decode("ascii", "replace").split("\n")
    named: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(": ")
        if not colon or name in named:
            raise _refuse("not a signature base")
        named[name] = value
    params = named.pop('"@signature-params"', "")
    match, covered = _INPUT.fullmatch(f"{LABEL}={params}"), " ".join(named)
    if match is None or match["session"] or match["covered"] != covered:
        raise _refuse("not a signature base of the one profile")
    return Signed(base, match["nonce"], int(match["created"]), match["audience"], named)


def prove(claim: Claim, request: Request, key: PublicKey | bytes) -> None:
    """Hold *claim* against the sender's public key or the session's secret, or :class:`Unverifiable`.

    The nonce is for the caller to remember, and only now: a nonce remembered before the signature holds
    would let anybody burn another's.
    """
    given = request.only("content-digest")
    if (request.body or given is not None) and given != content_digest(request.body):
        raise _refuse("Content-Digest does not match the body")
    if isinstance(key, PublicKey):
        if claim.session or len(claim.signature) != SIGNATURE_BYTES:
            raise _refuse("not in the strong form")
        key.verify(claim.signature, claim.base)
    elif not claim.session or not hmac.compare_digest(claim.signature, hmac.digest(key, claim.base, "sha256")):
        raise _refuse("the MAC does not verify")


def verify(request: Request, *, key: PublicKey, audience: str, now: float, not_before: float = 0.0) -> Claim:
    """What a strong signature on *request* says, once it holds, or :class:`Unverifiable`."""
    claim = read(request, audience=audience, now=now, not_before=not_before)
    prove(claim, request, key)
    return claim


def headers_of(mapping: Mapping[str, str]) -> list[tuple[str, str]]:
    """Header pairs as :class:`Request` wants them."""
    return [(name.lower(), value) for name, value in mapping.items()]
