"""Agents, nodes and servers: registered by people, enrolled with one-time tokens, changed by ledger entries."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

import msgspec

from edge.clock import SystemClock, new_id
from gateway import offers
from gateway.offers import Inventories
from gateway.people import new_token
from gateway.records import Records
from gateway.state import AgentRecord, Killed, NodeRecord, ServerRecord
from trust.canonical import sha256_hex
from trust.identity import wit
from trust.identity.keys import PublicKey, SecretKey, b64url, unb64url
from trust.identity.wit import Workload, WorkloadKind
from trust.ledger import entries
from trust.mcp import PROTOCOL_TOOLS
from trust.policy import cedar, schema
from trust.policy.inventory import Inventory, Server, pin, require_server_name, require_tool_name
from trust.reasons import Reason, Unverifiable, visible

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
EVERYBODY: Final = "all"


class NewAgent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    owner: str
    purpose: str = ""
    environment: str = "development"
    teams: tuple[str, ...] = ()


Weight = Annotated[float, msgspec.Meta(gt=0, le=1000)]
Slots = Annotated[int, msgspec.Meta(ge=1, le=100_000)]


class NewNode(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``servers``: the only ones that it may offer. ``url``: where it is reached; without one, loopback only."""

    name: str
    servers: tuple[str, ...]
    url: str = ""
    kind: str = "on_prem"
    zone: str = "default"
    capabilities: dict[str, str | int | bool] = {}
    weight: Weight = 1.0
    slots: Slots = 16


class Registry:
    """Commands that look, record and let the fold apply."""

    def __init__(
        self, records: Records, inventories: Inventories, key: SecretKey, trust_domain: str, clock: SystemClock
    ) -> None:
        self._records = records
        self._inventories = inventories
        self._store = records.store
        self._key = key
        self._trust_domain = trust_domain
        self._clock = clock

    # Agents and nodes

    async def register_agent(self, new: NewAgent, by: str) -> str:
        """The one-time enrolment token; shown once."""
        _require_name(new.name)
        token = new_token()
        async with self._records.deciding:
            if self._store.get(AgentRecord, new.name) is not None:
                raise _taken("agent", new.name)
            await self._records.change(
                entries.Agent(
                    "registered",
                    new.name,
                    by,
                    did=f"did:web:{self._trust_domain}:agents:{new.name}",
                    owner=new.owner,
                    purpose=new.purpose,
                    environment=new.environment,
                    teams=list(new.teams),
                    token_sha256=sha256_hex(token.encode()),
                )
            )
        return token

    async def register_node(self, new: NewNode, by: str) -> str:
        """The one-time enrolment token; shown once."""
        _require_name(new.name)
        if new.url and _ADDRESS.fullmatch(new.url) is None:
            raise Unverifiable(Reason.MALFORMED_REQUEST, f"url {visible(new.url)}: expected http://host:port, no more")
        token = new_token()
        async with self._records.deciding:
            if self._store.get(NodeRecord, new.name) is not None:
                raise _taken("node", new.name)
            await self._records.change(
                entries.Node(
                    "registered",
                    new.name,
                    by,
                    node_kind=new.kind,
                    zone=new.zone,
                    capabilities=dict(new.capabilities),
                    weight=new.weight,
                    slots=new.slots,
                    url=new.url,
                    servers=[require_server_name(server) for server in new.servers],
                    token_sha256=sha256_hex(token.encode()),
                )
            )
        return token

    async def enroll(self, token: str, key: PublicKey) -> Workload:
        """Bind *key* to whomever *token* was made for. A token works once."""
        digest = sha256_hex(token.encode())
        async with self._records.deciding:
            for agent in self._store.all(AgentRecord):
                if agent.token_sha256 == digest:
                    name = agent.agent.name
                    await self._records.change(entries.Agent("enrolled", name, name, key=b64url(key.raw)))
                    return self._workload("agent", name)
            for node in self._store.all(NodeRecord):
                if node.token_sha256 == digest:
                    name = node.name
                    await self._records.change(entries.Node("enrolled", name, name, key=b64url(key.raw)))
                    return self._workload("node", name)
        raise Unverifiable(Reason.UNAUTHENTICATED, "this enrolment token is not known or was used before")

    def _workload(self, kind: WorkloadKind, name: str) -> Workload:
        expires = int(self._clock.now()) + wit.MAX_LIFE_S
        if kind == "agent":
            record = self.agent(name)
            did, key, revision = record.agent.did, record.agent.key, record.revision
        else:
            node = self.node(name)
            did, key, revision = f"did:web:{self._trust_domain}:nodes:{name}", node.key, 1
        return Workload(self._trust_domain, kind, name, did, PublicKey(unb64url(key)), revision, expires)

    def issue_wit(self, kind: WorkloadKind, name: str) -> str:
        """A fresh token for an enrolled workload."""
        return wit.issue(self._workload(kind, name), now=int(self._clock.now()), token_id=new_id("wit"), key=self._key)

    def require_current(self, workload: Workload) -> None:
        """Refuse a workload whose key was replaced since its token was issued."""
        current = self.agent(workload.name).agent.key if workload.kind == "agent" else self.node(workload.name).key
        if current != b64url(workload.key.raw):
            raise Unverifiable(Reason.REVOKED, f"{workload.kind} {workload.name} has another key now")

    def agent(self, name: str) -> AgentRecord:
        record = self._store.get(AgentRecord, name)
        if record is None:
            raise Unverifiable(Reason.UNAUTHENTICATED, f'no agent "{visible(name)}" is registered')
        return record

    def node(self, name: str) -> NodeRecord:
        record = self._store.get(NodeRecord, name)
        if record is None:
            raise Unverifiable(Reason.UNAUTHENTICATED, f'no node "{visible(name)}" is registered')
        return record

    async def join_node(self, name: str, url: str, servers: list[Server]) -> tuple[int, bool]:
        """A node starts, or its servers changed: it gets a new epoch. (epoch, whether a server is new to all)."""
        async with self._records.deciding:
            node = self.node(name)
            _require_bound(node, url, servers)
            for server in servers:
                _require_sound(server)
            epoch = node.epoch + 1
            await self._records.change(entries.Node("joined", name, name, url=url, epoch=epoch))
            seen = [await self._offer(name, server) for server in servers]
        return epoch, any(seen)

    # Servers and their tools

    async def _offer(self, node: str, offered: Server) -> bool:
        """What is seen for the first time is admitted; what a node offers now is recorded either way."""
        digest = await self._inventories.keep(offered)
        known = self._store.get(ServerRecord, offered.name)
        if known is None:
            await self._records.change(entries.Server("admitted", offered.name, node, digest, node=node))
        elif known.offers.get(node) == digest and offered.name in self.node(node).servers:
            return False
        changed = [] if known is None else [c.tool for c in offers.changes(self.admitted(known), offered)]
        await self._records.change(entries.Server("offered", offered.name, node, digest, node=node, tools=changed))
        return known is None

    async def accept_server(self, name: str, offer: str, by: str) -> list[str]:
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
        return {node: digest for node, digest in record.offers.items() if record.name in self.node(node).servers}

    def offers_exactly(self, node: str, admitted: Server, tool: str) -> bool:
        """Whether *node* offers *tool* just as *admitted* has it."""
        record = self._store.get(ServerRecord, admitted.name)
        digest = record.offers.get(node) if record is not None else None
        return digest is not None and offers.same(self._inventories.get(digest), admitted, tool)

    def inventory(self) -> Inventory:
        """What may be called."""
        return Inventory({record.name: self.admitted(record) for record in self._store.all(ServerRecord)})

    # Kill

    async def kill(self, target: str, by: str, reason: str) -> None:
        if target != EVERYBODY and self._store.get(AgentRecord, target) is None:
            raise Unverifiable(Reason.NOT_FOUND, f'no agent "{visible(target)}" is registered')
        async with self._records.deciding:
            await self._records.change(entries.Kill("killed", target, by, reason))

    async def unkill(self, target: str, by: str, reason: str) -> None:
        async with self._records.deciding:
            await self._records.change(entries.Kill("lifted", target, by, reason))

    def killed(self, agent: str) -> Killed | None:
        return self._store.get(Killed, EVERYBODY) or self._store.get(Killed, agent)


