"""Approvals: requested once, found again, waited for, claimed exactly once, or over.

How people decide on them stands in :mod:`gateway.approvals.votes`. Every step is a ledger entry before it is state, and
steps that look before they write do so under one lock, so of any number of racing claims one wins.
"""

from __future__ import annotations

import asyncio
import datetime
import heapq
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from edge.blobs import Blobs
from edge.clock import SystemClock, id_at, new_id
from gateway.approvals import presented
from gateway.approvals.rules import Electorate, enough, may_vote
from gateway.bundles import Bundles
from gateway.delegations import Delegations
from gateway.fold import grant_key
from gateway.records import Records
from gateway.registry import Registry
from gateway.state import ApprovalRecord, Blocked, Deputy, Grant, Person
from gateway.stops import Stops
from gateway.subjects import Subjects
from trust import wire
from trust.action import Action
from trust.ledger import entries
from trust.ledger.entries import AnyEntry
from trust.personal import REQUEST, SubjectKey
from trust.policy.inventory import RISK_CRITICAL
from trust.reasons import Reason, Unverifiable, visible
from trust.verdict import Hold
from trust.wire import Dispatch, Proof

MAX_WAIT_S: Final = 25.0
MAX_PENDING: Final = 100
"""Of one agent. Nobody reads more, and an agent must not fill the queue of others."""
ALIKE: Final = 6
"""Of one tool: as many finished requests are remembered."""
LITTLE: Final = 50
"""Documents that are read at once."""
DENIAL_HOLDS_US: Final = 86_400 * 1_000_000


