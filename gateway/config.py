"""What can be set for a gateway."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from edge.config import ExistingFile, Name, Port, Seconds, Section, SegmentBytes, WholeSeconds


class Credential(Section):
    """A header that upstream calls to *server* get; its value never leaves gateway and node."""

    server: Name
    header: str = Field(pattern=r"^[A-Za-z0-9-]+$")
    value_file: ExistingFile


class GatewayConfig(Section):
    """Section ``[gateway]``. Times in seconds."""

    home: Path = Path(".licet/gateway")
    host: str = Field("127.0.0.1", min_length=1)
    port: Port = 7400
    hostnames: tuple[str, ...] = ()
    trust_domain: str = Field("licet.local", pattern=r"^[a-z0-9.-]{1,253}$")
    policies: Path = Path("policies")
    bundle_ttl_s: WholeSeconds = 86_400
    lease_ttl_s: Seconds = 10.0
    segment_bytes: SegmentBytes = 64 << 20
    credentials: tuple[Credential, ...] = ()
