"""What can be set for a gateway."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, PrivateAttr, field_validator, model_validator

from edge.config import (
    BaseUrl,
    Days,
    ExistingFile,
    KeepDays,
    Name,
    Patience,
    Port,
    Seconds,
    Section,
    SegmentBytes,
    Url,
    WholeSeconds,
)
from trust.identity.challenge import MAX_SIZE
from trust.identity.keys import PublicKey
from trust.reasons import Unverifiable
from trust.standing.breaker import Limits


class Credential(Section):
    """A header that upstream calls to *server* get; its value never leaves gateway and node. ``namespace``: whose
    server it is; the name of another's gets nothing."""

    server: Name
    namespace: str = Field("", pattern=r"^([a-z][a-z0-9_-]{0,62})?$")
    header: str = Field(pattern=r"^[A-Za-z0-9-]+$")
    value_file: ExistingFile


Count = Annotated[int, Field(ge=0, le=10_000_000)]


class BreakerConfig(Section):
    """Section ``[gateway.breaker]``: circuit breakers. So many ``failures`` in a row of one agent's calls to one
    server, equal calls (``loop``) or calls at all (``burst``) of one agent within ``window_s`` stop it for ``open_s``
    seconds; twice as many failures of all agents stop the server. 0 switches a rule off."""

    failures: Count = 10
    loop: Count = 300
    burst: Count = 30_000
    window_s: WholeSeconds = 60
    open_s: WholeSeconds = 30

    @property
    def limits(self) -> Limits:
        return Limits(self.failures, self.loop, self.burst, self.window_s, self.open_s)


class NotifyConfig(Section):
    """Section ``[gateway.notify]``: who is told that something waits for people. ``webhook`` gets signed messages
    (Standard Webhooks; the secret, ``whsec_…``, is in a file), ``slack`` a text, ``smtp`` (``host:port``) mails."""

    webhook: Url | None = None
    webhook_secret_file: ExistingFile | None = None
    slack: Url | None = None
    smtp: Annotated[str, Field(pattern=r"^$|^[A-Za-z0-9.-]+:[0-9]{1,5}$")] = ""
    smtp_tls: bool = True
    smtp_user: str = ""
    smtp_password_file: ExistingFile | None = None
    smtp_from: Annotated[str, Field(pattern=r"^$|^[^@\s]+@[^@\s]+$")] = ""
    smtp_to: tuple[Annotated[str, Field(pattern=r"^[^@\s]+@[^@\s]+$")], ...] = ()

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.webhook is None) != (self.webhook_secret_file is None):
            raise ValueError("webhook and webhook_secret_file together")
        if len({bool(self.smtp), bool(self.smtp_from), bool(self.smtp_to)}) != 1:
            raise ValueError("smtp, smtp_from and smtp_to together")
        return self


class IssuerConfig(Section):
    """One of ``[[gateway.issuers]]``: whoever holds the key of which ``key_file`` has the public part (a JWK) vouches
    for ``capability`` (``data_locality=berlin``) of nodes. ``within_ms``: how soon such a node answers at most; then it
    is asked again and again, and what it proves holds for ``verified_for_s``."""

    capability: str = Field(pattern=r"^[a-z][a-z0-9_]{0,62}(=[A-Za-z0-9_.:\-]{1,64})?$")
    key_file: ExistingFile
    within_ms: Annotated[float, Field(ge=0, le=60_000)] = 0.0
    verified_for_s: Seconds = 600.0

    @model_validator(mode="after")
    def _a_key(self) -> Self:
        try:
            _ = self.public
        except (Unverifiable, ValueError, TypeError, AttributeError):
            raise ValueError(f"{self.key_file} with the public part of an Ed25519 key as a JWK") from None
        return self

    @property
    def public(self) -> PublicKey:
        return PublicKey.from_jwk(json.loads(self.key_file.read_text("utf-8")))


class GpuConfig(Section):
    """Section ``[gateway.gpu]``: nodes with a GPU have to show it: a product of two matrices of ``size``, of which all
    rows are committed to ``within_ms`` after it was asked for. Both have to be such that what is no GPU is too slow.
    What a node shows holds for ``verified_for_s``, and is asked again when half of that is over."""

    size: Annotated[int, Field(ge=64, le=MAX_SIZE)] = 16_384
    within_ms: Annotated[float, Field(gt=0, le=40_000)] = 4000.0
    verified_for_s: Seconds = 600.0


class InjectConfig(Section):
    """Section ``[gateway.inject]``: a Kubernetes API server asks at ``port``, over TLS, for sidecars of ``image`` that
    reach the gateway at ``gateway_url``. ``hostnames``: by which it asks, such as ``licet-gateway.licet.svc``.
    ``pull_secrets``: Secrets of the agents' namespaces with which the image is pulled. ``data_size``: of the volume
    with a sidecar's ledger, which ends with its pod; ``keep_days``: as in ``[sidecar]``."""

    port: Port = 7443
    tls_certificate: ExistingFile
    tls_key: ExistingFile
    hostnames: tuple[str, ...]
    image: str = Field(pattern=r"^[a-z0-9][A-Za-z0-9._/:@-]{0,254}$")
    gateway_url: BaseUrl
    pull_secrets: tuple[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,252}$")], ...] = ()
    data_size: str = Field("2Gi", pattern=r"^[1-9][0-9]*(Mi|Gi|Ti)$")
    keep_days: KeepDays = 2


