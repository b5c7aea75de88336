"""Sessions: a secret that only two know, bound to everything that was said, and MACs that cover the request."""

from __future__ import annotations

import hashlib
import hmac

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trust.canonical import jcs
from trust.identity import httpsig, jws, session
from trust.identity.httpsig import Request
from trust.identity.keys import Exchange, SecretKey, b64url
from trust.identity.session import Terms
from trust.reasons import Unverifiable

GATEWAY, OTHER = SecretKey(bytes(range(32))), SecretKey(bytes(32))
NOW = 1_800_000_000
SUBJECT, AUDIENCE = "wimse://mesh.test/agent/a1", "gw"


def opened(own: Exchange, key: SecretKey = GATEWAY, **changed: object) -> tuple[Terms, bytes, str]:
    asked = {"session": "ses_1", "subject": SUBJECT, "audience": AUDIENCE, "now": NOW, "key": key} | changed
    return session.answer(b64url(own.public), **asked)  # type: ignore[arg-type]


def accept(statement: str, own: Exchange, now: float = NOW + 1, subject: str = SUBJECT) -> tuple[Terms, bytes]:
    return session.accept(statement, own, subject=subject, audience=AUDIENCE, now=now, responder=GATEWAY.public)


def test_both_sides_come_to_the_same_secret_and_each_session_to_another() -> None:
    own = Exchange()
    terms, secret, statement = opened(own)
    assert accept(statement, own) == (terms, secret)
    assert len(secret) == 32
    assert opened(own, session="ses_2")[1] != secret
    assert opened(Exchange())[1] != secret


def test_whoever_has_the_responders_key_comes_to_the_same_secret_and_nobody_else() -> None:
    """Several gateways are one responder."""
    terms, secret, statement = opened(Exchange())
    assert session.again(statement, GATEWAY, audience=AUDIENCE, now=NOW + 1) == (terms, secret)
    for key, audience, now in ((OTHER, AUDIENCE, NOW), (GATEWAY, "other", NOW), (GATEWAY, AUDIENCE, NOW + 300)):
        with pytest.raises(Unverifiable):
            session.again(statement, key, audience=audience, now=now)


def test_a_statement_is_for_one_key_subject_audience_and_time() -> None:
    own = Exchange()
    statement = opened(own)[2]
    for wrong in (
        lambda: accept(statement, Exchange()),
        lambda: accept(statement, own, subject="wimse://mesh.test/agent/a2"),
        lambda: accept(opened(own, audience="elsewhere")[2], own),
        lambda: accept(statement, own, now=NOW + session.MAX_LIFE_S),
        lambda: accept(statement, own, now=NOW - 6),
        lambda: accept(opened(own, key=OTHER)[2], own),
        lambda: accept(statement[:-4] + "AAAA", own),
    ):
        with pytest.raises(Unverifiable):
            wrong()


def test_whoever_stands_between_cannot_put_in_a_key_or_a_longer_life() -> None:
    own, between = Exchange(), Exchange()
    terms = opened(own)[0]
    for changed in ({"server": b64url(between.public)}, {"expires_at": NOW + 301}):
        forged = jcs(msgspec.to_builtins(msgspec.structs.replace(terms, **changed)))
        with pytest.raises(Unverifiable):
            accept(jws.seal(forged, session.TYP, OTHER), own)
    longer = jcs(msgspec.to_builtins(msgspec.structs.replace(terms, expires_at=NOW + 301)))
    with pytest.raises(Unverifiable, match="lives too long"):
        accept(jws.seal(longer, session.TYP, GATEWAY), own)


@pytest.mark.parametrize("weak", [bytes(32), (1).to_bytes(32, "little"), b"short"])
def test_a_weak_key_gives_no_secret(weak: bytes) -> None:
    with pytest.raises(Unverifiable):
        Exchange().agree(weak, b"")


SECRET = bytes(range(32))


def request(body: bytes = b'{"x":1}', **more: str) -> Request:
    given_headers = [("content-type", "application/json"), *((k.replace("_", "-"), v) for k, v in more.items())]
    return Request("POST", "gateway:7400", "/v1/dispatch", given_headers, body)


def maced(asked: Request, secret: bytes = SECRET, name: str = "ses_1", nonce: str = "n" * 20) -> Request:
    added = httpsig.mac(asked, session=name, key=secret, audience=AUDIENCE, created=NOW, nonce=nonce)
    return msgspec.structs.replace(asked, headers=[*asked.headers, *added.items()])


def check(asked: Request, key: object = SECRET, now: float = NOW + 1) -> httpsig.Claim:
    claim = httpsig.read(asked, audience=AUDIENCE, now=now)
    httpsig.prove(claim, asked, key)  # type: ignore[arg-type]
    return claim


def test_a_mac_names_its_session_and_is_plain_hmac_over_the_signature_base() -> None:
    asked = maced(request())
    claim = check(asked)
    assert claim.session == "ses_1"
    assert claim.signature == hmac.new(SECRET, claim.base, hashlib.sha256).digest()
    lines = claim.base.decode().splitlines()
    assert lines[0] == '"@method": POST'
    assert lines[-1].endswith(f';alg="hmac-sha256";keyid="ses_1";tag="{httpsig.TAG}";wimse-aud="gw"')


def changed(asked: Request, name: str, old: str, new: str) -> Request:
    headers = [(k, v.replace(old, new) if k == name else v) for k, v in asked.headers]
    return msgspec.structs.replace(asked, headers=headers)


GOOD = maced(request(idempotency_key="k1"))
BAD = {
    "another body": msgspec.structs.replace(GOOD, body=b"{}"),
    "another target": msgspec.structs.replace(GOOD, target="/v1/session"),
    "another session": changed(GOOD, "signature-input", "ses_1", "ses_2"),
    "no session": changed(GOOD, "signature-input", ';alg="hmac-sha256";keyid="ses_1"', ""),
    "another algorithm": changed(GOOD, "signature-input", "hmac-sha256", "hmac-sha512"),
    "another nonce": changed(GOOD, "signature-input", "n" * 20, "m" * 20),
    "a delegation slipped in": msgspec.structs.replace(GOOD, headers=[*GOOD.headers, ("licet-delegation", "x")]),
    "another secret": maced(request(), secret=bytes(32)),
    "cut": changed(GOOD, "signature", "=:", ":"),
}


@pytest.mark.parametrize("asked", BAD.values(), ids=BAD.keys())
def test_a_changed_request_has_no_mac(asked: Request) -> None:
    with pytest.raises(Unverifiable):
        check(asked)


def test_the_two_forms_are_never_taken_for_each_other() -> None:
    with pytest.raises(Unverifiable):
        check(maced(request()), key=GATEWAY.public)
    added = httpsig.sign(request(), wit="w", key=GATEWAY, audience=AUDIENCE, created=NOW, nonce="n" * 20)
    signed = msgspec.structs.replace(request(), headers=[*request().headers, *added.items()])
    check(signed, key=GATEWAY.public)
    with pytest.raises(Unverifiable):
        check(signed, key=GATEWAY.public.raw)


@given(st.integers(0, 31), st.integers(1, 255))
def test_no_flipped_bit_in_a_mac_verifies(position: int, flip: int) -> None:
    claim = httpsig.read(GOOD, audience=AUDIENCE, now=NOW + 1)
    raw = bytearray(claim.signature)
    raw[position] ^= flip
    with pytest.raises(Unverifiable):
        httpsig.prove(msgspec.structs.replace(claim, signature=bytes(raw)), GOOD, SECRET)
