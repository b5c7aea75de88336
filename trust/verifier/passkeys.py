"""What a passkey signed (WebAuthn level 3, section 7.2): ES256, EdDSA and RS256, in plain integers."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any, Dict, Tuple

from .ed25519 import verifies
from .notes import Fault

ES256, EDDSA, RS256 = -7, -8, -257
KTY, ALG, CURVE, X, Y = 1, 3, -1, -2, -3
N, E = -1, -2
PRESENT, VERIFIED = 1, 4
"""Flags of authenticator data."""

Affine = Tuple[int, int]

# P-256 (FIPS 186-5, SP 800-186, section 3.2.1.3)
P = 2**256 - 2**224 + 2**192 + 2**96 - 1
A = P - 3
B = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
BASE = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
)
# DigestInfo of SHA-256 (RFC 8017, section 9.2)
SHA256_INFO = bytes.fromhex("3031300d060960864801650304020105000420")


def require_signed(signed: Dict[str, Any], key: str, party: str, challenge: bytes) -> None:
    """That the passkey with the COSE *key* signed *challenge* at *party*, with a person verified; or :class:`Fault`."""
    client, authenticator = _b64(signed["client_data"]), _b64(signed["authenticator_data"])
    told = json.loads(client.decode("utf-8"))
    if told.get("type") != "webauthn.get" or _b64(told.get("challenge", "")) != challenge:
        raise Fault("its passkey signed something else")
    if re.match(r"https?://" + re.escape(party) + r"(:[0-9]{1,5})?\Z", str(told.get("origin", ""))) is None:
        raise Fault("its passkey signed at another place")
    if len(authenticator) != 37 or authenticator[:32] != hashlib.sha256(party.encode()).digest():
        raise Fault("its passkey signed for another place")
    if authenticator[32] & (PRESENT | VERIFIED) != PRESENT | VERIFIED:
        raise Fault("its passkey did not verify who held it")
    message = authenticator + hashlib.sha256(client).digest()
    if not _verifies(_cose(_b64(key)), message, _b64(signed["signature"])):
        raise Fault("its signature is not of that passkey")


def _verifies(key: Dict[Any, Any], message: bytes, signature: bytes) -> bool:
    if (key[KTY], key[ALG]) == (1, EDDSA):
        return verifies(key[X], message, signature)
    if (key[KTY], key[ALG], key.get(CURVE)) == (2, ES256, 1):
        point = (int.from_bytes(key[X], "big"), int.from_bytes(key[Y], "big"))
        return es256(point, message, signature)
    if (key[KTY], key[ALG]) == (3, RS256):
        return rs256(int.from_bytes(key[N], "big"), int.from_bytes(key[E], "big"), message, signature)
    raise Fault("a passkey of a kind that is not known")


def es256(key: Affine, message: bytes, signature: bytes) -> bool:
    """ECDSA on P-256 with SHA-256 (FIPS 186-5, section 6.4.2); *signature*: DER."""
    x, y = key
    if not (0 <= x < P and 0 <= y < P and (y * y - x * x * x - A * x - B) % P == 0):
        return False
    parsed = _der(signature)
    if parsed is None or not all(0 < number < ORDER for number in parsed):
        return False
    r, s = parsed
    digest = int.from_bytes(hashlib.sha256(message).digest(), "big")
    inverse = pow(s, ORDER - 2, ORDER)
    found = _added(_times(digest * inverse % ORDER, BASE), _times(r * inverse % ORDER, key))
    return found is not None and found[0] % ORDER == r


def rs256(modulus: int, exponent: int, message: bytes, signature: bytes) -> bool:
    """RSASSA-PKCS1-v1_5 with SHA-256 (RFC 8017, section 8.2.2)."""
    size = (modulus.bit_length() + 7) // 8
    if modulus.bit_length() < 2048 or exponent < 3 or len(signature) != size:
        return False
    info = SHA256_INFO + hashlib.sha256(message).digest()
    expected = b"\x00\x01" + b"\xff" * (size - len(info) - 3) + b"\x00" + info
    number = int.from_bytes(signature, "big")
    return number < modulus and pow(number, exponent, modulus).to_bytes(size, "big") == expected


def _der(data: bytes) -> Tuple[int, int] | None:
    """The two integers of SEQUENCE { r INTEGER, s INTEGER }, in DER."""
    if len(data) < 8 or data[0] != 0x30 or data[1] != len(data) - 2 or data[1] > 127:
        return None
    numbers = []
    rest = data[2:]
    for _ in range(2):
        if len(rest) < 3 or rest[0] != 2 or not 0 < rest[1] <= len(rest) - 2:
            return None
        value, rest = rest[2 : 2 + rest[1]], rest[2 + rest[1] :]
        if value[0] & 0x80 or (len(value) > 1 and value[0] == 0 and not value[1] & 0x80):
            return None
        numbers.append(int.from_bytes(value, "big"))
    return (numbers[0], numbers[1]) if not rest else None


def _added(one: Affine | None, other: Affine | None) -> Affine | None:
    if one is None or other is None:
        return other if one is None else one
    if one[0] == other[0]:
        if (one[1] + other[1]) % P == 0:
            return None
        slope = (3 * one[0] * one[0] + A) * pow(2 * one[1], P - 2, P) % P
    else:
        slope = (other[1] - one[1]) * pow(other[0] - one[0], P - 2, P) % P
    x = (slope * slope - one[0] - other[0]) % P
    return x, (slope * (one[0] - x) - one[1]) % P


def _times(scalar: int, point: Affine | None) -> Affine | None:
    found = None
    while scalar:
        if scalar & 1:
            found = _added(found, point)
        point = _added(point, point)
        scalar >>= 1
    return found


def _cose(data: bytes) -> Dict[Any, Any]:
    """A COSE key (RFC 9052, section 7): a CBOR map of small integers to integers and bytes."""
    found, rest = _cbor(data)
    if rest or not isinstance(found, dict) or KTY not in found or ALG not in found:
        raise Fault("a passkey's public key cannot be read")
    return found


def _cbor(data: bytes) -> Tuple[Any, bytes]:
    """The first item of *data* (RFC 8949: integers, bytes and maps only), and what follows it."""
    if not data:
        raise Fault("a passkey's public key ends too early")
    kind, small, rest = data[0] >> 5, data[0] & 31, data[1:]
    if small > 25:
        raise Fault("a passkey's public key is of an unknown form")
    more = {24: 1, 25: 2}.get(small, 0)
    number = int.from_bytes(rest[:more], "big") if more else small
    rest = rest[more:]
    if kind == 0:
        return number, rest
    if kind == 1:
        return -1 - number, rest
    if kind == 2 and number <= len(rest):
        return rest[:number], rest[number:]
    if kind == 5:
        found: Dict[Any, Any] = {}
        for _ in range(number):
            name, rest = _cbor(rest)
            found[name], rest = _cbor(rest)
        return found, rest
    raise Fault("a passkey's public key is of an unknown form")


def _b64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
