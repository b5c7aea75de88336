"""What nodes offer of each server against what was admitted of it: kept by digest, compared for people.

What was admitted may be called, and only on nodes that offer exactly that. So a tool that changes anywhere is
not called there until a person has seen the change and accepted it; nothing else waits for that.
"""

from __future__ import annotations

import json
from typing import Any, Final, Literal

import msgspec

from edge.blobs import Blobs
from trust.policy.inventory import Server, Tool, to_json

_OF_SERVER: Final = ("labels", "zone", "requires", "stateful", "bound")
_OF_TOOL: Final = ("description", "input_schema", "manifest", "rest")


MAX_READ: Final = 1000
"""Inventories kept in memory."""


class LostInventory(Exception):
    """An inventory that the ledger names is not beside it any more."""


class Inventories:
    """Servers by the digest of what they offer."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._read: dict[str, Server] = {}

    async def keep(self, server: Server) -> str:
        """The digest of *server*, which can be read from now on."""
        return await self._blobs.add(msgspec.json.encode(to_json(server), order="sorted"))

    def get(self, digest: str) -> Server:
        found = self._read.get(digest)
        if found is None:
            data = self._blobs.get(digest)
            if data is None:
                raise LostInventory(f"the inventory {digest} is lost")
            if len(self._read) >= MAX_READ:
                self._read.clear()
            found = self._read[digest] = msgspec.json.decode(data, type=Server)
        return found


def same(offered: Server, admitted: Server, tool: str) -> bool:
    """Whether *tool* is offered exactly as it was admitted, on data with the same labels and place."""
    now, pinned = offered.tools.get(tool), admitted.tools.get(tool)
    return (
        now is not None
        and pinned is not None
        and (now.digest, now.manifest) == (pinned.digest, pinned.manifest)
        and all(getattr(offered, part) == getattr(admitted, part) for part in _OF_SERVER)
    )


class Difference(msgspec.Struct, frozen=True):
    """One part, before and after; JSON texts, or empty where there is nothing."""

    part: str
    before: str
    after: str


class Change(msgspec.Struct, frozen=True):
    """What is new, gone or different about one tool, or (``tool`` empty) about the server."""

    tool: str
    kind: Literal["added", "removed", "changed"]
    differences: tuple[Difference, ...]


def changes(admitted: Server, offered: Server) -> list[Change]:
    """The server first, then tool by tool; empty when nothing differs."""
    of_server = _differences(admitted, offered, _OF_SERVER)
    found = [Change("", "changed", of_server)] if of_server else []
    for name in sorted({*admitted.tools, *offered.tools}):
        before, after = admitted.tools.get(name), offered.tools.get(name)
        differences = _differences(before, after, _OF_TOOL)
        if differences or before is None or after is None:
            kind: Literal["added", "removed", "changed"] = (
                "added" if before is None else "removed" if after is None else "changed"
            )
            found.append(Change(name, kind, differences))
    return found


def _differences(
    before: Server | Tool | None, after: Server | Tool | None, parts: tuple[str, ...]
) -> tuple[Difference, ...]:
    return tuple(
        Difference(part, old, new) for part in parts if (old := _text(before, part)) != (new := _text(after, part))
    )


def _text(of: Server | Tool | None, part: str) -> str:
    value: Any = None if of is None else msgspec.to_builtins(getattr(of, part))
    return "" if value is None else json.dumps(value, sort_keys=True)
