"""The certificates of one gateway: its own, kept fresh, and those that its authority issues to workloads."""

from __future__ import annotations

from pathlib import Path
from ssl import SSLContext
from typing import Self
from urllib.parse import urlsplit

from edge import tls
from edge.clock import SystemClock
from gateway.authority import LIFE, CertificateAuthority
from gateway.config import GatewayConfig
from gateway.state import NodeRecord
from trust.identity.wit import Workload
from trust.ledger.tiles import write_atomically
from trust.reasons import Reason, Unverifiable

AT_HOME = ("127.0.0.1", "::1", "localhost", "licet.localhost")


def subject(trust_domain: str) -> str:
    """The URI in the gateway's own certificate."""
    return f"wimse://{trust_domain}/gateway/main"


class Certificates:
    """``incoming`` and ``outgoing`` are the contexts for those connections."""

    def __init__(self, authority: CertificateAuthority | None, home: Path, hosts: tuple[str, ...], name: str) -> None:
        self._authority = authority
        self._home = home
        self._hosts = hosts
        self._name = name
        self._clock = SystemClock()
        self._renewed = self._clock.now()
        self._files: tls.Files | None = None
        self.incoming: SSLContext
        self.outgoing: SSLContext

    @classmethod
    def of(cls, config: GatewayConfig, trust_domain: str, clock: SystemClock) -> Self | None:
        """What *config* asks for; None: no TLS."""
        if config.tls == "off":
            return None
        wildcards = ("0.0.0.0", "::")  # noqa: S104 (what a certificate must not name)
        named = () if config.host in wildcards else (config.host,)
        public = () if config.public_url is None else (urlsplit(config.public_url).hostname or "",)
        hosts = tuple(dict.fromkeys((*AT_HOME, *config.hostnames, *named, *public)))
        name = subject(trust_domain)
        if config.tls_certificate and config.tls_key and config.tls_authority:
            made = cls(None, config.home, hosts, name)
            made._contexts(config.tls_certificate, config.tls_key, config.tls_authority)
            made._files = tls.Files(config.tls_certificate, config.tls_key)
            return made
        authority = CertificateAuthority(config.home, trust_domain)
        made = cls(authority, config.home, hosts, name)
        certificate, key = made._own(clock.now())
        made._contexts(certificate, key, authority.path)
        return made

    def _contexts(self, certificate: Path, key: Path, authority: Path) -> None:
        self.incoming = tls.server(certificate, key, authority, required=False)
        self.outgoing = tls.client(authority, "node")
        tls.show(self.outgoing, certificate, key)

    def _own(self, now: float) -> tuple[Path, Path]:
        """A fresh certificate of the gateway's own, with its key."""
        paths = self._home / "tls.pem", self._home / "tls.key"
        if self._authority is not None:
            certificate, key = self._authority.issue_with_key(self._name, self._hosts, now)
            write_atomically(paths[0], certificate, flush=True)
            write_atomically(paths[1], key, flush=True)
        self._renewed = now
        return paths

    def renew_when_due(self) -> None:
        """At a third of its life, or when there is another one in the files; connections that are open go on."""
        now = self._clock.now()
        if self._files is not None:
            self._files.show_renewed(self.incoming, self.outgoing)
        if self._authority is not None and now - self._renewed > LIFE.total_seconds() / 3:
            certificate, key = self._own(now)
            for context in (self.incoming, self.outgoing):
                tls.show(context, certificate, key)

    def issue(self, workload: Workload, node: NodeRecord | None, public: bytes, now: float) -> bytes:
        """A certificate for a workload; a *node*'s is good where an operator said that it lives."""
        if self._authority is None:
            raise Unverifiable(Reason.NOT_FOUND, 'certificates come from files here (tls = "files")')
        hosts: tuple[str, ...] = ()
        if node is not None:
            hosts = (urlsplit(node.may_live_at).hostname or "",) if node.may_live_at else AT_HOME
        return self._authority.issue(workload.subject, [host for host in hosts if host], public, now)
