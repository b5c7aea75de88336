"""What a server offers now against what was admitted of it: compared for people, and named by a digest."""

from __future__ import annotations

import json
from typing import Any, Literal

import msgspec

from trust.canonical import sha256_hex
from trust.policy.inventory import Server, Tool, to_json

_SHOWN = ("description", "input_schema", "manifest")


class Difference(msgspec.Struct, frozen=True):
    """One part of one tool, before and after; JSON texts, or empty where there is nothing."""

    part: str
    before: str
    after: str


class Change(msgspec.Struct, frozen=True):
    """What is new, gone or different about one tool."""

    tool: str
    kind: Literal["added", "removed", "changed"]
    differences: tuple[Difference, ...]


def digest(offered: Server) -> str:
    """What an acceptance is bound to: SHA-256 of everything that is offered."""
    return sha256_hex(msgspec.json.encode(to_json(offered), order="sorted"))


def changes(admitted: Server, offered: Server) -> list[Change]:
    """Tool by tool; empty when nothing differs but quarantine marks."""
    names = sorted({*admitted.tools, *offered.tools})
    compared = [(name, admitted.tools.get(name), offered.tools.get(name)) for name in names]
    return [change for name, before, after in compared if (change := _change(name, before, after)) is not None]


def _change(name: str, before: Tool | None, after: Tool | None) -> Change | None:
    differences = tuple(
        Difference(part, old, new) for part in _SHOWN if (old := _text(before, part)) != (new := _text(after, part))
    )
    # A tool that nobody admitted yet stands in quarantine as it was first seen: for people it is new.
    if before is None or (before.quarantined and not differences):
        return Change(name, "added", tuple(Difference(part, "", _text(after, part)) for part in _SHOWN))
    if after is None:
        return Change(name, "removed", differences)
    return Change(name, "changed", differences) if differences else None


def _text(tool: Tool | None, part: str) -> str:
    value: Any = None if tool is None else msgspec.to_builtins(getattr(tool, part))
    return "" if value is None else json.dumps(value, sort_keys=True)


def compare(admitted: Server, offered: Server) -> tuple[Server, list[str]]:
    """The inventory that holds from now on, and which tools wait in it for a person."""
    tools = {}
    waiting = []
    for name, tool in offered.tools.items():
        pinned = admitted.tools.get(name)
        if pinned is not None and pinned.digest == tool.digest and pinned.manifest == tool.manifest:
            tools[name] = pinned
        else:
            tools[name] = msgspec.structs.replace(pinned or tool, quarantined=True)
            waiting.append(name)
    return msgspec.structs.replace(admitted, tools=tools), sorted(waiting)
