"""The inventory: which servers offer which tools, and what an administrator says of each.

A tool's name, description and schema come from the server and are pinned by digest; what the tool *does*
(category, effect, risk, labels) comes from the manifest that an administrator gives, because a server's word
about itself is no evidence. What the manifest does not mention is taken for the most dangerous thing there is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec

from trust.canonical import JsonObject, digest_of
from trust.reasons import Reason, Unverifiable, visible

Category = Literal["fs", "net", "ui", "process", "data", "model", "agent", "protocol"]
Effect = Literal["read", "write", "destructive"]

RISK_HIGH: Final = 2
"""From here on an action needs a request that is signed with the agent's own key."""
RISK_CRITICAL: Final = 3
_SERVER_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_TOOL_NAME: Final = re.compile(r"[A-Za-z0-9_.\-/]{1,128}")


def require_server_name(name: str) -> str:
    """*name* if it is one; look-alikes, invisible and non-ASCII characters never are."""
    if _SERVER_NAME.fullmatch(name) is None:
        raise Unverifiable(
            Reason.UNKNOWN_SERVER,
            f'"{visible(name)}" is not a server name: expected 1 to 63 of a-z, 0-9 and "-"',
        )
    return name


def require_tool_name(name: str) -> str:
    """*name* if it is one that MCP allows."""
    if _TOOL_NAME.fullmatch(name) is None:
        raise Unverifiable(
            Reason.UNKNOWN_TOOL,
            f'"{visible(name)}" is not a tool name: expected 1 to 128 of A-Z, a-z, 0-9, "_", ".", "-", "/"',
        )
    return name


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one call may take on a node: ``seconds``, ``bytes`` of its answer, and how many run ``at_once``; 0: no more
    than the node's own limits."""

    seconds: Annotated[int, msgspec.Meta(ge=0, le=86_400)] = 0
    bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)] = 0
    at_once: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = 0


_REQUIREMENT: Final = r"^[a-z][a-z0-9_]{0,62}(=[A-Za-z0-9_.:\-]{1,64})?(@(signed|bound|verified))?$"
Requirement = Annotated[str, msgspec.Meta(pattern=_REQUIREMENT)]
"""A capability that a node must hold: ``gpu``, ``data_locality=berlin``, and how it must be known: ``gpu@verified``."""


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an administrator says that a tool does. The defaults are the strictest. ``cents``: what one call costs.
    ``personal``: arguments whose values are about somebody; ``subject``: the argument that names who that is.
    ``requires``: what a node must hold to run it."""

    category: Category = "process"
    effect: Effect = "destructive"
    privileged: bool = True
    risk: Annotated[int, msgspec.Meta(ge=0, le=RISK_CRITICAL)] = RISK_CRITICAL
    labels: tuple[str, ...] = ("untrusted",)
    idempotent: bool = False
    groups: tuple[str, ...] = ()
    cents: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0
    personal: tuple[str, ...] = ()
    subject: str = ""
    requires: tuple[Requirement, ...] = ()
    limits: Limits = Limits()


class Tool(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One pinned tool. ``digest``: SHA-256 of the JCS form of everything that its server lists of it; ``rest`` is
    what it lists beside name, description and schema (title, annotations, output schema)."""

    name: str
    digest: str
    input_schema: dict[str, Any]
    manifest: Manifest
    description: str = ""
    rest: dict[str, Any] = {}


class Server(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One server. ``labels`` say what its data is; ``zone`` where it may live; ``requires`` what a node must hold so
    that its data may be there. ``stateful``: calls of one run belong together, on one node. ``bound``: it
    takes calls only with a ticket that is bound to the key of the node that brings it."""

    name: str
    tools: dict[str, Tool]
    labels: list[str] = []
    zone: str = "default"
    requires: tuple[Requirement, ...] = ()
    stateful: bool = False
    bound: bool = False


class Inventory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All servers, by name."""

    servers: dict[str, Server]

    def tool(self, server: str, tool: str) -> Tool:
        """The tool, or :class:`Unverifiable` that says what is unknown."""
        known = self.servers.get(server)
        if known is None:
            raise Unverifiable(Reason.UNKNOWN_SERVER, f'server "{visible(server)}"; known: {_names(self.servers)}')
        found = known.tools.get(tool)
        if found is None:
            raise Unverifiable(Reason.UNKNOWN_TOOL, f'tool "{visible(tool)}" of server "{server}"')
        return found


def _names(known: Mapping[str, object]) -> str:
    return ", ".join(sorted(known)) or "none"


def pin(name: str, description: str, input_schema: JsonObject, rest: JsonObject | None = None) -> str:
    """The digest that pins a tool."""
    return digest_of({**(rest or {}), "name": name, "description": description, "inputSchema": input_schema})


def as_listed(listed: Mapping[str, Any], manifest: Manifest) -> Tool:
    """The tool that an MCP server lists, pinned; :class:`Unverifiable` if it is none."""
    name, description, schema = listed.get("name"), listed.get("description"), listed.get("inputSchema")
    if not isinstance(name, str) or not isinstance(description, str | None) or not isinstance(schema, dict | None):
        wrong = "a tool has a name and a description that are texts, and an inputSchema that is an object"
        raise Unverifiable(Reason.MALFORMED_REQUEST, wrong)
    description, input_schema = description or "", schema or {}
    rest = {key: value for key, value in listed.items() if key not in ("name", "description", "inputSchema")}
    return Tool(name, pin(name, description, input_schema, rest), input_schema, manifest, description, rest)


def pin_of(listed: Mapping[str, Any]) -> str:
    """The digest of a tool as an MCP server lists it."""
    return as_listed(listed, Manifest()).digest


def to_json(inventory: Inventory | Server) -> JsonObject:
    made: JsonObject = msgspec.to_builtins(inventory)
    return made


def server_from_json(value: object) -> Server:
    """Inverse of :func:`to_json` for one server, or :class:`Unverifiable`."""
    try:
        return msgspec.convert(value, Server)
    except msgspec.ValidationError as bad:
        raise Unverifiable(Reason.MALFORMED_REQUEST, f"inventory: {bad}") from None
