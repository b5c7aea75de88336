"""Sessions: a secret that two parties share for five minutes, so that requests need a MAC and no signature.

One side asks with a strong-signed request that carries an X25519 key. The other answers with its own key in a
statement that it signs, so that nobody between them can put in another. Both derive the secret from the keys
and from everything that was said; it is never sent and never stored.
"""

from __future__ import annotations

import hmac
from typing import Final

import msgspec

from trust.canonical import jcs
from trust.identity import jws
from trust.identity.keys import Exchange, PublicKey, SecretKey, b64url, unb64url
from trust.reasons import Reason, Unverifiable

TYP: Final = "licet-session+jwt"
MAX_LIFE_S: Final = 300
CLOCK_SKEW_S: Final = 5


class Terms(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What both sides agree on. ``client`` and ``server`` are X25519 keys, base64url; times are Unix seconds."""

    session: str
    subject: str
    audience: str
    client: str
    server: str
    issued_at: int
    expires_at: int

    @property
    def info(self) -> bytes:
        """What the secret is bound to."""
        return b"licet session\n" + jcs(msgspec.to_builtins(self))


def answer(
    client: str, *, session: str, subject: str, audience: str, now: int, key: SecretKey
) -> tuple[Terms, bytes, str]:
    """The responder's side: the terms, the secret, and the signed statement for whoever asked."""
    own = _own(session, key)
    terms = Terms(session, subject, audience, client, b64url(own.public), now, now + MAX_LIFE_S)
    secret = own.agree(unb64url(client), terms.info)
    return terms, secret, jws.seal(jcs(msgspec.to_builtins(terms)), TYP, key)


def again(statement: str, key: SecretKey, *, audience: str, now: float) -> tuple[Terms, bytes]:
    """The terms and the secret of a session that somebody who has the same *key* answered, from the signed statement;
    or :class:`Unverifiable`."""
    terms = _terms(statement, key.public)
    if terms.audience != audience or now >= terms.expires_at:
        raise _refuse("over, or made for another audience")
    return terms, _own(terms.session, key).agree(unb64url(terms.client), terms.info)


def _own(session: str, key: SecretKey) -> Exchange:
    """The responder's half: whoever has its key makes the same one, so that several gateways can be one responder."""
    return Exchange(key.derive(f"session {session}"))


def _terms(statement: str, responder: PublicKey) -> Terms:
    try:
        return msgspec.json.decode(jws.open_sealed(statement, TYP, responder), type=Terms)
    except msgspec.DecodeError as bad:
        raise _refuse(str(bad)) from None


def accept(
    statement: str, own: Exchange, *, subject: str, audience: str, now: float, responder: PublicKey
) -> tuple[Terms, bytes]:
    """The asking side: the terms and the secret, or :class:`Unverifiable` if the statement is not an answer
    to *own* by *responder*."""
    terms = _terms(statement, responder)
    if terms.client != b64url(own.public):
        raise _refuse("answers another key")
    if (terms.subject, terms.audience) != (subject, audience):
        raise _refuse("made for another subject or audience")
    if not terms.issued_at - CLOCK_SKEW_S <= now < terms.expires_at:
        raise _refuse("outside of its time")
    if terms.expires_at - terms.issued_at > MAX_LIFE_S:
        raise _refuse("lives too long")
    return terms, own.agree(unb64url(terms.server), terms.info)


def backward(secret: bytes) -> bytes:
    """The key for what the responder sends on its own: another one, so that nothing can be sent back where it came
    from."""
    return hmac.digest(secret, b"licet session, responder to initiator", "sha256")


def _refuse(detail: str) -> Unverifiable:
    return Unverifiable(Reason.UNAUTHENTICATED, f"session: {detail}")
