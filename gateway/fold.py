"""From ledger entries to state: the one place where the gateway's state changes."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec
from msgspec.structs import replace

from gateway.router.capabilities import Evidence
from gateway.state import (
    ActiveBundle,
    AgentKey,
    AgentRecord,
    ApprovalRecord,
    Blocked,
    Deputy,
    Draining,
    Enrolling,
    Former,
    Grant,
    Heard,
    KeyHolder,
    Killed,
    Lacking,
    LogRecord,
    Moved,
    NodeRecord,
    NodeState,
    Passkey,
    Peer,
    Person,
    Revoked,
    Root,
    SavedQuery,
    ServerRecord,
    Settled,
    Sponsored,
    SubjectRecord,
    Tripped,
    Visit,
    Vote,
)
from gateway.store import Store
from trust.facts import Agent
from trust.identity.passkeys import count_of
from trust.ledger import entries
from trust.ledger.entries import AnyEntry, Stamp
from trust.standing import fold as standing
from trust.standing.rules import sponsor
from trust.standing.score import Book


def active_key(namespace: str) -> str:
    """Under which the active bundle of a namespace is kept."""
    return f"active:{namespace}" if namespace else "active"


CHANGES: Final = (
    entries.Agent,
    entries.Approval,
    entries.Breaker,
    entries.Bundle,
    entries.Delegation,
    entries.Deputy,
    entries.Kill,
    entries.Log,
    entries.Node,
    entries.Passkey,
    entries.Person,
    entries.Replica,
    entries.Reported,
    entries.Revocation,
    entries.SavedQuery,
    entries.Server,
    entries.SignIn,
    entries.Standing,
    entries.Subject,
    entries.Witness,
)
"""The kinds of entries that :func:`apply` makes something of."""


def apply(store: Store, stamp: Stamp, entry: AnyEntry) -> None:
    """What *entry* means for the state; entries that only report mean nothing."""
    match entry:
        case entries.Person():
            _person(store, entry)
        case entries.SignIn():
            _sign_in(store, stamp, entry)
        case entries.Passkey():
            _passkey(store, stamp, entry)
        case entries.SavedQuery():
            if entry.event == "removed":
                store.delete(SavedQuery, entry.name)
            else:
                store.put(entry.name, SavedQuery(entry.name, entry.by, entry.asked))
        case entries.Agent():
            _agent(store, stamp, entry)
        case entries.Node():
            _node(store, stamp, entry)
        case entries.Server():
            _server(store, entry)
        case entries.Kill():
            _kill(store, entry)
        case entries.Revocation():
            _revocation(store, stamp, entry)
        case entries.Breaker():
            store.put(entry.target, Tripped(entry.target, entry.rule, entry.count, entry.until_us))
        case entries.Reported():
            store.put(f"{entry.agent}|{entry.origin}", Heard(entry.agent, entry.origin, entry.last))
        case entries.Delegation():
            _delegation(store, stamp, entry)
        case entries.Standing():
            _standing(store, stamp, entry)
        case entries.Bundle():
            _bundle(store, entry)
        case entries.Deputy():
            key = f"{entry.person}|{entry.deputy}"
            if entry.event == "ended":
                store.delete(Deputy, key)
            else:
                store.put(key, Deputy(entry.person, entry.deputy, entry.since_us, entry.until_us))
        case entries.Replica():
            for before in [one for one in store.all(Peer) if entry.url and one.url == entry.url]:
                store.delete(Peer, before.name)  # whose place it took, if it is another
            store.put(entry.name, Peer(entry.name, entry.origin, entry.vkey, entry.url))
        case entries.Subject():
            store.put(entry.key, SubjectRecord(entry.key, entry.event == "erased"))
        case entries.Log():
            _log(store, entry)
        case entries.Witness():
            _witness(store, stamp, entry)
        case entries.Approval():
            _approval(store, stamp, entry)


def _person(store: Store, entry: entries.Person) -> None:
    if entry.event == "removed":
        store.put(entry.person, Former(entry.person, namespace_of(store, entry.person)))
        store.delete(Person, entry.person)
        for deputy in list(store.all(Deputy)):
            if entry.person in (deputy.person, deputy.deputy):
                store.delete(Deputy, f"{deputy.person}|{deputy.deputy}")
        for visit in list(store.all(Visit)):
            if visit.person == entry.person:
                store.delete(Visit, visit.visit)
        for key in list(store.all(Passkey)):
            if key.person == entry.person:
                store.delete(Passkey, key.credential)
    elif entry.event == "login":
        known = store.get(Person, entry.person)
        if known is not None:
            store.put(entry.person, replace(known, login=entry.login))
        for visit in list(store.all(Visit)):
            if visit.person == entry.person and visit.how == "oidc":
                store.delete(Visit, visit.visit)
    else:
        made = (entry.person, tuple(entry.roles), entry.token_sha256, tuple(entry.teams), entry.login, entry.namespace)
        store.put(entry.person, Person(*made))


def namespace_of(store: Store, by: str) -> str:
    """Of whom an entry says that they did it; who is not known (any more) is of the mesh."""
    person = store.get(Person, by)
    return person.namespace if person is not None else ""


def _sign_in(store: Store, stamp: Stamp, entry: entries.SignIn) -> None:
    """Visits that are over are forgotten as new ones come."""
    for visit in list(store.all(Visit)):
        if visit.expires_at * 1_000_000 <= stamp.wall_us:
            store.delete(Visit, visit.visit)
    if entry.event == "signed_out":
        store.delete(Visit, entry.visit)
    else:
        store.put(entry.visit, Visit(entry.visit, entry.person, entry.expires_at, entry.how, entry.credential))
        _counted(store, entry.credential, entry.count)


def _passkey(store: Store, stamp: Stamp, entry: entries.Passkey) -> None:
    if entry.event == "removed":
        store.delete(Passkey, entry.credential)
        for visit in list(store.all(Visit)):
            if visit.credential == entry.credential:
                store.delete(Visit, visit.visit)
    else:
        made = (entry.credential, entry.person, entry.key, entry.party, entry.name, stamp.wall_us, entry.count)
        store.put(entry.credential, Passkey(*made))


def _counted(store: Store, credential: str, count: int) -> None:
    """A passkey that counts has signed once more."""
    known = store.get(Passkey, credential) if count else None
    if known is not None:
        store.put(credential, replace(known, count=max(known.count, count)))


def sponsor_key(principal: str, namespace: str) -> str:
    """Whose word a principal is: a name in one namespace is nobody in another. Without a *principal*: everybody of the
    namespace."""
    return f"{principal}/{namespace}" if namespace else principal


class Shelf:
    """The books of standing, as they lie in the store; those of one *namespace* where it matters whose they are."""

    def __init__(self, store: Store, namespace: str = "") -> None:
        self._store = store
        self._namespace = namespace

    def book(self, agent: str) -> Book | None:
        return self._store.get(Book, agent)

    def books(self) -> list[Book]:
        return list(self._store.all(Book))

    def of(self, principal: str) -> list[Book]:
        sponsor = sponsor_key("", self._namespace) if self._namespace else principal
        sponsored = self._store.get(Sponsored, sponsor)
        found = (self.book(agent) for agent in sponsored.agents) if sponsored is not None else ()
        return [book for book in found if book is not None]

    def keep(self, book: Book) -> None:
        self._store.put(book.agent, book)


def _agent(store: Store, stamp: Stamp, entry: entries.Agent) -> None:
    known = store.get(AgentRecord, entry.agent)
    if entry.event == "registered":
        agent = Agent(
            entry.agent,
            entry.did,
            entry.owner,
            entry.purpose,
            entry.environment,
            tuple(entry.teams),
            entry.attested,
        )
        store.put(entry.agent, AgentRecord(agent, entry.token_sha256, via=entry.via, namespace=entry.namespace))
        _may_enrol(store, "", entry.token_sha256, Enrolling("agent", entry.agent))
        _tell(
            store,
            stamp,
            standing.registered(
                Shelf(store, entry.namespace),
                stamp.seq,
                entry.agent,
                sponsor(entry.owner, entry.namespace),
                _second(stamp),
            ),
        )
        for principal in (entry.owner, "") if entry.namespace else (entry.owner,):
            _sponsor(store, sponsor_key(principal, entry.namespace), entry.agent)
    elif known is not None:
        changed = _changed(known, entry)
        store.put(entry.agent, changed)
        if any(key.until_us for key in changed.keys):
            store.put(entry.agent, Draining(entry.agent))
        elif any(key.until_us for key in known.keys):
            store.delete(Draining, entry.agent)
        _may_enrol(store, known.token_sha256, changed.token_sha256, Enrolling("agent", entry.agent))
        if entry.event in ("enrolled", "rotated"):
            _bind(store, stamp, entry)


def _sponsor(store: Store, key: str, agent: str) -> None:
    sponsored = store.get(Sponsored, key) or Sponsored(())
    if agent not in sponsored.agents:
        store.put(key, Sponsored((*sponsored.agents, agent)))


def _may_enrol(store: Store, before: str, after: str, who: Enrolling) -> None:
    """Whose one-time token is which."""
    if before and before != after:
        store.delete(Enrolling, before)
    if after:
        store.put(after, who)


def _changed(known: AgentRecord, entry: entries.Agent) -> AgentRecord:
    match entry.event:
        case "enrolled":
            # Whoever held the key before may be the one whom this is to keep out: nothing of before counts.
            epoch = known.epoch + bool(known.keys)
            agent = replace(known.agent, key=entry.key)
            return AgentRecord(agent, "", epoch, (AgentKey(entry.key),), via=known.via, namespace=known.namespace)
        case "rotated":
            drains = tuple(replace(key, until_us=key.until_us or entry.until_us) for key in known.keys)
            agent = replace(known.agent, key=entry.key)
            return replace(known, agent=agent, keys=(AgentKey(entry.key), *drains), rotate="")
        case "rotate":
            return replace(known, rotate=known.agent.key)
        case "token":
            return replace(known, token_sha256=entry.token_sha256)
        case "key_ended":
            return replace(known, keys=tuple(key for key in known.keys if key.key != entry.key))
    return known


def _bind(store: Store, stamp: Stamp, entry: entries.Agent) -> None:
    """A key that somebody else had before brings along what that one did."""
    former = store.get(KeyHolder, entry.key)
    if former is None:
        store.put(entry.key, KeyHolder(entry.key, entry.agent))
    else:
        told = standing.bound(Shelf(store), stamp.seq, entry.agent, former.agent, _second(stamp))
        if told is not None:
            _tell(store, stamp, told)


def _second(stamp: Stamp) -> int:
    return stamp.wall_us // 1_000_000


def _tell(store: Store, stamp: Stamp, moved: entries.Standing) -> None:
    store.put(f"{moved.agent}|{store.place:012d}", Moved(stamp.seq, moved, stamp.origin))


def _standing(store: Store, stamp: Stamp, entry: entries.Standing) -> None:
    standing.apply(Shelf(store), entry)
    _tell(store, stamp, entry)
    known = store.get(Settled, stamp.origin)
    if entry.cause > (known.cause if known is not None else -1):
        store.put(stamp.origin, Settled(entry.cause))


def _log(store: Store, entry: entries.Log) -> None:
    known = store.get(LogRecord, entry.origin)
    if entry.event == "met":
        store.put(entry.origin, LogRecord(entry.origin, entry.vkey))
    elif entry.event == "renewed":
        store.delete(LogRecord, entry.origin)  # whoever comes next under this origin is met anew
        if entry.pruned:
            store.put(entry.origin, Lacking(entry.origin, entry.pruned))
        else:
            store.delete(Lacking, entry.origin)
    elif known is not None and entry.event == "closed":
        store.put(entry.origin, replace(known, closed=entry.reason))
    elif known is not None:
        store.put(entry.origin, replace(known, wrong=entry.detail))


def _witness(store: Store, stamp: Stamp, entry: entries.Witness) -> None:
    known = store.get(LogRecord, entry.origin)
    if known is not None:
        seen = {"size": entry.size, "root": entry.root, "time_ms": entry.time_ms, "at_us": stamp.wall_us}
        store.put(entry.origin, replace(known, **seen))


def _delegation(store: Store, stamp: Stamp, entry: entries.Delegation) -> None:
    """Roots that are over are forgotten as new ones come."""
    for root in list(store.all(Root)):
        if root.expires_at * 1_000_000 <= stamp.wall_us:
            store.delete(Root, root.root)
    root = Root(entry.root, entry.token, entry.agent, entry.principal, entry.key, entry.expires_at)
    store.put(entry.root, root)


def _revocation(store: Store, stamp: Stamp, entry: entries.Revocation) -> None:
    store.put(f"{entry.what}:{entry.id}", Revoked(entry.what, entry.id, entry.by, entry.reason, stamp.wall_us))


def _node(store: Store, stamp: Stamp, entry: entries.Node) -> None:
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
                reference=entry.reference,
                namespace=entry.namespace,
            ),
        )
        _may_enrol(store, "", entry.token_sha256, Enrolling("node", entry.node))
        return
    if known is None:
        return
    match entry.event:
        case "enrolled":
            changed = replace(known, key=entry.key, token_sha256="", state="ready")
            _may_enrol(store, known.token_sha256, "", Enrolling("node", entry.node))
        case "joined":
            # What it showed before, it showed with what it ran on before.
            bound = tuple(one for one in known.evidence if one.level == "bound")
            changed = replace(known, url=entry.url, epoch=entry.epoch, servers=(), claims=entry.claims, evidence=bound)
        case "proved":
            level: Literal["bound", "verified"] = "bound" if entry.level == "bound" else "verified"
            proved = Evidence(entry.capability, level, entry.until_us)
            others = (
                one
                for one in known.evidence
                if (one.capability, one.level) != (proved.capability, level) and one.until_us > stamp.wall_us
            )
            changed = replace(known, evidence=(*others, proved))
        case "suspended":
            changed = replace(known, suspended=tuple(sorted({*known.suspended, entry.capability})))
        case "restored":
            changed = replace(known, suspended=tuple(one for one in known.suspended if one != entry.capability))
        case _:
            state = msgspec.convert(entry.state, NodeState)
            changed = replace(known, state=state, reason=entry.reason, put_in=namespace_of(store, entry.by))
    store.put(entry.node, changed)


def _server(store: Store, entry: entries.Server) -> None:
    if entry.event == "retired":
        store.delete(ServerRecord, entry.server)
        return
    known = store.get(ServerRecord, entry.server)
    if known is None or entry.event == "accepted":
        offers = known.offers if known else {}
        first = store.get(NodeRecord, entry.node) if known is None else None
        namespace = known.namespace if known else first.namespace if first else ""
        known = ServerRecord(entry.server, entry.offer, offers, namespace)
    if entry.event == "offered" and (node := store.get(NodeRecord, entry.node)) is not None:
        servers = tuple(sorted({*node.servers, entry.server}))
        store.put(entry.node, replace(node, servers=servers))
        known = replace(known, offers={**known.offers, entry.node: entry.offer})
    store.put(entry.server, known)


def _kill(store: Store, entry: entries.Kill) -> None:
    if entry.event == "killed":
        store.put(entry.target, Killed(entry.target, entry.by, entry.reason, namespace_of(store, entry.by)))
    else:
        store.delete(Killed, entry.target)


def _bundle(store: Store, entry: entries.Bundle) -> None:
    if entry.event in ("activated", "rolled_back", "withdrawn"):
        key = active_key(entry.namespace)
        before = store.get(ActiveBundle, key)
        previous = "" if before is None else before.previous if entry.renewed else before.digest
        store.put(key, ActiveBundle(entry.version, entry.digest, previous, entry.namespace))


def _approval(store: Store, stamp: Stamp, entry: entries.Approval) -> None:
    now = stamp.wall_us
    if entry.event == "requested" and entry.request is not None:
        store.put(entry.approval, _requested(entry, entry.request, now))
        return
    known = store.get(ApprovalRecord, entry.approval)
    if known is None:
        return
    match entry.event:
        case "asked_again":
            changed = replace(known, count=known.count + 1)
        case "viewed":
            changed = replace(known, viewed_at_us=known.viewed_at_us or now)
        case "vote":
            decision: Literal["approve", "deny"] = "approve" if entry.decision == "approve" else "deny"
            seat, signed = entry.seat or entry.by, entry.signed is not None
            blocks = bool(entry.block)
            vote = Vote(entry.by, decision, entry.reason, now, seat, entry.hushed, entry.scope, signed, blocks)
            changed = replace(known, votes=(*known.votes, vote))
            if entry.signed is not None:
                _counted(store, entry.signed.credential, count_of(entry.signed))
        case "edited" if entry.request is not None:
            changed = _edited(known, entry, entry.request)
        case "approved":
            changed = replace(known, state="approved", decided_at_us=now)
            _granted(store, changed, entry, now)
        case "denied":
            changed = replace(known, state="denied", decided_at_us=now)
            for policy in entry.block:
                store.put(f"{known.agent}|{known.run}|{policy}", Blocked(known.agent, known.run, policy, known.id))
        case "claimed":
            changed = replace(known, state="consumed", claim=entry.claim)
        case "expired":
            changed = replace(known, state="expired", decided_at_us=known.decided_at_us or now)
        case "cancelled":
            changed = replace(known, state="cancelled", cancelled=entry.reason, decided_at_us=now)
        case "reminded":
            changed = replace(known, reminded_at_us=now)
        case "escalated":
            changed = replace(known, groups=tuple(sorted({*known.groups, *entry.groups})))
        case "revoked":
            store.delete(Grant, grant_key(known.agent, known.run, known.id))
            changed = replace(known, revoked=True)
        case _:
            return
    store.put(entry.approval, changed)


def _requested(entry: entries.Approval, asked: dict[str, Any], now: int) -> ApprovalRecord:
    return ApprovalRecord(
        id=entry.approval,
        state="pending",
        agent=asked["agent"],
        run=asked["run"],
        action_digest=entry.action_digest,
        terms=asked["terms"],
        request=asked,
        requested_at_us=now,
        expires_at_us=now + int(asked["terms"]["ttl_s"]) * 1_000_000,
        policies=tuple(asked.get("policies", ())),
        presented=entry.presented,
        under=entry.under,
    )


def _edited(known: ApprovalRecord, entry: entries.Approval, asked: dict[str, Any]) -> ApprovalRecord:
    """Another action under the same id: nobody has voted on it, and whoever made it never may."""
    return replace(
        known,
        action_digest=entry.action_digest,
        terms=asked["terms"],
        request=asked,
        policies=tuple(asked.get("policies", ())),
        presented=entry.presented,
        votes=(),
        original=known.original or known.request,
        editors=tuple(sorted({*known.editors, entry.by})),
    )


def _granted(store: Store, record: ApprovalRecord, entry: entries.Approval, now: int) -> None:
    """The use of a scope that covers it, or what its own leaves for others."""
    if record.under:
        key = grant_key(record.agent, record.run, record.under)
        used = store.get(Grant, key)
        if used is not None and used.uses:
            left = replace(used, uses=used.uses - 1)
            store.put(key, left) if left.uses else store.delete(Grant, key)
        return
    scope = entry.scope
    if scope.kind == "once" or (scope.kind == "uses" and scope.uses < 2):
        return
    asked, exact = record.request, scope.kind == "uses"
    grant = Grant(
        approval=record.id,
        agent=record.agent,
        run=record.run,
        server=asked["server"],
        tool=asked["tool"],
        action_digest=record.action_digest if exact else "",
        uses=scope.uses - 1 if exact else 0,
        until_us=now + scope.minutes * 60_000_000,
    )
    store.put(grant_key(record.agent, record.run, record.id), grant)


def grant_key(agent: str, run: str, approval: str) -> str:
    return f"{agent}|{run}|{approval}"
