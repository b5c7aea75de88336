"""What can be set for a sidecar and for a node."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

import msgspec
from pydantic import Field, PrivateAttr, model_validator

from edge.config import (
    BaseUrl,
    ExistingDirectory,
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


class _Workload(Section):
    """What sidecar and node have in common. ``gateway_fallbacks``: more addresses of the same gateway, for when one
    cannot be reached. ``enrolment_token`` is needed for the first start only, and may be in a file. ``gateway_ca``: the
    certificate of the authority that a gateway with https is believed by; the own certificate comes from the gateway,
    unless ``tls_certificate`` and ``tls_key`` name one. ``otlp``: the collector (OTLP over HTTP) that traces and
    metrics are sent to; without one, none are. ``keep_days``: what the gateway has of the own log, and is older, is
    forgotten here, but for its hashes; 0: nothing is."""

    gateway_url: BaseUrl = "http://127.0.0.1:7400"
    gateway_fallbacks: tuple[BaseUrl, ...] = ()
    gateway_ca: ExistingFile | None = None
    enrolment_token: str = ""
    enrolment_token_file: Path | None = None
    key_service: str = ""
    tls_certificate: ExistingFile | None = None
    tls_key: ExistingFile | None = None
    otlp: BaseUrl | None = None
    keep_days: KeepDays = 0

    @model_validator(mode="after")
    def _secured(self) -> Self:
        if {url.startswith("https") for url in self.gateway_urls} != {self.gateway_ca is not None}:
            raise ValueError("gateway_ca with a gateway_url of https, and only then; fallbacks like the gateway_url")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key together")
        return self

    @property
    def enrolment(self) -> str:
        """The one-time token for the first start, if there is one."""
        file = self.enrolment_token_file
        if self.enrolment_token or file is None or not file.exists():
            return self.enrolment_token
        return file.read_text("ascii").strip()

    @property
    def gateway_urls(self) -> tuple[str, ...]:
        """Where the gateway is reached, in the order in which it is tried."""
        return (self.gateway_url, *self.gateway_fallbacks)


class OAuthConfig(Section):
    """Section ``[sidecar.oauth]``: MCP clients may bring access tokens of ``issuer``, whose keys are in ``jwks_file``
    or at ``jwks_url``. ``people``: the token's ``sub`` → the person, where they differ. ``public_url``: where clients
    reach this sidecar. ``scope``: what a token must have, if anything."""

    issuer: Url
    algorithm: Literal["EdDSA", "ES256", "RS256"] = "RS256"
    jwks_file: ExistingFile | None = None
    jwks_url: Url | None = None
    public_url: BaseUrl | None = None
    people: dict[str, str] = Field(default_factory=dict)
    scope: str = Field("", pattern=r"^[!#-\[\]-~]*$")

    @model_validator(mode="after")
    def _one_source_of_keys(self) -> Self:
        if (self.jwks_file is None) == (self.jwks_url is None):
            raise ValueError("either jwks_file or jwks_url")
        return self


class WebhookConfig(Section):
    """Section ``[sidecar.webhook]``: where the agent's program hears, signed (Standard Webhooks; the secret,
    ``whsec_…``, is in a file), what people decided on what the sidecar's own agent asked for."""

    url: Url
    secret_file: ExistingFile


class Worker(msgspec.Struct, frozen=True):
    """One of ``of`` processes that are one sidecar, from 1. They meet in ``family``, a directory that their parent made
    for them; what they all have is in the home of the first."""

    number: int
    of: int
    family: Path
    first_home: Path


