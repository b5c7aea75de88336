"""Where the command line finds things: home, configuration, tokens."""

from __future__ import annotations

import itertools
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.config import BadConfig, Section, Source
from gateway.config import GatewayConfig
from licet.client.api import Api
from sidecar.config import NodeConfig, SidecarConfig
from sidecar.node.admission import BadManifest, read_manifest

SECTIONS: dict[str, type[Section]] = {"gateway": GatewayConfig, "sidecar": SidecarConfig, "node": NodeConfig}


@dataclass(frozen=True, slots=True)
class Settings:
    """What file and environment say."""

    home: Path
    gateway: GatewayConfig
    sidecar: SidecarConfig
    node: NodeConfig
    config_path: Path | None

    def api(self, name: str, token: str = "", timeout_s: float = 130.0) -> Api:
        """The process *name* (gateway, sidecar or node) as it is reached on this machine."""
        if name == "gateway":
            return Api(self.gateway.url, token, timeout_s, authority=self.gateway.authority)
        part = self.sidecar if name == "sidecar" else self.node
        authority = self.node.gateway_ca or self.gateway.authority if name == "node" else None
        url = f"{'https' if authority else 'http'}://{part.host}:{part.port}"
        return Api(url, token, timeout_s, authority=authority, role="node")


def free_port(host: str, first: int) -> int:
    """The first port from *first* on that nobody listens on here now."""
    for port in range(first, min(first + 200, 65_536)):
        with socket.socket() as probe:
            if probe.connect_ex((host, port)):
                return port
    return first


_MAKER = {"the agent": "sidecar (LICET_SIDECAR__HOME and __PORT, if they are not the default ones)"}
_TOKEN = re.compile(r"[A-Za-z0-9_-]{20,128}")


def load() -> Settings:
    """From ``$LICET_CONFIG`` (default ``licet.toml`` if it is there) and the environment, or :class:`BadConfig`."""
    environ = dict(os.environ)
    home = Path(environ.get("LICET_HOME", ".licet"))
    named = environ.get("LICET_CONFIG")
    path = Path(named) if named else Path("licet.toml")
    if named and not path.exists():
        raise BadConfig(f"LICET_CONFIG names {named}, which does not exist")
    source = Source(path if path.exists() else None, environ)
    made = {
        name: section if "home" in section.model_fields_set else section.model_copy(update={"home": home / name})
        for name, section in source.sections(SECTIONS).items()
    }
    _require_apart(made, source)
    for server in made["node"].servers:  # type: ignore[attr-defined]
        _require_manifest(server.manifest)
    gateway, sidecar, node = (made[name] for name in SECTIONS)
    return Settings(home, gateway, sidecar, node, path if path.exists() else None)  # type: ignore[arg-type]


def _require_manifest(path: Path | None) -> None:
    try:
        read_manifest(path)
    except BadManifest as bad:
        raise BadConfig(str(bad)) from None


def _require_apart(made: dict[str, Any], source: Source) -> None:
    """Two processes on one machine cannot listen on one port, nor write into one directory."""
    for one, other in itertools.combinations(made, 2):
        if not (source.mentions(one) or source.mentions(other)):
            continue
        a, b = made[one], made[other]
        if a.port == b.port != 0 and a.host == b.host:
            raise BadConfig(f"[{one}] and [{other}] both listen on {a.host}:{a.port}; expected different ports")
        if a.home.resolve() == b.home.resolve():
            raise BadConfig(f"[{one}] and [{other}] both have the home {a.home}; expected different directories")


def read_token(path: Path, what: str) -> str:
    """The token in *path*; says what to do when it is missing."""
    try:
        found = path.read_text("utf-8").strip()
        if _TOKEN.fullmatch(found):
            return found
        raise BadConfig(f"{path} does not hold the token of {what}; expected one line of letters, digits, - and _")
    except FileNotFoundError:
        raise BadConfig(
            f"{path}: no file with the token of {what}; has the {_MAKER.get(what, 'gateway')} been started here, with "
            "this LICET_HOME?"
        ) from None