_AT_HOME: Final = re.compile(r"http://(?:127\.0\.0\.1|localhost|\[::1\]):[0-9]{1,5}")
_ADDRESS: Final = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]+")


def _require_bound(node: NodeRecord, url: str, servers: list[Server]) -> None:
    """A node offers what an operator said that it may, from where it was said to be."""
    for server in servers:
        if server.name not in node.may_offer:
            allowed = ", ".join(node.may_offer) or "nothing"
            raise Unverifiable(Reason.NOT_YOURS, f"{node.name} may offer {allowed}, not {visible(server.name)}")
    at_home = _AT_HOME.fullmatch(url) is not None
    if url != node.may_live_at and not (at_home and not node.may_live_at):
        expected = node.may_live_at or "an http address on loopback"
        raise Unverifiable(Reason.NOT_YOURS, f"{node.name} is expected at {expected}, not at {visible(url)}")


def _require_sound(server: Server) -> None:
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


def _require_name(name: str) -> None:
    if _NAME.fullmatch(name) is None:
        raise Unverifiable(Reason.MALFORMED_REQUEST, f'"{visible(name)}": a name has 1 to 63 of a-z, 0-9 and "-"')
    if name == EVERYBODY:
        raise Unverifiable(Reason.MALFORMED_REQUEST, f'"{EVERYBODY}" means everybody and cannot be a name')


def _taken(what: str, name: str) -> Unverifiable:
    return Unverifiable(Reason.MALFORMED_REQUEST, f'the {what} "{name}" is already registered')
