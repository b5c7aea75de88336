"""What a node offers: the tools that its servers list, pinned, with what the operator's manifest says of each."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Final, get_args

import msgspec

from sidecar.config import ToolServer
from sidecar.node.upstream import MAX_TOOLS, UpstreamFailed
from trust.mcp import PROTOCOL_TOOLS
from trust.policy.inventory import (
    RISK_CRITICAL,
    Category,
    Effect,
    Manifest,
    Server,
    Tool,
    as_listed,
    require_server_name,
    require_tool_name,
)
from trust.reasons import Unverifiable

MAX_LIST_BYTES: Final = 1 << 20


class BadManifest(Exception):
    """The manifest file cannot be used; says where and why."""


def read_manifest(path: Path | None) -> dict[str, Manifest]:
    """Tool name → manifest."""
    if path is None:
        return {}
    try:
        text = path.read_text("utf-8")
        tree = tomllib.loads(text)
        for member in tree:
            if member != "tools":
                raise BadManifest(f"{path}: found [{member}], expected [tools.NAME]")
        return {name: _manifest(path, text, name, given) for name, given in tree.get("tools", {}).items()}
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as bad:
        raise BadManifest(f"{path}: {bad}") from None


def _manifest(path: Path, text: str, name: str, given: object) -> Manifest:
    try:
        return msgspec.convert(given, Manifest)
    except msgspec.ValidationError as bad:
        head = next((n for n, line in enumerate(text.splitlines(), 1) if line.strip() == f"[tools.{name}]"), 1)
        known = ", ".join(field.name for field in msgspec.structs.fields(Manifest))
        raise BadManifest(
            f"{path}:{head}: [tools.{name}] {bad}; members are {known}; category one of {_one_of(Category)}; "
            f"effect one of {_one_of(Effect)}; risk from 0 to {RISK_CRITICAL}"
        ) from None


def _one_of(literal: Any) -> str:
    return ", ".join(get_args(literal))


def inventory_of(config: ToolServer, listed: list[dict[str, Any]]) -> Server:
    """The server as the gateway will pin it; a tool with a name that could deceive refuses the server."""
    manifests = read_manifest(config.manifest)
    if not all(isinstance(tool, dict) for tool in listed):
        raise UpstreamFailed(f"{config.name} lists something that is no tool")
    if len(listed) > MAX_TOOLS:
        raise UpstreamFailed(f"{config.name} lists {len(listed)} tools; the limit is {MAX_TOOLS}")
    tools: dict[str, Tool] = dict(PROTOCOL_TOOLS)
    try:
        require_server_name(config.name)
        if len(msgspec.json.encode(listed)) > MAX_LIST_BYTES:
            raise UpstreamFailed(f"{config.name} lists more than {MAX_LIST_BYTES} bytes")
        for tool in listed:
            name = require_tool_name(str(tool.get("name")))
            if name in tools:
                raise UpstreamFailed(f"{config.name} lists the tool {name} twice")
            tools[name] = as_listed(tool, manifests.get(name, Manifest()))
    except Unverifiable as bad:
        raise UpstreamFailed(f"{config.name}: {bad.detail}") from None
    requires = tuple(sorted(config.requires))
    return Server(
        config.name, tools, list(config.labels), config.zone, requires, stateful=config.stateful, bound=config.bound
    )


def unlisted(config: ToolServer, offered: Server) -> list[str]:
    """Tools that the manifest speaks of and the server does not list: usually misspelt."""
    return sorted(read_manifest(config.manifest).keys() - offered.tools.keys())
