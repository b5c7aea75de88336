"""Where the command line finds things: home, configuration, tokens."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from edge.config import BadConfig, Source
from gateway.config import GatewayConfig
from sidecar.config import NodeConfig, SidecarConfig

SECTIONS = {"gateway": GatewayConfig, "sidecar": SidecarConfig, "node": NodeConfig}


@dataclass(frozen=True, slots=True)
class Settings:
    """What file and environment say."""

    home: Path
    gateway: GatewayConfig
    sidecar: SidecarConfig
    node: NodeConfig
    config_path: Path | None


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
    source.require_known(set(SECTIONS))
    gateway = source.section("gateway", GatewayConfig)
    sidecar = source.section("sidecar", SidecarConfig)
    node = source.section("node", NodeConfig)
    return Settings(
        home,
        gateway if "home" in gateway.model_fields_set else gateway.model_copy(update={"home": home / "gateway"}),
        sidecar if "home" in sidecar.model_fields_set else sidecar.model_copy(update={"home": home / "sidecar"}),
        node if "home" in node.model_fields_set else node.model_copy(update={"home": home / "node"}),
        path if path.exists() else None,
    )


def read_token(path: Path, what: str) -> str:
    """The token in *path*; says what to do when it is missing."""
    try:
        found = path.read_text("utf-8").strip()
        if _TOKEN.fullmatch(found):
            return found
        raise BadConfig(f"{path} does not hold the token of {what}; expected one line of letters, digits, - and _")
    except FileNotFoundError:
        raise BadConfig(f"{path}: no token for {what}; has the gateway been started with this LICET_HOME?") from None
