"""What a node offers: the tools that its servers list, pinned, with what the operator's manifest says of each."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import msgspec

from sidecar.config import ToolServer
from sidecar.node.upstream import MAX_TOOLS, UpstreamFailed
from trust.mcp import PROTOCOL_TOOLS
from trust.policy.inventory import Manifest, Server, Tool, as_listed, require_server_name, require_tool_name
from trust.reasons import Unverifiable


class BadManifest(Exception):
    """The manifest file cannot be used; says where and why."""


class _ManifestFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tools: dict[str, Manifest] = {}


def read_manifest(path: Path | None) -> dict[str, Manifest]:
    """Tool name → manifest."""
    if path is None:
        return {}
    try:
        return msgspec.convert(tomllib.loads(path.read_text("utf-8")), _ManifestFile).tools
    except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError) as bad:
        raise BadManifest(f"{path}: {bad}") from None


def inventory_of(config: ToolServer, listed: list[dict[str, Any]]) -> Server:
    """The server as the gateway will pin it; a tool with a name that could deceive refuses the server."""
    manifests = read_manifest(config.manifest)
    if len(listed) > MAX_TOOLS:
        raise UpstreamFailed(f"{config.name} lists {len(listed)} tools; the limit is {MAX_TOOLS}")
    tools: dict[str, Tool] = dict(PROTOCOL_TOOLS)
    try:
        require_server_name(config.name)
        for tool in listed:
            name = require_tool_name(str(tool.get("name")))
            if name in tools:
                raise UpstreamFailed(f"{config.name} lists the tool {name} twice")
            tools[name] = as_listed(tool, manifests.get(name, Manifest()))
    except Unverifiable as bad:
        raise UpstreamFailed(f"{config.name}: {bad.detail}") from None
    return Server(config.name, tools, list(config.labels), config.zone)