class OidcConfig(Section):
    """Section ``[gateway.oidc]``: people may sign in to the console at ``issuer`` (OpenID Connect, code flow, PKCE),
    where this gateway is ``client_id``; its secret, if it has one, is in a file. ``claim``: which claim is a person's
    ``login`` here. The issuer sends browsers back to ``/console/sign-in/oidc/back``."""

    issuer: Url
    client_id: str = Field(min_length=1)
    client_secret_file: ExistingFile | None = None
    algorithm: Literal["EdDSA", "ES256", "RS256"] = "RS256"
    claim: Literal["email", "sub"] = "email"

    @field_validator("issuer")
    @classmethod
    def _private(cls, issuer: str) -> str:
        if not re.match(r"https://|http://(127\.0\.0\.1|localhost|\[::1\])([:/]|$)", issuer):
            raise ValueError("an https address, or one on this machine")
        return issuer


class GatewayConfig(Section):
    """Section ``[gateway]``. Times in seconds. ``database`` (``postgresql://…``): several gateways are one; then each
    has a ``name`` and a ``home`` of its own, all the same ``key_file``, and ``redis`` (``redis://host:port/0``), which
    remembers used nonces for all of them; a single gateway remembers them itself, unless it has one. ``peer_url``:
    where the other gateways reach this one. ``tls``: ``own`` makes a certificate
    authority in ``home`` (``ca.pem`` there is for everybody), ``files`` takes the three files that are named; either
    way workloads must show certificates. ``otlp``: the collector (OTLP over HTTP) that traces and metrics are sent to;
    without one, none are. ``checkpoints_to``: a directory, best on write-once storage, that keeps checkpoints of the
    gateway's own log; ``witness_url`` and ``witness_vkey``: a witness (C2SP tlog-witness) that cosigns them.
    ``public_url``: where browsers find the console, if not on this machine: the address of a proxy (an Ingress, which
    may end TLS), or of this gateway under a name of yours. ``keep_days``: entries of sidecars and nodes that are older
    are pruned here, but for their hashes; 0: none are. ``drain_s``: for how long a gateway that is told to end finishes
    what it has in hand."""

    home: Path = Path(".licet/gateway")
    host: str = Field("127.0.0.1", min_length=1)
    port: Port = 7400
    hostnames: tuple[str, ...] = ()
    public_url: BaseUrl | None = None
    trust_domain: str = Field("licet.local", pattern=r"^[a-z0-9.-]{1,253}$")
    policies: Path = Path("policies")
    bundle_ttl_s: WholeSeconds = 86_400
    lease_ttl_s: Seconds = 10.0
    drain_s: Patience = 0.0
    labels_keep_s: WholeSeconds = 86_400
    segment_bytes: SegmentBytes = 64 << 20
    credentials: tuple[Credential, ...] = ()
    tls: Literal["off", "own", "files"] = "off"
    tls_certificate: ExistingFile | None = None
    tls_key: ExistingFile | None = None
    tls_authority: ExistingFile | None = None
    otlp: BaseUrl | None = None
    checkpoints_to: Path | None = None
    witness_url: BaseUrl | None = None
    witness_vkey: str = ""
    keep_days: Days = 0
    name: Name = "main"
    key_file: ExistingFile | None = None
    database: str = Field("", pattern=r"^postgres(ql)?://.+$|^$")
    redis: str = Field("", pattern=r"^(rediss?|unix)://.+$|^$")
    peer_url: BaseUrl | None = None
    breaker: BreakerConfig = BreakerConfig()
    notify: NotifyConfig = NotifyConfig()
    oidc: OidcConfig | None = None
    issuers: tuple[IssuerConfig, ...] = ()
    gpu: GpuConfig | None = None
    inject: InjectConfig | None = None

    _own_port: int = PrivateAttr(default=0)
    _first_home: Path | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _files_if_files(self) -> Self:
        named = [self.tls_certificate, self.tls_key, self.tls_authority]
        if (self.tls == "files") != all(named) or (self.tls != "files" and any(named)):
            raise ValueError('tls_certificate, tls_key and tls_authority with tls = "files", and only then')
        return self

    @model_validator(mode="after")
    def _shared_completely(self) -> Self:
        if self.database and not (self.redis and self.key_file):
            raise ValueError("database with redis and key_file: gateways that share their state share these too")
        if self.database and self.tls == "own":
            raise ValueError('tls = "files" with a database: gateways that are one have one authority')
        return self

    @model_validator(mode="after")
    def _witness_with_key(self) -> Self:
        if (self.witness_url is None) != (not self.witness_vkey):
            raise ValueError("witness_url and witness_vkey together")
        return self

    def worker(self, number: int) -> Self:
        """The configuration of one of several processes that share ``port``, from 1. Each has a port of its own beside
        it, and all but the first a home and a name of its own."""
        own = self.port + number
        url = self.peer_url or f"{'http' if self.tls == 'off' else 'https'}://{self.host}:{own}"
        where = re.sub(r":[0-9]+$", "", url)
        changed: dict[str, object] = {"peer_url": f"{where}:{own}"}
        if number > 1:
            changed |= {"name": f"{self.name}-{number}", "home": self.home / f"worker-{number}"}
        made = self.model_copy(update=changed)
        made._own_port, made._first_home = own, self.home
        return made

    @property
    def own_port(self) -> int:
        """The port that a worker shares with nobody; 0 for what is no worker."""
        return self._own_port

    @property
    def first_home(self) -> Path:
        """The home of the first of several workers."""
        return self._first_home or self.home

    @property
    def url(self) -> str:
        """Where it is reached on this machine."""
        return f"{'http' if self.tls == 'off' else 'https'}://{self.host}:{self.port}"

    @property
    def authority(self) -> Path | None:
        """Whose certificates are believed, if it speaks TLS."""
        return None if self.tls == "off" else self.tls_authority or self.home / "ca.pem"
