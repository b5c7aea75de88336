"""The trust domain's own small certificate authority: short certificates for gateway and workloads, from one key.

A certificate proves only who is at the other end of a connection; what a workload may do hangs on its identity key.
So the key of a certificate is another one, made by the process that uses it, and a certificate lives a day.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from trust.ledger.tiles import write_atomically
from trust.reasons import Reason, Unverifiable

LIFE: Final = datetime.timedelta(days=1)
AUTHORITY_LIFE: Final = datetime.timedelta(days=3650)
SKEW: Final = datetime.timedelta(minutes=5)


class CertificateAuthority:
    """Its key stays in *home*, readable by this user only; its certificate (``ca.pem``) is for everybody."""

    def __init__(self, home: Path, trust_domain: str) -> None:
        self.path = home / "ca.pem"
        key_path = home / "ca.key"
        if not key_path.exists():
            _create(key_path, self.path, trust_domain)
        if key_path.stat().st_mode & 0o077:
            raise PermissionError(f"{key_path}: others may read this key; expected mode 0600 (chmod 600 {key_path})")
        key = serialization.load_pem_private_key(key_path.read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise PermissionError(f"{key_path}: expected the ECDSA key that was made here")
        self._key = key
        self._certificate = x509.load_pem_x509_certificate(self.path.read_bytes())

    def issue(self, subject: str, hosts: Sequence[str], public: bytes, now: float) -> bytes:
        """A certificate (PEM) for the Ed25519 key *public* (raw) of the workload *subject* (a URI) at *hosts*."""
        try:
            key = ed25519.Ed25519PublicKey.from_public_bytes(public)
        except ValueError:
            raise Unverifiable(Reason.MALFORMED_REQUEST, "expected an Ed25519 public key of 32 bytes") from None
        return self._certify(subject, hosts, key, now)

    def issue_with_key(self, subject: str, hosts: Sequence[str], now: float) -> tuple[bytes, bytes]:
        """A certificate and its new key (both PEM) for a listener that browsers reach: they know no Ed25519 there."""
        key = ec.generate_private_key(ec.SECP256R1())
        return self._certify(subject, hosts, key.public_key(), now), _pem(key)

    def _certify(
        self,
        subject: str,
        hosts: Sequence[str],
        key: ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey,
        now: float,
    ) -> bytes:
        moment = datetime.datetime.fromtimestamp(now, datetime.UTC)
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(subject), *map(_host, hosts)]
        made = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject[-64:])]))
            .issuer_name(self._certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(moment - SKEW)
            .not_valid_after(moment + LIFE)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return made.public_bytes(serialization.Encoding.PEM)


def _create(key_path: Path, path: Path, trust_domain: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Licet {trust_domain}"[:64])])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    write_atomically(path, made.public_bytes(serialization.Encoding.PEM), flush=True)
    write_atomically(key_path, _pem(key), flush=True)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        return x509.DNSName(host)
