"""The documents of the gateway's state."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from gateway.router.capabilities import Evidence
from trust.facts import Agent
from trust.ledger import entries
from trust.wire import OUTBOUND


class Person(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``token_sha256`` is all that is kept of the token that signs a person in; ``login``: how the issuer of single
    sign-on calls them; ``namespace``: in which alone it may do anything; empty: in the whole mesh."""

    name: str
    roles: tuple[str, ...]
    token_sha256: str
    teams: tuple[str, ...] = ()
    login: str = ""
    namespace: str = ""

    @property
    def groups(self) -> frozenset[str]:
        """What an ``@approval`` may name that this person is of."""
        return frozenset(self.roles) | {f"team:{team}" for team in self.teams}


class Former(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Somebody who was removed: in another ``namespace`` nobody is called so again."""

    name: str
    namespace: str


class Deputy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``deputy`` may vote in the seat of ``person`` in this time (Unix microseconds); kept under both."""

    person: str
    deputy: str
    since_us: int
    until_us: int


class Passkey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose it is, its public ``key`` (COSE, base64url), and how often it has signed, if it counts."""

    credential: str
    person: str
    key: str
    party: str
    name: str
    added_us: int
    count: int


class Visit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A person who signed in to the console: under the SHA-256 of the cookie's secret; ``expires_at``: Unix seconds;
    ``how``: what proved who it is; ``credential``: with which passkey."""

    visit: str
    person: str
    expires_at: int
    how: str = "link"
    credential: str = ""


class SavedQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``asked``: the console's query."""

    name: str
    by: str
    asked: str


class AgentKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``key``: raw, base64url. ``until_us``: when it ends (Unix microseconds); 0 while it is the current one."""

    key: str
    until_us: int = 0


class AgentRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``token_sha256`` belongs to the one-time enrolment token and is empty once it was used. ``keys``: the current
    one first, then those that drain. What was issued under an earlier ``epoch`` is not believed any more.
    ``rotate``: the key that somebody asked to be replaced. ``via``: the agent whose sidecar it shares, if it has no
    sidecar of its own. ``namespace``: whose it is; empty: the mesh's own."""

    agent: Agent
    token_sha256: str
    epoch: int = 1
    keys: tuple[AgentKey, ...] = ()
    rotate: str = ""
    via: str = ""
    namespace: str = ""


class Draining(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An agent has keys that end; kept under its name."""

    agent: str


class Enrolling(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For whom a one-time token is, which was not used yet; kept under its SHA-256."""

    kind: Literal["agent", "node"]
    name: str


class Sponsored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The agents of one principal, in the order in which they were registered."""

    agents: tuple[str, ...]


NodeState = Literal["pending", "ready", "draining", "quarantined"]


class NodeRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``epoch`` rises with each lease; ``servers`` are those that the node offered in this epoch;
    ``may_offer`` and ``may_live_at`` are what an operator bound it to. ``capabilities`` are the operator's word,
    ``claims`` the node's, ``evidence`` what was found; ``suspended``: capabilities that do not count at present.
    ``reason``: why somebody (of ``put_in``, a namespace) put it into its state; ``reference``: what it is called where
    it is managed; ``namespace``: whose calls it takes; empty: everybody's."""

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
    claims: dict[str, Any] = {}
    evidence: tuple[Evidence, ...] = ()
    suspended: tuple[str, ...] = ()
    reason: str = ""
    reference: str = ""
    namespace: str = ""
    put_in: str = ""

    @property
    def outbound(self) -> bool:
        return self.url == OUTBOUND


class ServerRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``admitted`` and ``offers`` (by node) are digests of inventories. What was admitted is what may be called;
    a node that offers something else gets no calls of it. ``namespace``: whose agents may call it, which is that of
    its nodes; empty: everybody's."""

    name: str
    admitted: str
    offers: dict[str, str] = {}
    namespace: str = ""


class Killed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``target``: an agent's name, ``team:NAME``, or ``all``; ``namespace``: of who said so, at that time."""

    target: str
    by: str
    reason: str
    namespace: str = ""


class Revoked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``what`` is agent, key, token, root, session or principal; kept under ``what:id``."""

    what: str
    id: str
    by: str
    reason: str
    at_us: int


class SubjectRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The key of a subject, of which nothing more stands here; whether it was destroyed."""

    key: str
    erased: bool


class Tripped(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A circuit breaker is open until ``until_us`` (Unix microseconds)."""

    target: str
    rule: str
    count: int
    until_us: int


class KeyHolder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first agent that had ``key`` (raw, base64url)."""

    key: str
    agent: str


class Root(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A root of delegation for the holder of ``key`` (thumbprint); ``expires_at``: Unix seconds."""

    root: str
    token: str
    agent: str
    principal: str
    key: str
    expires_at: int


class Settled(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The index of the last observation that moved a score; kept under the ledger in which it stands."""

    cause: int


class Moved(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of an agent's story: it stands at ``index`` of the ledger ``origin``; kept under the agent and the place
    among all changes."""

    index: int
    entry: entries.Standing
    origin: str = ""


class Heard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The last refusal of an agent that was reported: its index in the ledger ``origin``; kept under both."""

    agent: str
    origin: str
    last: int


class LogRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A log that is witnessed, and its last checkpoint that was cosigned: ``root`` in base64, ``time_ms`` by its own
    clock, ``at_us`` by ours. ``wrong``: what contradicts it, if anything does; ``closed``: why nothing more comes."""

    origin: str
    vkey: str
    size: int = 0
    root: str = ""
    time_ms: int = 0
    at_us: int = 0
    wrong: str = ""
    closed: str = ""


class Lacking(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of the log *origin* nobody has what is below index *below*, an operator said: hashes are enough."""

    origin: str
    below: int


class Peer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A gateway that shares the state: its log, by which key that is signed, and where the others reach it."""

    name: str
    origin: str
    vkey: str
    url: str


class ActiveBundle(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of one ``namespace``; without a ``digest`` nothing is active there, and every action is refused."""

    version: int
    digest: str
    previous: str
    namespace: str = ""


ApprovalState = Literal["pending", "approved", "denied", "expired", "consumed", "cancelled"]


class Vote(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``by`` whom, in whose ``seat``; ``hushed``: the reason is not for the agent; ``signed``: by a passkey;
    ``blocks``: the no is to whatever the same policies ask for in the rest of the run."""

    by: str
    decision: Literal["approve", "deny"]
    reason: str
    at_us: int
    seat: str
    hushed: bool = False
    scope: entries.Scope = entries.ONCE
    signed: bool = False
    blocks: bool = False


class ApprovalRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One request for a person's decision. ``request`` is the complete stored action, ``original`` what the agent asked
    for before somebody edited it, and ``editors`` who did; ``policies`` asked for a person; ``presented``: the SHA-256
    of what people are shown; ``groups``: to whom it was escalated; ``under``: the approval whose scope covers it;
    ``revoked``: what was left of its own scope was taken back; ``count``: how often it was asked. Times are Unix
    microseconds, 0 if it did not happen; ``cancelled`` says why, if it was."""

    id: str
    state: ApprovalState
    agent: str
    run: str
    action_digest: str
    terms: dict[str, Any]
    request: dict[str, Any]
    requested_at_us: int
    expires_at_us: int
    policies: tuple[str, ...] = ()
    presented: str = ""
    votes: tuple[Vote, ...] = ()
    claim: str = ""
    cancelled: str = ""
    original: dict[str, Any] | None = None
    editors: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    under: str = ""
    revoked: bool = False
    count: int = 1
    viewed_at_us: int = 0
    reminded_at_us: int = 0
    decided_at_us: int = 0

    @property
    def asked_digest(self) -> str:
        """The action digest of what the agent asked for."""
        return str((self.original or self.request)["action_digest"])


class Grant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is left of the scope of an approval: kept under agent, run and approval. ``action_digest`` is empty if it
    covers whatever arguments of the tool. ``until_us``: Unix microseconds."""

    approval: str
    agent: str
    run: str
    server: str
    tool: str
    action_digest: str
    uses: int
    until_us: int


class Blocked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Somebody denied what ``policy`` asked for, and everything else of it in this run: kept under agent, run and
    policy. ``approval``: where that was said."""

    agent: str
    run: str
    policy: str
    approval: str
