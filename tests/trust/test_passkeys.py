"""What passkeys sign: read by the library and by the bare verifier alike, and refused by both when anything differs."""

from __future__ import annotations

import hashlib
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.authenticator import EDDSA, ES256, PRESENT, RS256, Authenticator
from trust.identity import passkeys
from trust.identity.keys import b64url, unb64url
from trust.ledger.entries import Assertion
from trust.reasons import Unverifiable
from trust.verifier import passkeys as bare
from trust.verifier.notes import Fault

PARTY, ORIGIN = "licet.example", "https://licet.example:7400"
CHALLENGE = hashlib.sha256(b"asked").digest()
MADE = {algorithm: Authenticator(ORIGIN, algorithm) for algorithm in (ES256, EDDSA, RS256)}


def asked(challenge: bytes = CHALLENGE, party: str = PARTY) -> str:
    return json.dumps({"challenge": b64url(challenge), "rpId": party})


def signed(key: Authenticator, challenge: bytes = CHALLENGE, party: str = PARTY) -> Assertion:
    return passkeys.assertion(key.get(asked(challenge, party)))


def by_library(one: Assertion, key: Authenticator, party: str = PARTY) -> bool:
    try:
        passkeys.require_signed(one, b64url(key.cose()), challenge=CHALLENGE, party=party)
    except Unverifiable:
        return False
    return True


def by_bare(one: Assertion, key: Authenticator, party: str = PARTY) -> bool:
    try:
        bare.require_signed(msgspec.to_builtins(one), b64url(key.cose()), party, CHALLENGE)
    except (Fault, ValueError):
        return False
    return True


SIGNED = {algorithm: signed(key) for algorithm, key in MADE.items()}


@pytest.mark.parametrize("algorithm", MADE)
def test_what_is_signed_holds_for_both(algorithm: int) -> None:
    one = signed(MADE[algorithm])
    assert by_library(one, MADE[algorithm])
    assert by_bare(one, MADE[algorithm])


@pytest.mark.parametrize("algorithm", MADE)
def test_each_other_thing_is_refused_by_both(algorithm: int) -> None:
    key, other = MADE[algorithm], Authenticator(ORIGIN, algorithm)
    elsewhere, unseen = Authenticator("https://evil.example", algorithm), Authenticator(ORIGIN, algorithm, PRESENT)
    elsewhere.key = unseen.key = key.key
    wrong = [
        signed(key, hashlib.sha256(b"something else").digest()),
        signed(key, party="evil.example"),
        signed(other),
        signed(elsewhere),
        signed(unseen),
    ]
    for one in wrong:
        assert not by_library(one, key)
        assert not by_bare(one, key)


@given(st.sampled_from(sorted(MADE)), st.sampled_from(["authenticator_data", "signature", "client_data"]), st.data())
def test_no_byte_can_be_changed(algorithm: int, part: str, data: st.DataObject) -> None:
    key, one = MADE[algorithm], SIGNED[algorithm]
    plain = bytearray(unb64url(getattr(one, part)))
    at = data.draw(st.integers(0, len(plain) - 1))
    plain[at] ^= data.draw(st.integers(1, 255))
    changed = msgspec.structs.replace(one, **{part: b64url(bytes(plain))})
    assert not by_library(changed, key)
    assert not by_bare(changed, key)


def test_a_key_that_counts_must_go_on() -> None:
    key = Authenticator(ORIGIN, count=5)
    one = signed(key)
    arguments = {"challenge": CHALLENGE, "party": PARTY, "origin": ORIGIN}
    assert passkeys.count_of(one) == passkeys.require_signed(one, b64url(key.cose()), count=5, **arguments) == 6
    with pytest.raises(Unverifiable, match="sign count"):
        passkeys.require_signed(one, b64url(key.cose()), count=6, **arguments)


@given(st.binary(max_size=80))
def test_keys_that_are_none_are_refused(data: bytes) -> None:
    one = SIGNED[ES256]
    with pytest.raises(Unverifiable):
        passkeys.require_signed(one, b64url(data), challenge=CHALLENGE, party=PARTY)
    with pytest.raises(Fault):
        bare.require_signed(msgspec.to_builtins(one), b64url(data), PARTY, CHALLENGE)


@given(st.text(max_size=200) | st.dictionaries(st.text(max_size=9), st.integers()).map(json.dumps))
def test_answers_that_are_none_are_refused(answer: str) -> None:
    for read in (passkeys.challenge_in, passkeys.assertion):
        with pytest.raises(Unverifiable):
            read(answer)
    with pytest.raises(Unverifiable):
        passkeys.registered(answer, challenge=CHALLENGE, party=PARTY, origin=ORIGIN)


def test_a_point_that_is_not_on_the_curve_verifies_nothing() -> None:
    assert not bare.es256((1, 1), b"message", bytes.fromhex("3006020101020101"))
