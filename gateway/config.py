"""What can be set for a gateway."""

from __future__ import annotations

from pathlib import Path

from edge.config import Section


class Credential(Section):
    """A header that upstream calls to *server* get; its value never leaves gateway and node."""

    server: str
    header: str
    value_file: Path


class GatewayConfig(Section):
    """Section ``[gateway]``. Times in seconds."""

    home: Path = Path(".licet/gateway")
    host: str = "127.0.0.1"
    port: int = 7400
    hostnames: tuple[str, ...] = ()
    trust_domain: str = "licet.local"
    policies: Path = Path("policies")
    bundle_ttl_s: int = 86_400
    lease_ttl_s: float = 10.0
    segment_bytes: int = 64 << 20
    credentials: tuple[Credential, ...] = ()
