"""The documents of the gateway's state."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from trust.facts import Agent


class Person(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``token_sha256`` is all that is kept of the token that signs a person in."""

    name: str
    roles: tuple[str, ...]
    token_sha256: str


class AgentRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``token_sha256`` belongs to the one-time enrolment token and is empty once it was used."""

    agent: Agent
    token_sha256: str
    revision: int = 1


NodeState = Literal["pending", "ready", "draining", "quarantined"]


class NodeRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``epoch`` rises with each lease; ``servers`` are those that the node offered in this epoch;
    ``may_offer`` and ``may_live_at`` are what an operator bound it to."""

    name: str
    token_sha256: str
    kind: str = "on_prem"
    zone: str = "default"
    url: str = ""
    key: str = ""
    capabilities: dict[str, Any] = {}
    weight: float = 1.0
    slots: int = 16
    epoch: int = 0
    state: NodeState = "pending"
    servers: tuple[str, ...] = ()
    may_offer: tuple[str, ...] = ()
    may_live_at: str = ""


class ServerRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``admitted`` and ``offers`` (by node) are digests of inventories. What was admitted is what may be called;
    a node that offers something else gets no calls of it."""

    name: str
    admitted: str
    offers: dict[str, str] = {}


class Killed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``target``: an agent's name, or ``all``."""

    target: str
    by: str
    reason: str


class ActiveBundle(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    digest: str
    previous: str


ApprovalState = Literal["pending", "approved", "denied", "expired", "consumed", "cancelled"]


class Vote(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    by: str
    decision: Literal["approve", "deny"]
    reason: str
    at_us: int


class ApprovalRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One request for a person's decision. ``request`` is the complete stored action, as it was asked;
    times are Unix microseconds."""

    id: str
    state: ApprovalState
    agent: str
    run: str
    action_digest: str
    terms: dict[str, Any]
    request: dict[str, Any]
    requested_at_us: int
    expires_at_us: int
    votes: tuple[Vote, ...] = ()
    claim: str = ""
