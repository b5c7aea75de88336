"""An authenticator in software, as WebAuthn describes one: for the tests that need no browser."""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass, field
from typing import Any

import cbor2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from trust.identity.keys import b64url, unb64url

PRESENT, VERIFIED, ATTESTED = 1, 4, 64
ES256, EDDSA, RS256 = -7, -8, -257


def _made(algorithm: int) -> Any:
    if algorithm == ES256:
        return ec.generate_private_key(ec.SECP256R1())
    return ed25519.Ed25519PrivateKey.generate() if algorithm == EDDSA else rsa.generate_private_key(65537, 2048)


@dataclass
class Authenticator:
    """One passkey; what a misbehaving browser or key would say can be set."""

    origin: str
    algorithm: int = ES256
    flags: int = PRESENT | VERIFIED
    count: int = 0
    credential: bytes = field(default_factory=lambda: secrets.token_bytes(16))

    def __post_init__(self) -> None:
        self.key = _made(self.algorithm)

    def cose(self) -> bytes:
        public = self.key.public_key()
        if self.algorithm == ES256:
            numbers = public.public_numbers()
            x, y = numbers.x.to_bytes(32, "big"), numbers.y.to_bytes(32, "big")
            return cbor2.dumps({1: 2, 3: ES256, -1: 1, -2: x, -3: y})
        if self.algorithm == EDDSA:
            return cbor2.dumps({1: 1, 3: EDDSA, -1: 6, -2: public.public_bytes_raw()})
        numbers = public.public_numbers()
        return cbor2.dumps({1: 3, 3: RS256, -1: numbers.n.to_bytes(256, "big"), -2: numbers.e.to_bytes(3, "big")})

    def sign(self, data: bytes) -> bytes:
        if self.algorithm == ES256:
            return bytes(self.key.sign(data, ec.ECDSA(hashes.SHA256())))
        if self.algorithm == EDDSA:
            return bytes(self.key.sign(data))
        return bytes(self.key.sign(data, padding.PKCS1v15(), hashes.SHA256()))

    def _client(self, kind: str, challenge: str) -> bytes:
        return json.dumps({"type": kind, "challenge": challenge, "origin": self.origin, "crossOrigin": False}).encode()

    def _data(self, party: str, flags: int) -> bytes:
        return hashlib.sha256(party.encode()).digest() + bytes([flags]) + self.count.to_bytes(4, "big")

    def create(self, options: str) -> str:
        """What the page sends on for ``navigator.credentials.create()``."""
        asked = json.loads(options)
        told = bytes(16) + len(self.credential).to_bytes(2, "big") + self.credential + self.cose()
        data = self._data(asked["rp"]["id"], self.flags | ATTESTED) + told
        attestation = cbor2.dumps({"fmt": "none", "attStmt": {}, "authData": data})
        client = self._client("webauthn.create", asked["challenge"])
        return self._answer(clientDataJSON=b64url(client), attestationObject=b64url(attestation))

    def get(self, options: str) -> str:
        """What the page sends on for ``navigator.credentials.get()``."""
        asked = json.loads(options)
        self.count += bool(self.count)
        client, data = self._client("webauthn.get", asked["challenge"]), self._data(asked["rpId"], self.flags)
        signature = self.sign(data + hashlib.sha256(client).digest())
        return self._answer(clientDataJSON=b64url(client), authenticatorData=b64url(data), signature=b64url(signature))

    def _answer(self, **response: str) -> str:
        name = b64url(self.credential)
        return json.dumps({"id": name, "rawId": name, "type": "public-key", "response": response})


def challenge_of(options: str) -> bytes:
    return unb64url(json.loads(options)["challenge"])
