"""Workload Identity Tokens (WIMSE): the trust domain's word for which key speaks for which workload.

A WIT is a JWT, ``typ: wit+jwt``, EdDSA, valid for at most an hour. It names the workload (``sub``), its DID
and the key that its holder must prove (``cnf.jwk``). Source: draft-ietf-wimse-workload-creds.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from trust.canonical import jcs
from trust.identity import jws
from trust.identity.keys import PublicKey, Signer
from trust.reasons import Reason, Unverifiable

TYP: Final = "wit+jwt"
MAX_LIFE_S: Final = 3600
CLOCK_SKEW_S: Final = 5
"""How far two clocks of one trust domain may differ; more would lengthen the life of a stolen token."""

WorkloadKind = Literal["agent", "node"]


class Workload(msgspec.Struct, frozen=True):
    """Who a verified WIT speaks for."""

    trust_domain: str
    kind: WorkloadKind
    name: str
    did: str
    key: PublicKey
    revision: int
    expires_at: int

    @property
    def subject(self) -> str:
        return f"wimse://{self.trust_domain}/{self.kind}/{self.name}"


class _Claims(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    iss: str
    sub: str
    did: str
    iat: int
    exp: int
    jti: str
    cnf: dict[Literal["jwk"], dict[str, str]]
    rev: int


def issue(workload: Workload, *, now: int, token_id: str, key: Signer) -> str:
    """A WIT for *workload*, signed by the trust domain's *key*."""
    if workload.expires_at - now > MAX_LIFE_S:
        raise ValueError(f"a WIT lives at most {MAX_LIFE_S} s")
    claims = {
        "iss": f"https://{workload.trust_domain}",
        "sub": workload.subject,
        "did": workload.did,
        "iat": now,
        "exp": workload.expires_at,
        "jti": token_id,
        "cnf": {"jwk": dict(workload.key.jwk)},
        "rev": workload.revision,
    }
    return jws.seal(jcs(claims), TYP, key)  # type: ignore[arg-type]


def verify(token: str, *, now: float, trust_domain: str, issuer: PublicKey, renewing: bool = False) -> Workload:
    """The workload that *token* speaks for, or :class:`Unverifiable`. *renewing*: also one that is over, for who asks
    for the next: whether its key is still believed says who gives that."""
    payload = jws.open_sealed(token, TYP, issuer)
    jws.peek(token, TYP)  # refuses duplicate claims, which msgspec would not notice
    try:
        claims = msgspec.json.decode(payload, type=_Claims)
    except msgspec.DecodeError as bad:
        raise _refuse(f"claims: {bad}") from None
    if claims.iss != f"https://{trust_domain}":
        raise _refuse("issued by another trust domain")
    if now < claims.iat - CLOCK_SKEW_S or (now >= claims.exp and not renewing):
        raise _refuse("outside of its time")
    if claims.exp - claims.iat > MAX_LIFE_S:
        raise _refuse("lives longer than an hour")
    kind, name = _subject(claims.sub, trust_domain)
    key = PublicKey.from_jwk(claims.cnf.get("jwk"))
    return Workload(trust_domain, kind, name, claims.did, key, claims.rev, claims.exp)


def _subject(subject: str, trust_domain: str) -> tuple[WorkloadKind, str]:
    prefix = f"wimse://{trust_domain}/"
    kind, _, name = subject.removeprefix(prefix).partition("/")
    if subject.startswith(prefix) and name and "/" not in name:
        if kind == "agent":
            return "agent", name
        if kind == "node":
            return "node", name
    raise _refuse("the subject is not a workload of this trust domain")


def _refuse(detail: str) -> Unverifiable:
    return Unverifiable(Reason.UNAUTHENTICATED, f"workload identity token: {detail}")
