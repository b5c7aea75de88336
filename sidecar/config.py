"""What can be set for a sidecar and for a node."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from edge.config import Section


class SidecarConfig(Section):
    """Section ``[sidecar]``. Times in seconds. ``hold_wait_s``: how long an MCP call is held open while a
    person decides; ``labels_keep_s``: how long what an agent has seen stays with it beyond a run."""

    home: Path = Path(".licet/sidecar")
    host: str = "127.0.0.1"
    port: int = 7410
    hostnames: tuple[str, ...] = ()
    gateway_url: str = "http://127.0.0.1:7400"
    enrolment_token: str = ""
    hold_wait_s: float = 120.0
    labels_keep_s: int = 86_400
    segment_bytes: int = 64 << 20


class ToolServer(Section):
    """One MCP server behind a node: an HTTP ``url``, or a ``command`` that is started and spoken to on stdio.
    ``manifest``: TOML that says of each tool what it does; what it does not mention is taken for the worst."""

    name: str
    command: tuple[str, ...] = ()
    env: dict[str, str] = Field(default_factory=dict)
    cwd: Path | None = None
    url: str = ""
    manifest: Path | None = None
    labels: tuple[str, ...] = ()
    zone: str = "default"

    @model_validator(mode="after")
    def _one_way_in(self) -> ToolServer:
        if bool(self.command) == bool(self.url):
            raise ValueError("give either command or url")
        return self


class NodeConfig(Section):
    """Section ``[node]``: the inbound sidecar in front of tools."""

    home: Path = Path(".licet/node")
    host: str = "127.0.0.1"
    port: int = 7420
    hostnames: tuple[str, ...] = ()
    gateway_url: str = "http://127.0.0.1:7400"
    public_url: str = ""
    enrolment_token: str = ""
    heartbeat_s: float = 2.0
    lease_ttl_s: float = 10.0
    segment_bytes: int = 64 << 20
    servers: tuple[ToolServer, ...] = ()
