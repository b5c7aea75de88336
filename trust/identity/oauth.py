"""Tokens of somebody else's issuer: access tokens (RFC 9068) and ID tokens (OpenID Connect), for exactly us.

A second door to PyJWT, for algorithms that authorization servers use. As everywhere its decoder is not used: header
and claims are read by our own strict pass, and the library checks one signature with one key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

import jwt
import msgspec

from trust.canonical import JsonObject, JsonValue, read_object
from trust.identity.jws import MAX_TOKEN_BYTES
from trust.identity.keys import unb64url
from trust.reasons import Reason, Unverifiable, visible

Algorithm = Literal["EdDSA", "ES256", "RS256"]
CLOCK_SKEW_S: Final = 5
MAX_LIFE_S: Final = 24 * 3600
"""An access token that lives longer is a password."""
MIN_RSA_BITS: Final = 2048
_ACCESS: Final = ("at+jwt", "application/at+jwt")
_ID: Final = ("jwt", "")
"""An ID token needs no typ; an access token says that it is one, so neither passes for the other."""
_HEADER: Final = frozenset({"alg", "typ", "kid", "x5t"})
_KINDS: Final[Mapping[str, tuple[str, str]]] = {
    "EdDSA": ("OKP", "Ed25519"),
    "ES256": ("EC", "P-256"),
    "RS256": ("RSA", ""),
}
_algorithms: Final = jwt.algorithms.get_default_algorithms()


class Issuer(msgspec.Struct, frozen=True):
    """Whom we believe: its ``iss``, its one algorithm, and its keys by ``kid``."""

    name: str
    algorithm: Algorithm
    keys: Mapping[str, Any]


class Bearer(msgspec.Struct, frozen=True):
    """Who a token speaks for."""

    subject: str
    client: str
    scopes: frozenset[str]
    expires_at: int


def keys_of(jwks: bytes, algorithm: Algorithm) -> dict[str, Any]:
    """The keys of a JWK Set that can verify *algorithm*, by ``kid``; others are passed over."""
    found: dict[str, Any] = {}
    listed = read_object(jwks).get("keys")
    if not isinstance(listed, list):
        raise _refuse('expected a JWK Set: {"keys": […]}')
    kind, curve = _KINDS[algorithm]
    for jwk in listed:
        if not isinstance(jwk, dict) or jwk.get("kty") != kind or jwk.get("crv", "") != curve:
            continue
        if jwk.get("use", "sig") != "sig" or not isinstance(jwk.get("kid"), str) or "d" in jwk:
            continue
        try:
            key: Any = _algorithms[algorithm].from_jwk(dict(jwk))
        except Exception:
            raise _refuse(f"the key {visible(str(jwk['kid']))} cannot be read") from None
        if kind == "RSA" and key.key_size < MIN_RSA_BITS:
            raise _refuse(f"the key {visible(str(jwk['kid']))} has {key.key_size} bits; expected {MIN_RSA_BITS}")
        found[str(jwk["kid"])] = key
    return found


def key_id(token: str) -> str:
    """The ``kid`` that *token* names, before anything of it is believed."""
    return str(_parts(token)[0].get("kid", ""))


def verify(token: str, *, issuer: Issuer, audience: str, now: float) -> Bearer:
    """Who *token* speaks for, or :class:`Unverifiable`. *audience*: the resource that we are, compared as text."""
    claims = _signed(token, issuer, audience, _ACCESS)
    end = _in_time(claims, now)
    subject, client, scope = claims.get("sub"), claims.get("client_id", ""), claims.get("scope", "")
    if not isinstance(subject, str) or not subject or not isinstance(client, str) or not isinstance(scope, str):
        raise _refuse("expected sub, client_id and scope as texts")
    return Bearer(subject, client, frozenset(scope.split()), end)


def verify_id_token(token: str, *, issuer: Issuer, client: str, nonce: str, now: float) -> JsonObject:
    """The claims of an ID token for us as *client*, in answer to *nonce*, or :class:`Unverifiable` (OpenID Connect Core
    1.0, section 3.1.3.7)."""
    claims = _signed(token, issuer, client, _ID)
    _in_time(claims, now)
    if not isinstance(claims.get("sub"), str) or not claims["sub"]:
        raise _refuse("it says nobody's sub")
    if claims.get("azp", client) != client:
        raise _refuse("issued to another client")
    if claims.get("nonce") != nonce:
        raise _refuse("it answers another sign-in (its nonce is not ours)")
    return claims


def _signed(token: str, issuer: Issuer, audience: str, types: tuple[str, ...]) -> JsonObject:
    header, claims, signed, signature = _parts(token)
    if not set(header) <= _HEADER or header.get("alg") != issuer.algorithm:
        raise _refuse(f"expected the header alg {issuer.algorithm}, typ {types[0]} and kid")
    if str(header.get("typ", "")).lower() not in types:
        raise _refuse(f"its typ is not {types[0]}: it is a token for something else")
    key = issuer.keys.get(str(header.get("kid", "")))
    if key is None or not _algorithms[issuer.algorithm].verify(signed, key, signature):
        raise _refuse("its signature does not verify with a key of the issuer")
    if claims.get("iss") != issuer.name:
        raise _refuse("issued by somebody else")
    if claims.get("aud") not in (audience, [audience]):
        raise _refuse(f"made for another audience than {audience}")
    return claims


def _in_time(claims: JsonObject, now: float) -> int:
    """When it ends."""
    begin, end = _moment(claims, "iat"), _moment(claims, "exp")
    not_before = _moment(claims, "nbf") if "nbf" in claims else begin
    if not max(begin, not_before) - CLOCK_SKEW_S <= now < end:
        raise _refuse("outside of its time")
    if end - begin > MAX_LIFE_S:
        raise _refuse("lives longer than a day")
    return end


def _moment(claims: JsonObject, name: str) -> int:
    value: JsonValue = claims.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _refuse(f"{name}: expected Unix seconds as a whole number")
    return value


def _parts(token: str) -> tuple[JsonObject, JsonObject, bytes, bytes]:
    parts = token.split(".")
    if len(token) > MAX_TOKEN_BYTES or len(parts) != 3 or not all(parts) or not token.isascii():
        raise _refuse("expected three base64url parts with dots between")
    try:
        header, claims = read_object(unb64url(parts[0])), read_object(unb64url(parts[1]))
    except Unverifiable as bad:
        raise _refuse(bad.detail) from None
    return header, claims, f"{parts[0]}.{parts[1]}".encode("ascii"), unb64url(parts[2])


def _refuse(detail: str) -> Unverifiable:
    return Unverifiable(Reason.UNAUTHENTICATED, f"token: {detail}")
