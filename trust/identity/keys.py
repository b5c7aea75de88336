"""Ed25519 keys and their names: did:key, JWK, thumbprints, the file that holds a secret.

The one door to ``cryptography``. A public key from outside enters through :class:`PublicKey` only, which
refuses the small-order points and non-canonical encodings: with the key ``01 00…00`` OpenSSL accepts one
constant signature for any message, so such a key would sign for everybody.
"""

from __future__ import annotations

import base64
import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import base58
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from trust.reasons import Reason, Unverifiable

KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
_MULTICODEC_ED25519: Final = b"\xed\x01"
_FIELD_PRIME: Final = 2**255 - 19

# The y coordinates of the eight points whose order divides 8 (RFC 8032's curve). Two points share each of
# y = 0 and the two roots below; the sign bit is masked before the comparison, so all eight are covered.
_SMALL_ORDER_Y: Final = frozenset(
    {
        0,
        1,
        _FIELD_PRIME - 1,
        0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7,
        0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826,
    }
)


def _refuse(detail: str) -> Unverifiable:
    return Unverifiable(Reason.UNAUTHENTICATED, detail)


def b64url(data: bytes) -> str:
    """Base64url without padding (RFC 7515, section 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def unb64url(text: str) -> bytes:
    """Inverse of :func:`b64url`; padding, other alphabets and stray bits are refused."""
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raise _refuse("not base64url") from None
    if b64url(data) != text:
        raise _refuse("not canonical base64url")
    return data


def unb64(text: str) -> bytes:
    """Standard base64 in its one canonical form (RFC 4648, section 4)."""
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        raise _refuse("not base64") from None
    if base64.b64encode(data).decode("ascii") != text:
        raise _refuse("not canonical base64")
    return data


@dataclass(frozen=True, slots=True)
class PublicKey:
    """An Ed25519 public key that is safe to believe (32 raw bytes)."""

    raw: bytes
    handle: Ed25519PublicKey = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.raw) != KEY_BYTES:
            raise _refuse(f"an Ed25519 key has {KEY_BYTES} bytes, this one {len(self.raw)}")
        y = int.from_bytes(self.raw, "little") & ~(1 << 255)
        if y >= _FIELD_PRIME:
            raise _refuse("the key is not canonically encoded")
        if y in _SMALL_ORDER_Y:
            raise _refuse("the key is a point of small order")
        object.__setattr__(self, "handle", Ed25519PublicKey.from_public_bytes(self.raw))

    def verify(self, signature: bytes, message: bytes) -> None:
        """Nothing, or :class:`Unverifiable`."""
        try:
            self.handle.verify(signature, message)
        except InvalidSignature:
            raise _refuse("the signature does not verify") from None

    @property
    def did(self) -> str:
        """The key as ``did:key`` (multicodec 0xed01, base58btc)."""
        return "did:key:z" + base58.b58encode(_MULTICODEC_ED25519 + self.raw).decode("ascii")

    @classmethod
    def from_did(cls, did: str) -> PublicKey:
        """Inverse of :attr:`did`."""
        prefix = "did:key:z"
        if not did.startswith(prefix):
            raise _refuse("expected a did:key with base58btc")
        try:
            decoded = base58.b58decode(did[len(prefix) :])
        except ValueError:
            raise _refuse("not base58btc") from None
        if decoded[:2] != _MULTICODEC_ED25519:
            raise _refuse("not an Ed25519 did:key")
        key = cls(decoded[2:])
        if key.did != did:
            raise _refuse("not the canonical form of this did:key")
        return key

    @property
    def jwk(self) -> dict[str, str]:
        """RFC 8037 public JWK."""
        return {"crv": "Ed25519", "kty": "OKP", "x": b64url(self.raw)}

    @classmethod
    def from_jwk(cls, jwk: object) -> PublicKey:
        """Inverse of :attr:`jwk`; any other member is refused."""
        match jwk:
            case {"crv": "Ed25519", "kty": "OKP", "x": str(x), **rest} if not rest:
                return cls(unb64url(x))
        raise _refuse("expected a public Ed25519 JWK with kty, crv and x only")

    @property
    def thumbprint(self) -> str:
        """RFC 7638 SHA-256 thumbprint, base64url."""
        canonical = f'{{"crv":"Ed25519","kty":"OKP","x":"{b64url(self.raw)}"}}'
        return b64url(hashlib.sha256(canonical.encode()).digest())


class Signer(Protocol):
    """Whatever signs with one Ed25519 key: the key itself, or a service that keeps it."""

    @property
    def public(self) -> PublicKey: ...

    def sign(self, message: bytes) -> bytes: ...


@dataclass(frozen=True, slots=True)
class SecretKey:
    """An Ed25519 secret key; its seed never appears in a repr."""

    _seed: bytes = field(repr=False)
    public: PublicKey = field(init=False)
    handle: Ed25519PrivateKey = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        key = Ed25519PrivateKey.from_private_bytes(self._seed)
        object.__setattr__(self, "handle", key)
        object.__setattr__(self, "public", PublicKey(key.public_key().public_bytes_raw()))

    @classmethod
    def generate(cls) -> SecretKey:
        return cls(os.urandom(KEY_BYTES))

    def sign(self, message: bytes) -> bytes:
        return self.handle.sign(message)

    def derive(self, what: str) -> bytes:
        """32 bytes for one purpose (HKDF-SHA256), which whoever has this key can make again and nobody else."""
        info = b"licet " + what.encode()
        return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=None, info=info).derive(self._seed)

    @property
    def pem(self) -> bytes:
        """PKCS #8 in PEM, not encrypted; for a TLS library, in a file with mode 0600."""
        return self.handle.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def save(self, path: Path) -> None:
        """Write the seed so that only this user can read it; an existing file is never replaced."""
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write(b64url(self._seed) + "\n")

    @classmethod
    def load(cls, path: Path) -> SecretKey:
        """The key in *path*; refuses a file that others may read."""
        found = path.stat()
        # A cluster mounts a Secret as root's, readable for the group of the one process that it is for.
        mounted = found.st_uid == 0 != os.geteuid() and found.st_mode & 0o077 == 0o040
        if found.st_mode & 0o077 and not mounted:
            raise PermissionError(f"{path}: others may read this key; expected mode 0600 (chmod 600 {path})")
        return cls(unb64url(path.read_text("ascii").strip()))

    @classmethod
    def load_or_create(cls, path: Path) -> SecretKey:
        if not path.exists():
            cls.generate().save(path)
        return cls.load(path)


class Exchange:
    """One side of one X25519 key agreement (RFC 7748); its secret lives as long as this object."""

    def __init__(self, secret: bytes | None = None) -> None:
        """A fresh one, or the one whose 32 secret bytes somebody can derive again."""
        made = X25519PrivateKey.generate() if secret is None else X25519PrivateKey.from_private_bytes(secret)
        self._secret = made
        self.public: bytes = self._secret.public_key().public_bytes_raw()

    def agree(self, peer: bytes, info: bytes) -> bytes:
        """32 bytes that only both sides know (HKDF-SHA256 over the shared point), bound to *info*."""
        try:
            shared = self._secret.exchange(X25519PublicKey.from_public_bytes(peer))
        except ValueError:
            raise _refuse("not a usable X25519 key") from None
        return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=None, info=info).derive(shared)