class SidecarConfig(_Workload):
    """Section ``[sidecar]``. Times in seconds. ``hold_wait_s``: how long an MCP call is held open while a
    person decides; ``labels_keep_s``: how long what an agent has seen stays with it beyond a run. ``key_service``:
    who holds the agent's key, such as ``ssh-agent:/run/agent.sock``; without one it is a file in ``home``. ``guests``:
    agents that hold their keys themselves and share this sidecar. ``identity_from``: where key, enrolment and token are
    copied from at the first start. ``instance``: which of several sidecars with the same identity this is, such as the
    pod's name; each has a log of its own. ``unwitnessed_s``: for how long what is recorded may stay unseen by the
    gateway before nothing of risk 2 or more may happen. ``drain_s``: for how long a sidecar that is told to end
    finishes what it has in hand."""

    home: Path = Path(".licet/sidecar")
    host: str = Field("127.0.0.1", min_length=1)
    port: Port = 7410
    hostnames: tuple[str, ...] = ()
    hold_wait_s: Seconds = 120.0
    labels_keep_s: WholeSeconds = 86_400
    unwitnessed_s: Seconds = 60.0
    drain_s: Patience = 0.0
    identity_from: ExistingDirectory | None = None
    instance: str = Field("", pattern=r"^([a-z0-9][a-z0-9.\-]{0,62})?$")
    oauth: OAuthConfig | None = None
    webhook: WebhookConfig | None = None
    guests: tuple[Name, ...] = ()
    segment_bytes: SegmentBytes = 64 << 20

    _worker: Worker | None = PrivateAttr(default=None)

    def as_worker(self, number: int, of: int, family: Path) -> Self:
        """The configuration of one of several processes that share ``port``, from 1. All but the first have a home and
        an instance of their own."""
        changed = {"home": self.worker_home(number), "instance": self.worker_instance(number)} if number > 1 else {}
        made = self.model_copy(update=changed)
        made._worker = Worker(number, of, family, self.home)
        return made

    def worker_home(self, number: int) -> Path:
        """Where the worker *number*, from 2, keeps its own."""
        return self.home / f"worker-{number}"

    def worker_instance(self, number: int) -> str:
        """Under which name the worker *number*, from 2, has its log."""
        return f"{self.instance}-w{number}" if self.instance else f"w{number}"

    @property
    def worker(self) -> Worker | None:
        """Which of several processes this is; None: the only one."""
        return self._worker

    @property
    def is_first(self) -> bool:
        """Whether it looks after what all workers have."""
        return self._worker is None or self._worker.number == 1

    @property
    def shared_home(self) -> Path:
        """The home of the first of several workers."""
        return self.home if self._worker is None else self._worker.first_home


class SandboxConfig(Section):
    """Section ``[node.servers.sandbox]``: the server sees the system's programs and Python, these folders, and nothing
    else. ``network``: also whatever this machine reaches."""

    read: tuple[ExistingDirectory, ...] = ()
    write: tuple[ExistingDirectory, ...] = ()
    network: bool = False


class ToolServer(Section):
    """One MCP server behind a node: an HTTP ``url``, or a ``command`` that is started and spoken to on stdio.
    ``manifest``: TOML that says of each tool what it does; what it does not mention is taken for the worst.
    ``requires``: what a node must hold for this server's data to be there; ``stateful``: it keeps something between
    calls of a run, so each run gets a process of its own, and stays on one node; ``bound``: it takes calls only from
    this node, with the ticket of each, which it checks itself (:class:`licet.client.Guard`); ``sandbox``:
    in which the command runs."""

    name: Name
    command: tuple[str, ...] = ()
    env: dict[str, str] = Field(default_factory=dict)
    cwd: ExistingDirectory | None = None
    url: Url | None = None
    manifest: ExistingFile | None = None
    labels: tuple[str, ...] = ()
    zone: str = "default"
    requires: tuple[str, ...] = ()
    stateful: bool = False
    bound: bool = False
    sandbox: SandboxConfig | None = None

    @model_validator(mode="after")
    def _one_way_in(self) -> Self:
        if bool(self.command) == bool(self.url):
            raise ValueError("either command or url")
        if self.stateful and self.url:
            raise ValueError("stateful with a command only: a server at a url keeps its own sessions apart")
        if self.bound and not self.url:
            raise ValueError("bound with a url only: a command is this node's own child")
        if self.sandbox is not None and self.url:
            raise ValueError("sandbox with a command only: a server at a url runs elsewhere")
        return self


class NodeConfig(_Workload):
    """Section ``[node]``: the inbound sidecar in front of tools. Times in seconds. ``recheck_s``: how often the
    servers are asked again what they offer, so that a tool that changes is quarantined. ``outbound``: the gateway
    cannot reach this node, so it connects and gets its work there. ``claims``: what the node says of itself, such as
    ``gpu = true``; shown, and believed of nobody. ``vouchers``: files in which issuers vouch for more than that.
    ``gpu``: what makes products where the gateway asks for them as proof of a GPU; ``numpy`` is the processor.
    ``drain_s``: for how long a node that is told to end finishes what it has in hand."""

    home: Path = Path(".licet/node")
    host: str = Field("127.0.0.1", min_length=1)
    port: Port = 7420
    hostnames: tuple[str, ...] = ()
    public_url: BaseUrl | None = None
    outbound: bool = False
    heartbeat_s: Seconds = 2.0
    lease_ttl_s: Seconds = 10.0
    recheck_s: Seconds = 30.0
    drain_s: Patience = 0.0
    claims: dict[str, str | int | bool] = Field(default_factory=dict)
    vouchers: tuple[ExistingFile, ...] = ()
    gpu: Literal["off", "torch", "cupy", "numpy"] = "off"
    segment_bytes: SegmentBytes = 64 << 20
    servers: tuple[ToolServer, ...] = ()

    @model_validator(mode="after")
    def _beats_within_its_lease(self) -> Self:
        if self.heartbeat_s * 2 > self.lease_ttl_s:
            raise ValueError("a heartbeat_s of at most half of lease_ttl_s")
        return self
