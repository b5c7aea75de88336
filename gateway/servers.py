"""Servers and their tools: what was admitted of each, what nodes offer, and who accepts a difference."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from gateway import offers
from gateway.offers import Inventories
from gateway.records import Records
from gateway.state import NodeRecord, ServerRecord
from trust.ledger import entries
from trust.mcp import PROTOCOL_TOOLS
from trust.policy import cedar, schema
from trust.policy.inventory import Inventory, Server, pin, require_server_name, require_tool_name
from trust.reasons import Reason, Unverifiable, visible


class Servers:
    """Commands that look, record and let the fold apply."""

    def __init__(self, records: Records, inventories: Inventories, reserved: Mapping[str, str]) -> None:
        """*reserved*: names that are kept for the servers of a namespace, because there is a secret for them."""
        self._reserved = reserved
        self._records = records
        self._inventories = inventories
        self._store = records.store

    async def offer(self, node: NodeRecord, offered: Server) -> bool:
        """What is seen for the first time is admitted; what a node offers now is recorded either way. Whether the
        server is new to all; the caller holds the lock of decisions."""
        digest = await self._inventories.keep(offered)
        known = self._store.get(ServerRecord, offered.name)
        if known is None:
            await self._records.change(entries.Server("admitted", offered.name, node.name, digest, node=node.name))
        elif known.offers.get(node.name) == digest and offered.name in node.servers:
            return False
        changed = [] if known is None else [c.tool for c in offers.changes(self.admitted(known), offered)]
        await self._records.change(
            entries.Server("offered", offered.name, node.name, digest, node=node.name, tools=changed)
        )
        return known is None

    def require_free(self, node: NodeRecord, name: str) -> None:
        """Nothing, if the server *name* is of the namespace of *node*, or new; else :class:`Unverifiable`."""
        known = self._store.get(ServerRecord, name)
        namespace = known.namespace if known is not None else self._meant(name, node.namespace)
        if namespace != node.namespace:
            taken = f"{node.name} cannot offer {visible(name)}: that is the name of another's server"
            raise Unverifiable(Reason.NOT_YOURS, taken)

    def _meant(self, name: str, otherwise: str) -> str:
        """Whose a server is that nobody offered yet: where its credentials are for, else the mesh's if one of its nodes
        may offer it."""
        if name not in self._reserved and any(
            name in node.may_offer for node in self._store.all(NodeRecord) if not node.namespace
        ):
            return ""
        return self._reserved.get(name, otherwise)

    async def accept(self, name: str, offer: str, by: str) -> list[str]:
        """Admit what a node offers, exactly as it was looked at; what this changes."""
        async with self._records.deciding:
            known = self._store.get(ServerRecord, require_server_name(name))
            if known is None:
                raise Unverifiable(Reason.UNKNOWN_SERVER, f'server "{name}"')
            if offer not in self._current(known).values():
                raise Unverifiable(Reason.APPROVAL_MISMATCH, f"no node offers this of {name} now; look at it again")
            changed = [c.tool for c in offers.changes(self.admitted(known), self._inventories.get(offer))]
            await self._records.change(entries.Server("accepted", name, by, offer, tools=changed))
        return changed

    async def retire(self, name: str, by: str) -> None:
        """Nobody may call it any more, and its name is free: for whoever is to have it, if somebody else took it."""
        async with self._records.deciding:
            known = self._store.get(ServerRecord, require_server_name(name))
            if known is None:
                raise Unverifiable(Reason.UNKNOWN_SERVER, f'server "{name}"')
            offering = [node.name for node in map(self._node, self._current(known)) if node and node.state == "ready"]
            if offering:
                todo = f"drain or quarantine {', '.join(sorted(offering))} first, which offers it"
                raise Unverifiable(Reason.MALFORMED_REQUEST, f"{name} is in use: {todo}")
            await self._records.change(entries.Server("retired", name, by, known.admitted))

    def _node(self, name: str) -> NodeRecord | None:
        return self._store.get(NodeRecord, name)

    def all(self) -> list[ServerRecord]:
        return list(self._store.all(ServerRecord))

    def admitted(self, record: ServerRecord) -> Server:
        """What may be called of a server."""
        return self._inventories.get(record.admitted)

    def offers(self, record: ServerRecord) -> list[dict[str, Any]]:
        """What nodes offer that was not admitted: digest, nodes, and every difference."""
        current = self._current(record)
        return [
            {
                "digest": digest,
                "nodes": sorted(node for node, theirs in current.items() if theirs == digest),
                "changes": msgspec.to_builtins(offers.changes(self.admitted(record), self._inventories.get(digest))),
            }
            for digest in sorted({*current.values()} - {record.admitted})
        ]

    def _current(self, record: ServerRecord) -> dict[str, str]:
        """Offers of nodes that have the server in their present epoch."""
        nodes = {node: self._store.get(NodeRecord, node) for node in record.offers}
        return {
            name: record.offers[name]
            for name, node in nodes.items()
            if node is not None and record.name in node.servers
        }

    def offers_exactly(self, node: str, admitted: Server, tool: str) -> bool:
        """Whether *node* offers *tool* just as *admitted* has it."""
        record = self._store.get(ServerRecord, admitted.name)
        digest = record.offers.get(node) if record is not None else None
        return digest is not None and offers.same(self._inventories.get(digest), admitted, tool)

    def inventory(self, namespace: str = "") -> Inventory:
        """What agents of *namespace* may call: its own servers, and those of the mesh."""
        found = (record for record in self._store.all(ServerRecord) if record.namespace in ("", namespace))
        return Inventory({record.name: self.admitted(record) for record in found})

    def is_of(self, namespace: str, name: str) -> bool:
        """Whether the server *name* is one of *namespace*."""
        record = self._store.get(ServerRecord, name)
        return record is not None and record.namespace == namespace

    def own(self, namespace: str) -> list[str]:
        """The names of the servers of *namespace*."""
        return [record.name for record in self._store.all(ServerRecord) if record.namespace == namespace]


def require_sound(server: Server) -> None:
    """Nothing is admitted that lies about itself, or that a bundle could not be built with."""
    require_server_name(server.name)
    for name, tool in server.tools.items():
        if name.startswith("mcp:"):
            if tool != PROTOCOL_TOOLS.get(name):
                raise Unverifiable(Reason.MALFORMED_REQUEST, f"{server.name} redefines {visible(name)}")
            continue
        require_tool_name(name)
        if tool.manifest.category == "protocol":
            raise Unverifiable(Reason.MALFORMED_REQUEST, f"{server.name}/{name}: the category protocol is MCP's own")
        for group in tool.manifest.groups:
            if _GROUP.fullmatch(group) is None:
                raise Unverifiable(Reason.MALFORMED_REQUEST, f'{server.name}/{name}: "{visible(group)}" is no group')
        if tool.name != name or tool.digest != pin(name, tool.description, tool.input_schema, tool.rest):
            raise Unverifiable(Reason.MALFORMED_REQUEST, f"{server.name}/{name}: its digest is not that of its schema")
    try:
        cedar.parse_schema(schema.complete(_MINIMAL_SCHEMA, Inventory({server.name: server})))
    except Exception as bad:
        raise Unverifiable(
            Reason.MALFORMED_REQUEST, f"{server.name}: no Cedar schema can be made of its tools: {visible(str(bad))}"
        ) from None


_GROUP: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_MINIMAL_SCHEMA: Final = (
    "entity Human; entity Agent; entity Server; type Trust = {}; type Run = {}; type Rate = {}; type Authority = {};"
)
