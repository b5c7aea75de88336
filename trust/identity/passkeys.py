"""Passkeys (WebAuthn level 3): what a browser says of a new one, and what one signed.

The one door to the library that reads both. Nothing here remembers anything: whoever asks brings the challenge, the
place (relying party and origin) and the key.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Final, NoReturn

import msgspec
from webauthn import verify_authentication_response, verify_registration_response
from webauthn.helpers import encode_cbor, parse_cbor
from webauthn.helpers.cose import COSEAlgorithmIdentifier

from trust.canonical import read_object
from trust.identity.keys import KEY_BYTES, PublicKey, b64url, unb64url
from trust.ledger.entries import Assertion
from trust.reasons import Reason, Unverifiable, visible

ALGORITHMS: Final = (-7, -8, -257)
"""COSE: ES256, EdDSA, RS256."""
MAX_ANSWER: Final = 16_384
MAX_CREDENTIAL: Final = 1_023
MAX_PART: Final = 4_096
"""Characters of one part of what a passkey signed."""
MIN_RSA_BITS: Final = 2_048
MAX_RSA_BITS: Final = 8_192
MIN_EXPONENT: Final = 3
DATA_BYTES: Final = 37
"""Authenticator data of a signature without extensions; we ask for none."""
_KTY: Final = 1
_ALG: Final = 3
_COUNT: Final = slice(33, 37)
"""Of authenticator data: behind the hash of the relying party (32 bytes) and the flags (1 byte)."""


class Fresh(msgspec.Struct, frozen=True):
    """A passkey that was just made: ``credential`` its id and ``key`` its public key (COSE), both base64url."""

    credential: str
    key: str
    count: int


def registered(answer: str, *, challenge: bytes, party: str, origin: str) -> Fresh:
    """What ``navigator.credentials.create()`` answered (its JSON form), or :class:`Unverifiable`. Whoever made it was
    verified by the authenticator; who built the authenticator is not asked (attestation ``none``)."""
    try:
        found = verify_registration_response(
            credential=_read(answer),
            expected_challenge=challenge,
            expected_rp_id=party,
            expected_origin=origin,
            require_user_verification=True,
            supported_pub_key_algs=[COSEAlgorithmIdentifier(number) for number in ALGORITHMS],
        )
    except Unverifiable:
        raise
    except Exception as bad:  # of its parsers, whatever they meet; none of it is an answer that holds
        _refuse(str(bad) or type(bad).__name__)
    try:
        _require_plain_key(found.credential_public_key)
    except (TypeError, ValueError, AttributeError):
        _refuse("its public key cannot be read")
    if not 0 < len(found.credential_id) <= MAX_CREDENTIAL:
        _refuse("expected an id of at most 1,023 bytes")
    return Fresh(b64url(found.credential_id), b64url(found.credential_public_key), found.sign_count)


def _require_plain_key(cose: bytes) -> None:
    """Exactly the members of its kind, on P-256, Ed25519 (of no small order), or RSA of 2,048 to 8,192 bits: whoever
    checks signatures later, with whatever program, must read the same key."""
    found = parse_cbor(cose)
    match (found.get(_KTY), found.get(_ALG)):
        case (2, -7):
            plain = {_KTY: 2, _ALG: -7, -1: 1, -2: found.get(-2), -3: found.get(-3)}
            sized = len(found.get(-2, b"")) == len(found.get(-3, b"")) == KEY_BYTES
        case (1, -8):
            plain = {_KTY: 1, _ALG: -8, -1: 6, -2: found.get(-2)}
            sized = bool(PublicKey(found.get(-2, b"")))
        case (3, -257):
            plain = {_KTY: 3, _ALG: -257, -1: found.get(-1), -2: found.get(-2)}
            bits = int.from_bytes(found.get(-1, b""), "big").bit_length()
            sized = MIN_RSA_BITS <= bits <= MAX_RSA_BITS and int.from_bytes(found.get(-2, b""), "big") >= MIN_EXPONENT
        case _:
            _refuse("expected a key for ES256, EdDSA or RS256")
    if not sized or cose != encode_cbor(plain):
        _refuse("its public key is not in the one plain form of its kind")


def challenge_in(answer: str) -> str:
    """The challenge (base64url) that the client data of *answer* names, before anything of it is believed."""
    response = _read(answer).get("response")
    try:
        client_data = read_object(unb64url(str(response["clientDataJSON"])))  # type: ignore[index]
    except (KeyError, TypeError):
        _refuse("expected response with clientDataJSON")
    return str(client_data.get("challenge", ""))


def assertion(answer: str) -> Assertion:
    """What ``navigator.credentials.get()`` answered (its JSON form), unverified, or :class:`Unverifiable`."""
    found = _read(answer)
    try:
        response = found["response"]
        parts = (found["id"], response["clientDataJSON"], response["authenticatorData"], response["signature"])
    except (KeyError, TypeError):
        _refuse("expected id, and response with clientDataJSON, authenticatorData and signature")
    if not all(isinstance(part, str) for part in parts):
        _refuse("expected texts in base64url")
    return Assertion(*parts)


def require_signed(
    signed: Assertion, key: str, *, challenge: bytes, party: str, origin: str = "", count: int = 0
) -> int:
    """That the passkey with this *key* signed *challenge* at *party*, by a person whom its authenticator verified, or
    :class:`Unverifiable`; its new signature count. Without *origin*, any of the relying party's is right: for who
    looks at it later. *count*: the last one that is known; who counts must have gone on."""
    if any(len(part) > MAX_PART for part in msgspec.structs.astuple(signed)):
        _refuse("it is too long")
    read_object(unb64url(signed.client_data))  # strictly, as whoever looks at it later reads it
    if len(unb64url(signed.authenticator_data)) != DATA_BYTES:
        _refuse("it says more than was asked for")
    try:
        _require_plain_key(unb64url(key))
        found = verify_authentication_response(
            credential={
                "id": signed.credential,
                "rawId": signed.credential,
                "type": "public-key",
                "response": {
                    "clientDataJSON": signed.client_data,
                    "authenticatorData": signed.authenticator_data,
                    "signature": signed.signature,
                },
            },
            expected_challenge=challenge,
            expected_rp_id=party,
            expected_origin=origin or _own_origin(signed, party),
            credential_public_key=unb64url(key),
            credential_current_sign_count=count,
            require_user_verification=True,
        )
    except Unverifiable:
        raise
    except Exception as bad:  # of its parsers, whatever they meet; none of it is an answer that holds
        _refuse(str(bad) or type(bad).__name__)
    return found.new_sign_count


def count_of(signed: Assertion) -> int:
    """The signature count that the authenticator said; 0 if it does not count."""
    return int.from_bytes(unb64url(signed.authenticator_data)[_COUNT], "big")


def vote_challenge(action_digest: str, decision: str, approver: str, approval: str, presented: str) -> bytes:
    """What a vote that must be signed signs: exactly what will run, what was said of it, by whom, on which request, and
    the digest of everything that they were shown of it."""
    return hashlib.sha256("|".join((action_digest, decision, approver, approval, presented)).encode()).digest()


def _own_origin(signed: Assertion, party: str) -> str:
    """Where it was made, if that is a place of *party*."""
    origin = str(read_object(unb64url(signed.client_data)).get("origin", ""))
    if re.fullmatch(rf"https?://{re.escape(party)}(:[0-9]{{1,5}})?", origin) is None:
        _refuse(f"it was made at {visible(origin)}")
    return origin


def _read(answer: str) -> dict[str, Any]:
    if len(answer) > MAX_ANSWER:
        _refuse("it is too long")
    return dict(read_object(answer.encode("utf-8", "replace")))


def options(answer: dict[str, Any]) -> str:
    """As text for a page: ASCII only."""
    return json.dumps(answer, sort_keys=True)


def _refuse(why: str) -> NoReturn:
    raise Unverifiable(Reason.UNAUTHENTICATED, f"passkey: {visible(why)}")