class Desk:
    """All approvals of one gateway."""

    def __init__(
        self,
        records: Records,
        registry: Registry,
        stops: Stops,
        delegations: Delegations,
        subjects: Subjects,
        bundles: Bundles,
        blobs: Blobs,
        clock: SystemClock,
    ) -> None:
        self._records = records
        self._registry = registry
        self._stops = stops
        self._delegations = delegations
        self._subjects = subjects
        self._bundles = bundles
        self._blobs = blobs
        self._clock = clock
        self._changed = asyncio.Event()
        self._closing = False
        self._open: set[str] = set()
        self._chains: dict[str, str] = {}
        self._of_action: dict[tuple[str, str], list[str]] = {}
        self._past: dict[str, str] = {}
        self._alike: dict[tuple[str, str, str], deque[str]] = {}
        for record in self.all():
            self._index(record)
        records.listen(self._on_change)

    def _index(self, record: ApprovalRecord) -> None:
        """Finished requests are many and stay: nothing that happens often may look at them all."""
        if record.state in ("pending", "approved"):
            self._open.add(record.id)
        else:
            self._open.discard(record.id)
            self._remember(record)
            self._chains.pop(record.id, None)
        for digest in {record.asked_digest, record.action_digest}:
            known = self._of_action.setdefault((record.agent, digest), [])
            if record.id not in known:
                known.append(record.id)

    def _remember(self, record: ApprovalRecord) -> None:
        """What is over, for whoever looks back."""
        if record.id not in self._past:
            name = (self._namespace(record), record.request["server"], record.request["tool"])
            self._alike.setdefault(name, deque(maxlen=ALIKE)).append(record.id)
        self._past[record.id] = record.state

    def _live(self) -> list[ApprovalRecord]:
        return [self.get(approval) for approval in self._open]

    def _on_change(self, entry: AnyEntry) -> None:
        if isinstance(entry, entries.Approval):
            self._index(self.get(entry.approval))
        if isinstance(entry, entries.Approval | entries.Deputy | entries.Person):
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()

    def get(self, approval: str) -> ApprovalRecord:
        found = self._records.store.get(ApprovalRecord, approval)
        if found is None:
            raise Unverifiable(Reason.NOT_FOUND, f'no approval "{visible(approval)}"')
        return found

    def all(self) -> list[ApprovalRecord]:
        return list(self._records.store.all(ApprovalRecord))

    def find(self, approval: str) -> ApprovalRecord | None:
        """The request of this id, if there is one."""
        return self._records.store.get(ApprovalRecord, approval)

    def waiting_for(self, person: Person) -> tuple[list[ApprovalRecord], list[ApprovalRecord]]:
        """(what *person* can decide on, what others must), each with what ends first first, and namespaces in turn: one
        that asks for much must not hide what the others ask."""
        now = self._clock.wall_us()
        electorates: dict[tuple[str, bool], Electorate] = {}
        mine: list[ApprovalRecord] = []
        others: list[ApprovalRecord] = []
        for record in self._live():
            if record.state == "pending" and record.expires_at_us > now and self._sees(person, record):
                asking = self._registry.agent(record.agent)
                whose = asking.namespace, self._at_home(record, record.policies)
                all_ = electorates.get(whose) or electorates.setdefault(whose, self.electorate(record))
                (mine if may_vote(record, person.name, asking.agent.owner, all_) else others).append(record)
        return self._in_turn(mine), self._in_turn(others)

    def _in_turn(self, records: list[ApprovalRecord]) -> list[ApprovalRecord]:
        places: Counter[str] = Counter()
        found: list[tuple[int, int, ApprovalRecord]] = []
        for record in sorted(records, key=_by_end):
            namespace = self._namespace(record)
            found.append((places[namespace], record.expires_at_us, record))
            places[namespace] += 1
        return [record for _, _, record in sorted(found, key=lambda one: one[:2])]

    def _sees(self, person: Person, record: ApprovalRecord) -> bool:
        return person.namespace in ("", self._namespace(record))

    def _namespace(self, record: ApprovalRecord) -> str:
        return self._registry.agent(record.agent).namespace

    async def since(self, when_us: int) -> list[ApprovalRecord]:
        """What was asked since then (Unix microseconds), read little by little: who decides must not wait for it."""
        found: list[ApprovalRecord] = []
        first = id_at("apr", when_us // 1_000)
        for number, one in enumerate([one for one in (*self._past, *self._open) if one >= first]):
            record = self.find(one)
            if record is not None:
                found.append(record)
            if number % LITTLE == 0:
                await asyncio.sleep(0)
        return found

    def ending_before(self, when_us: int) -> int:
        """How many wait for a person, and no longer than until then (Unix microseconds)."""
        return sum(one.state == "pending" and one.expires_at_us < when_us for one in self._live())

    def past(self, state: str, before: str, most: int, person: Person) -> list[ApprovalRecord]:
        """What is over, the latest first: in this *state* if one is named, and asked before the request *before*; as
        far as it is there for *person*."""
        ids = (
            one
            for one, ended in self._past.items()
            if state in ("", ended)
            and (not before or one < before)
            and (not person.namespace or self._sees(person, self.get(one)))
        )
        return [self.get(one) for one in heapq.nlargest(most, ids)]

    def like(self, record: ApprovalRecord, most: int) -> list[ApprovalRecord]:
        """The last that asked for the same tool and are over, the latest first."""
        found = self._alike.get((self._namespace(record), record.request["server"], record.request["tool"]), ())
        return [self.get(one) for one in reversed(found) if one != record.id][:most]

    def original(self, record: ApprovalRecord) -> tuple[Dispatch, bytes] | None:
        """What the agent asked for, if somebody edited it since."""
        return None if record.original is None else self._restored(record, record.original)

    def waiting(self) -> list[ApprovalRecord]:
        """What waits for people, or (a second at most) for its end to be written."""
        return [one for one in self._live() if one.state == "pending"]

    @property
    def pending(self) -> int:
        """How many wait for a person."""
        return len(self.waiting())

    async def request(self, action: Action, dispatch: Dispatch, hold: Hold, risk: int) -> ApprovalRecord:
        """The request for *action*: the one that is there already, or a new one; approved at once if what somebody
        approved before goes so far, which it never does for the highest *risk*.

        A denial holds for a day in whatever run, so that asking again does not wear people down.
        """
        async with self._records.deciding:
            known = self._same(dispatch)
            if known is not None and self._falls_short(known, hold):
                why = "policy asks for more than it was asked with"
                await self._records.change(entries.Approval("cancelled", known.id, by="gateway", reason=why))
                known = None
            if known is not None:
                if known.state == "pending":
                    await self._records.change(entries.Approval("asked_again", known.id, by=dispatch.agent))
                return self.get(known.id)
            self._require_not_blocked(dispatch, hold)
            waiting = sum(one.state == "pending" and one.agent == dispatch.agent for one in self._live())
            if waiting >= MAX_PENDING:
                raise Unverifiable(Reason.OVERLOADED, f"{waiting} actions of {dispatch.agent} wait for people already")
            approval = new_id("apr")
            stored = await self.stored_as(action, dispatch)
            asked = {**stored, **self.terms_of(hold), "payload_sha256": action.payload_digest}
            under = self._covering(dispatch, hold) if risk < RISK_CRITICAL else ""
            await self._records.change(
                entries.Approval(
                    "requested",
                    approval,
                    by=dispatch.agent,
                    request=asked,
                    action_digest=dispatch.action_digest,
                    presented=presented.digest(asked),
                    under=under,
                )
            )
            if under:
                await self._records.change(entries.Approval("approved", approval, by="gateway", under=under))
            return self.get(approval)

    def _falls_short(self, record: ApprovalRecord, asks: Hold) -> bool:
        """Whether a request that is not over could not be used for what policy asks now, whoever still says yes."""
        if record.state == "approved":
            given = self.get(record.under) if record.under else record
            return bool(asks.terms.step_up and record.under) or not self._enough(given, asks)
        kept = record.terms["quorum"]
        more = any(count > kept.get(group, 0) for group, count in asks.terms.quorum.items())
        others = self._at_home(record, record.policies) and not self._at_home(record, asks.policies)
        return record.state == "pending" and (more or others or (asks.terms.step_up and not record.terms["step_up"]))

    def _require_not_blocked(self, dispatch: Dispatch, hold: Hold) -> None:
        """Nobody denied everything that this policy would ask for in this run."""
        for policy in hold.policies:
            blocked = self._records.store.get(Blocked, f"{dispatch.agent}|{dispatch.run}|{policy}")
            if blocked is not None:
                detail = f"whatever {policy} asks for was denied for the rest of this run, with {blocked.approval}"
                raise Unverifiable(Reason.APPROVAL_DENIED, detail)

    def _covering(self, dispatch: Dispatch, hold: Hold) -> str:
        """The approval whose scope covers this action too, if there is one. Its votes must be enough for what policy
        asks of this one, and the same policies must have asked."""
        now = self._clock.wall_us()
        for grant in self._records.store.within(Grant, f"{dispatch.agent}|{dispatch.run}|"):
            given = self.get(grant.approval)
            for_whom = (given.request["principal"], list(given.request["authority"]))
            same = (grant.server, grant.tool) == (dispatch.server, dispatch.tool)
            same = same and for_whom == (dispatch.principal, list(dispatch.authority))
            exact = grant.action_digest in ("", dispatch.action_digest)
            if not (same and exact and now < grant.until_us):
                continue
            asks_no_more = set(hold.policies) <= set(given.policies)
            if asks_no_more and not hold.terms.step_up and self._enough(given, hold):
                return grant.approval
        return ""

    def granted(self, record: ApprovalRecord) -> Grant | None:
        """What is left of the scope of *record*."""
        found = self._records.store.get(Grant, grant_key(record.agent, record.run, record.id))
        return found if found is not None and found.until_us > self._clock.wall_us() else None

    @staticmethod
    def terms_of(hold: Hold) -> dict[str, Any]:
        """What policy says of a request."""
        return {"terms": hold.terms.to_json(), "policies": sorted(hold.policies), "because": list(hold.sentences)}

    async def stored_as(self, action: Action, dispatch: Dispatch) -> dict[str, Any]:
        """A request as its entry has it. Of one that is personal the bytes, and all that is made of them, lie beside
        the ledger, sealed."""
        body = action.payload.body
        if action.personal is None:
            return {**msgspec.to_builtins(dispatch), "body_sha256": await self._blobs.add(body)}
        key = action.personal.key
        sealed = await self._blobs.add(key.seal(wire.encode(dispatch, body), REQUEST))
        plain = msgspec.structs.replace(dispatch, headers=[], proof=None, chain="")
        return {**msgspec.to_builtins(plain), "body_sha256": sealed, "sealed_by": key.id}

    def _same(self, dispatch: Dispatch) -> ApprovalRecord | None:
        now = self._clock.wall_us()
        found: ApprovalRecord | None = None
        for approval in sorted(self._of_action.get((dispatch.agent, dispatch.action_digest), ())):  # by their time
            one = self.get(approval)
            if dispatch.action_digest not in (one.asked_digest, one.action_digest):
                continue  # what it was in between, before somebody edited it once more, is nothing that anybody asks
            asked_alike = (one.run, one.request["place"]) == (dispatch.run, msgspec.to_builtins(dispatch.place))
            live = one.state in ("pending", "approved") and asked_alike and one.expires_at_us > now
            if live or (one.state == "denied" and one.requested_at_us > now - DENIAL_HOLDS_US):
                found = one
        return found

    def proof_of(self, dispatch: Dispatch) -> Proof | None:
        """The proof with which the approval that *dispatch* claims was asked for, if it is this agent's."""
        if dispatch.approval is None:
            return None
        record = self.get(dispatch.approval)
        if record.agent != dispatch.agent or record.state != "approved":
            raise Unverifiable(_REASON_OF[record.state], f"this request is {record.state}, or another agent's")
        return self.stored(record)[0].proof

    def stored(self, record: ApprovalRecord) -> tuple[Dispatch, bytes]:
        """The complete action that would run."""
        return self._restored(record, record.request)

    def asked_first(self, dispatch: Dispatch) -> tuple[Dispatch, bytes] | None:
        """What the agent itself asked for, if *dispatch* comes with an approval that somebody edited since, and is just
        that: what the agent signed stands for nothing else."""
        record = self.get(dispatch.approval) if dispatch.approval is not None else None
        if record is None or record.original is None:
            return None
        edited, now = self.stored(record)[0], dispatch
        same = (edited.action_digest, edited.run, edited.place, edited.chain)
        return self.original(record) if same == (now.action_digest, now.run, now.place, now.chain) else None

    def _restored(self, record: ApprovalRecord, request: dict[str, Any]) -> tuple[Dispatch, bytes]:
        body = self._blobs.get(request["body_sha256"])
        if body is None:
            raise Unverifiable(Reason.APPROVAL_MISMATCH, "the stored bytes of this action are lost")
        if "sealed_by" in request:
            key = self._subjects.key_of(request["sealed_by"], record.agent)
            if key is None:
                raise Unverifiable(Reason.APPROVAL_CANCELLED, _ERASED)
            return wire.decode(key.unseal(body, REQUEST), Dispatch)
        statement = {key: value for key, value in request.items() if key not in _BESIDE}
        return msgspec.convert(statement, Dispatch), body

    def _chain(self, record: ApprovalRecord) -> str:
        """Of one that is personal it is sealed: its constraints may say about whom it is."""
        if "sealed_by" not in record.request:
            return str(record.request["chain"])
        if record.id not in self._chains:
            self._chains[record.id] = self.stored(record)[0].chain
        return self._chains[record.id]

    def _key_of(self, record: ApprovalRecord) -> SubjectKey | None:
        return self._subjects.key_of(record.request["sealed_by"], record.agent)

    def text(self, record: ApprovalRecord) -> str:
        """The stored bytes as people read them; empty if they are lost or erased, and then nothing will run."""
        try:
            return self.stored(record)[1].decode("utf-8", "replace")
        except Unverifiable:
            return ""

    def require_approved(self, approval: str, dispatch: Dispatch, payload: str, asks: Hold | None) -> ApprovalRecord:
        """The approval that *dispatch* claims to have, if it covers exactly this action; it stays unspent.

        *payload* is the digest of the bytes that would run, *asks* what policy asks for now: the votes must
        satisfy that too, of those whom it asks. None: policy no longer asks for anybody.
        """
        record = self.get(approval)
        if (record.agent, record.action_digest, record.run) != (
            dispatch.agent,
            dispatch.action_digest,
            dispatch.run,
        ):
            raise Unverifiable(Reason.APPROVAL_MISMATCH, "it was given for another action, agent or run")
        if record.request["payload_sha256"] != payload:
            raise Unverifiable(Reason.APPROVAL_MISMATCH, "these are not the bytes that were shown")
        if record.state != "approved":
            raise over(record)
        if record.under and self.get(record.under).revoked:
            raise Unverifiable(Reason.APPROVAL_CANCELLED, "what it rested on was taken back")
        if record.expires_at_us <= self._clock.wall_us():
            raise Unverifiable(Reason.APPROVAL_EXPIRED, "the approval was not used in time")
        given = self.get(record.under) if record.under else record
        if asks is not None and asks.terms.step_up and record.under:
            raise Unverifiable(Reason.APPROVAL_MISMATCH, "policy asks for a signature for each of these now")
        if asks is not None and not self._enough(given, asks):
            what = "for signatures, or other people" if asks.terms.step_up else "for other people"
            raise Unverifiable(Reason.APPROVAL_MISMATCH, f"policy asks {what} now than those who approved")
        return record

    async def consume(self, approval: str, dispatch: Dispatch, payload: str, asks: Callable[[], Hold | None]) -> None:
        """Spend the approval: of all who try, one returns. What policy *asks* is looked at when nothing can change any
        more."""
        async with self._records.deciding:
            self.require_approved(approval, dispatch, payload, asks())
            await self._records.change(
                entries.Approval("claimed", approval, by=dispatch.agent, claim=dispatch.action_id)
            )

    async def wait(self, approval: str, seconds: float) -> ApprovalRecord:
        """The record as soon as it is no longer pending, or after *seconds* as it is."""
        deadline = self._clock.mono() + min(seconds, MAX_WAIT_S)
        while (record := self.get(approval)).state == "pending":
            changed, left = self._changed, deadline - self._clock.mono()
            if left <= 0 or self._closing:
                break
            try:
                async with asyncio.timeout(left):
                    await changed.wait()
            except TimeoutError:
                continue
        return record

    def close(self) -> None:
        """Nobody waits any more."""
        self._closing = True
        self._changed.set()

    async def cancel_stopped(self) -> None:
        """Called after each kill and revocation, and every second: what somebody asked who must not act is over.
        Lifting a kill brings nothing back."""
        for record in self._live():
            why = self._over(record)
            if not why:
                continue
            cancelled = entries.Approval("cancelled", record.id, by="gateway", reason=why)
            await self._step(record, ("pending", "approved"), cancelled)

    def _over(self, record: ApprovalRecord) -> str:
        """Why what *record* asks for may not happen any more, whoever approves; empty if it may."""
        if "sealed_by" in record.request and self._key_of(record) is None:
            return _ERASED
        try:
            self._stops.require(self._registry.agent(record.agent).agent)
            if record.request["authority"]:
                self._delegations.open(self._chain(record), record.agent)
        except Unverifiable as bad:
            return bad.detail
        return "what it rested on was taken back" if record.under and self.get(record.under).revoked else ""

    def _at_home(self, record: ApprovalRecord, policies: Iterable[str]) -> bool:
        """Whether it is the agent's own namespace that is asked: for its own server, or by *policies* of its own."""
        return self._bundles.asks_at_home(self._namespace(record), record.request["server"], policies)

    def electorate(self, record: ApprovalRecord, asks: Hold | None = None) -> Electorate:
        """Who may vote on it, for themselves and for others: people of the mesh, and those of the agent's namespace
        where that is asked. Whom the mesh asks for its own servers, an operator of a namespace cannot make up. *asks*:
        what policy asks now, if it is not what was asked when the request was made."""
        policies = record.policies if asks is None else asks.policies
        within = ("", self._namespace(record)) if self._at_home(record, policies) else ("",)
        people = {person.name: person for person in self._records.cached(Person) if person.namespace in within}
        return Electorate(people, self._records.cached(Deputy), self._clock.wall_us())

    def _enough(self, record: ApprovalRecord, asks: Hold) -> bool:
        """Whether those whom policy *asks* now said yes, whoever was asked before."""
        all_, terms = self.electorate(record, asks), asks.terms
        stand_ins = set(record.groups).intersection(terms.escalate)
        return enough(record.votes, terms.quorum, stand_ins, all_, step_up=terms.step_up)

    async def attend(self) -> None:
        """Called every second: what nobody decided, or nobody used, in time is over; before that, others are asked too,
        and those who were asked are asked again."""
        now = self._clock.wall_us()
        for record in self._live():
            if record.expires_at_us <= now:
                await self._step(record, ("pending", "approved"), entries.Approval("expired", record.id))
            elif record.state == "pending":
                waited_s = (now - record.requested_at_us) / 1e6
                groups = [group for group, after in _escalation(record) if waited_s >= after]
                if groups:
                    await self._step(record, ("pending",), entries.Approval("escalated", record.id, groups=groups))
                if not record.reminded_at_us and now - record.requested_at_us > record.expires_at_us - now:
                    await self._step(record, ("pending",), entries.Approval("reminded", record.id))

    async def _step(self, record: ApprovalRecord, states: tuple[str, ...], entry: entries.Approval) -> None:
        async with self._records.deciding:
            if self.get(record.id).state in states:
                await self._records.change(entry)


_BESIDE: Final = ("body_sha256", "terms", "policies", "because", "payload_sha256")
"""What a stored request has beside the statement of who asked."""
_ERASED: Final = "what it was about was erased"


def _by_end(record: ApprovalRecord) -> int:
    return record.expires_at_us


def _escalation(record: ApprovalRecord) -> list[tuple[str, int]]:
    """To whom it is still to be escalated, after how many seconds."""
    return [(group, after) for group, after in record.terms.get("escalate", {}).items() if group not in record.groups]


def denial(record: ApprovalRecord) -> str:
    """Who said no to what, why, and how long that holds."""
    until = datetime.datetime.fromtimestamp((record.requested_at_us + DENIAL_HOLDS_US) / 1e6, datetime.UTC)
    votes = [vote for vote in record.votes if vote.decision == "deny"]
    by = ", ".join(vote.by if vote.seat == vote.by else f"{vote.by} for {vote.seat}" for vote in votes) or "somebody"
    because = "; ".join(vote.reason for vote in votes if vote.reason and not vote.hushed)
    return (
        f"{by} denied {record.id}{f': {because}' if because else ''}; "
        f"the same action is refused until {until:%Y-%m-%d %H:%M} UTC"
    )


def over(record: ApprovalRecord) -> Unverifiable:
    """Why nothing more can become of it."""
    because = f": {record.cancelled}" if record.cancelled else ""
    return Unverifiable(_REASON_OF[record.state], f"this request is {record.state}{because}")


_REASON_OF: Final = {
    "pending": Reason.APPROVAL_PENDING,
    "approved": Reason.APPROVAL_CONSUMED,
    "denied": Reason.APPROVAL_DENIED,
    "expired": Reason.APPROVAL_EXPIRED,
    "consumed": Reason.APPROVAL_CONSUMED,
    "cancelled": Reason.APPROVAL_CANCELLED,
}
