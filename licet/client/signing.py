"""Signing with an agent's own key: hooks for ``httpx``, ``httpx2`` and ``aiohttp``, and the credentials that they use.

A hook adds ``Workload-Identity-Token``, ``Content-Digest`` and an RFC 9421 signature to each request, so that its
receiver knows the agent by its key. The audience is the receiver's configured name, never taken from the URL::

    credentials = Credentials.load(Path(".licet/sidecar"))
    with httpx.Client(auth=SignHttpx(credentials)) as client: ...
    async with aiohttp.ClientSession(middlewares=(SignAiohttp(credentials),)) as session: ...
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from edge import tls
from edge.clock import new_nonce
from licet.client.api import Api
from sidecar.enrolment import CURRENT_KEY, ENROLMENT, RECERTIFY_S, Enrolment
from trust.identity import httpsig, wit
from trust.identity.keys import PublicKey, SecretKey, Signer, b64url
from trust.ledger.tiles import write_atomically
from trust.reasons import Unverifiable

RENEW_BEFORE_S: Final = 300
MARGIN_S: Final = 4 * 3600
"""A certificate lives a day, and the sidecar renews it after a third of that."""


@dataclass(slots=True)
class Credentials:
    """An enrolled agent: its key, and the token that says whose key it is. ``audience``: whom requests are for;
    the gateway, unless another is given (``wimse://<trust domain>/sidecar/<name>`` for a shared sidecar).
    ``authority``: the gateway's ``ca.pem``, if it speaks TLS; ``certificate``: what is shown to it (with its key), if
    that comes from files of one's own."""

    key: Signer
    enrolment: Enrolment
    home: Path
    audience: str = field(default="")
    authority: Path | None = None
    certificate: tuple[Path, Path] | None = None

    def __post_init__(self) -> None:
        self.audience = self.audience or self.enrolment.audience

    @classmethod
    def load(cls, home: Path, audience: str = "", authority: Path | None = None) -> Credentials:
        """The credentials that a sidecar or :func:`enroll` keeps in *home*."""
        enrolment = msgspec.json.decode((home / ENROLMENT).read_bytes(), type=Enrolment)
        return cls(SecretKey.load(home / CURRENT_KEY), enrolment, home, audience, authority)

    @property
    def name(self) -> str:
        return self.enrolment.name

    @property
    def gateway(self) -> PublicKey:
        return PublicKey.from_jwk(self.enrolment.gateway_key)

    def expires_at(self) -> int:
        """When the token ends, Unix seconds; 0 if it is over."""
        try:
            return wit.verify(
                self.enrolment.wit,
                now=time.time(),
                trust_domain=self.enrolment.trust_domain,
                issuer=self.gateway,
            ).expires_at
        except Unverifiable:
            return 0

    def renew(self, gateway_url: str) -> None:
        """Get a fresh token while the old one still signs, if it is due."""
        if self.expires_at() - time.time() > RENEW_BEFORE_S:
            return
        told = self.call(gateway_url, "POST", "/v1/wit")
        self.enrolment = msgspec.structs.replace(self.enrolment, wit=told["wit"])
        write_atomically(self.home / ENROLMENT, msgspec.json.encode(self.enrolment), flush=True)

    def call(self, url: str, method: str, path: str, body: Any = None) -> Any:
        """One signed request to the gateway; what it answers, as JSON."""
        certificate = None if self.authority is None else self._certificate(url)
        return self._call(url, method, path, body, certificate)

    def _call(self, url: str, method: str, path: str, body: Any, certificate: tuple[Path, Path] | None) -> Any:
        data = b"" if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"} if data else {}
        signed = self.sign(method, url.rstrip("/") + path, headers, data, self.enrolment.audience)
        api = Api(url.rstrip("/"), headers=headers | signed, authority=self.authority, certificate=certificate)
        return api.call_bytes(method, path, data).body

    def _certificate(self, url: str) -> tuple[Path, Path]:
        """Over TLS the gateway hears only connections that name the same agent: the sidecar's certificate, or one that
        is made for a key of our own."""
        if self.certificate is not None:
            return self.certificate
        found = self.home / "tls.pem", self.home / "tls.key"
        if not tls.has_certificate(*found, time.time() - RECERTIFY_S - MARGIN_S):
            key = SecretKey.generate()
            told = self._call(url, "POST", "/v1/certificate", {"key": b64url(key.public.raw)}, None)
            write_atomically(found[1], key.pem, flush=True)
            write_atomically(found[0], told["certificate"].encode("ascii"), flush=True)
        return found

    def sign(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, audience: str = ""
    ) -> dict[str, str]:
        """The headers to add to a request, whose own *headers* must be complete already."""
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        authority = parts.netloc.rpartition("@")[2]
        request = httpsig.Request(method.upper(), authority, target, httpsig.headers_of(headers), body)
        return httpsig.sign(
            request,
            wit=self.enrolment.wit,
            key=self.key,
            audience=audience or self.audience,
            created=int(time.time()),
            nonce=new_nonce(),
        )


def enroll(gateway_url: str, token: str, home: Path, authority: Path | None = None) -> Credentials:
    """A new agent for the one-time *token*, without a sidecar: its key is made and kept in *home*. *authority*: the
    gateway's ``ca.pem``, if it speaks TLS."""
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = SecretKey.load_or_create(home / CURRENT_KEY)
    proof = b64url(key.sign(f"licet-enroll {token}".encode()))
    body = {"token": token, "key": dict(key.public.jwk), "proof": proof}
    told = Api(gateway_url.rstrip("/"), authority=authority).call("POST", "/v1/enroll", body).body
    enrolment = msgspec.convert(told, Enrolment)
    write_atomically(home / ENROLMENT, msgspec.json.encode(enrolment), flush=True)
    return Credentials(key, enrolment, home, authority=authority)


class SignHttpx:
    """``auth=SignHttpx(credentials)`` of ``httpx`` and ``httpx2`` clients, blocking and asynchronous."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def __call__(self, request: Any) -> Any:
        """Sign *request*; a body that is streamed cannot be, because its digest is part of what is signed."""
        body = request.content
        signed = self._credentials.sign(request.method, str(request.url), request.headers, body)
        request.headers.update(signed)
        return request


class SignAiohttp:
    """``middlewares=(SignAiohttp(credentials),)`` of an ``aiohttp`` session."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    async def __call__(self, request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
        if request.method in ("POST", "PUT", "PATCH"):
            # aiohttp adds this as it sends, which would be after it was signed.
            request.headers.setdefault("Content-Type", "application/octet-stream")
        body = request.body
        data = bytes(body) if isinstance(body, bytes | bytearray) else await body.as_bytes()
        signed = self._credentials.sign(request.method, str(request.url), request.headers, data)
        request.headers.update(signed)
        return await handler(request)
