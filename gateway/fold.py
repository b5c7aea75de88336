"""From ledger entries to state: the one place where the gateway's state changes."""

from __future__ import annotations

from typing import Final

import msgspec

from gateway.state import (
    ActiveBundle,
    AgentRecord,
    ApprovalRecord,
    Killed,
    NodeRecord,
    Person,
    ServerRecord,
    Vote,
)
from gateway.store import Store
from trust.facts import Agent
from trust.ledger import entries
from trust.ledger.entries import AnyEntry, Stamp

ACTIVE: Final = "active"


def apply(store: Store, stamp: Stamp, entry: AnyEntry) -> None:
    """What *entry* means for the state; entries that only report mean nothing."""
    match entry:
        case entries.Person():
            _person(store, entry)
        case entries.Agent():
            _agent(store, entry)
        case entries.Node():
            _node(store, entry)
        case entries.Server():
            _server(store, entry)
        case entries.Kill():
            _kill(store, entry)
        case entries.Bundle():
            _bundle(store, entry)
        case entries.Approval():
            _approval(store, stamp, entry)


def _person(store: Store, entry: entries.Person) -> None:
    if entry.event == "removed":
        store.delete(Person, entry.person)
    else:
        store.put(entry.person, Person(entry.person, tuple(entry.roles), entry.token_sha256))


def _agent(store: Store, entry: entries.Agent) -> None:
    known = store.get(AgentRecord, entry.agent)
    if entry.event == "registered":
        agent = Agent(
            entry.agent,
            entry.did,
            entry.owner,
            entry.purpose,
            entry.environment,
            tuple(entry.teams),
        )
        store.put(entry.agent, AgentRecord(agent, entry.token_sha256))
    elif known is not None:
        agent = msgspec.structs.replace(known.agent, key=entry.key)
        store.put(entry.agent, AgentRecord(agent, "", known.revision))


def _node(store: Store, entry: entries.Node) -> None:
    known = store.get(NodeRecord, entry.node)
    if entry.event == "registered":
        store.put(
            entry.node,
            NodeRecord(
                entry.node,
                entry.token_sha256,
                kind=entry.node_kind,
                zone=entry.zone,
                capabilities=entry.capabilities,
                weight=entry.weight,
                slots=entry.slots,
                may_offer=tuple(entry.servers),
                may_live_at=entry.url,
            ),
        )
        return
    if known is None:
        return
    if entry.event == "enrolled":
        changed = msgspec.structs.replace(known, key=entry.key, token_sha256="", state="ready")
    elif entry.event == "joined":
        changed = msgspec.structs.replace(known, url=entry.url, epoch=entry.epoch, servers=())
    else:
        changed = msgspec.convert({**msgspec.to_builtins(known), "state": entry.state}, NodeRecord)
    store.put(entry.node, changed)


def _server(store: Store, entry: entries.Server) -> None:
    known = store.get(ServerRecord, entry.server)
    if known is None or entry.event == "accepted":
        known = ServerRecord(entry.server, entry.offer, known.offers if known else {})
    if entry.event == "offered" and (node := store.get(NodeRecord, entry.node)) is not None:
        servers = tuple(sorted({*node.servers, entry.server}))
        store.put(entry.node, msgspec.structs.replace(node, servers=servers))
        known = msgspec.structs.replace(known, offers={**known.offers, entry.node: entry.offer})
    store.put(entry.server, known)


def _kill(store: Store, entry: entries.Kill) -> None:
    if entry.event == "killed":
        store.put(entry.target, Killed(entry.target, entry.by, entry.reason))
    else:
        store.delete(Killed, entry.target)


def _bundle(store: Store, entry: entries.Bundle) -> None:
    if entry.event in ("activated", "rolled_back"):
        before = store.get(ActiveBundle, ACTIVE)
        store.put(ACTIVE, ActiveBundle(entry.version, entry.digest, before.digest if before else ""))


def _approval(store: Store, stamp: Stamp, entry: entries.Approval) -> None:
    if entry.event == "requested" and entry.request is not None:
        asked = entry.request
        store.put(
            entry.approval,
            ApprovalRecord(
                id=entry.approval,
                state="pending",
                agent=asked["agent"],
                run=asked["run"],
                action_digest=entry.action_digest,
                terms=asked["terms"],
                request=asked,
                requested_at_us=stamp.wall_us,
                expires_at_us=stamp.wall_us + int(asked["terms"]["ttl_s"]) * 1_000_000,
            ),
        )
        return
    known = store.get(ApprovalRecord, entry.approval)
    if known is None:
        return
    if entry.event == "vote":
        vote = Vote(entry.by, "approve" if entry.decision == "approve" else "deny", entry.reason, stamp.wall_us)
        changed = msgspec.structs.replace(known, votes=(*known.votes, vote))
    elif entry.event == "claimed":
        changed = msgspec.structs.replace(known, state="consumed", claim=entry.claim)
    elif entry.event in ("approved", "denied", "expired", "cancelled"):
        changed = msgspec.convert({**msgspec.to_builtins(known), "state": entry.event}, ApprovalRecord)
    else:
        return
    store.put(entry.approval, changed)
