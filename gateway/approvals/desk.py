"""Approvals: requested once, voted on by the right people, claimed exactly once, or expired.

Every step is a ledger entry before it is state, and steps that look before they write do so under one lock,
so of any number of racing claims one wins.
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from edge.blobs import Blobs
from edge.clock import SystemClock, new_id
from gateway.delegations import Delegations
from gateway.records import Records
from gateway.registry import Registry
from gateway.state import ApprovalRecord, Person
from gateway.stops import Stops
from gateway.subjects import Subjects
from trust import wire
from trust.action import Action
from trust.ledger import entries
from trust.ledger.entries import AnyEntry
from trust.personal import REQUEST, SubjectKey
from trust.policy.terms import Terms
from trust.reasons import Reason, Unverifiable, visible
from trust.wire import Dispatch, Proof

MAX_WAIT_S: Final = 25.0
MAX_REASON: Final = 500
MAX_PENDING: Final = 100
"""Of one agent. Nobody reads more, and an agent must not fill the queue of others."""
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
        blobs: Blobs,
        clock: SystemClock,
    ) -> None:
        self._records = records
        self._registry = registry
        self._stops = stops
        self._delegations = delegations
        self._subjects = subjects
        self._blobs = blobs
        self._clock = clock
        self._changed = asyncio.Event()
        self._closing = False
        self._open: set[str] = set()
        self._of_action: dict[tuple[str, str], list[str]] = {}
        for record in self.all():
            self._index(record)
        records.listen(self._on_change)

    def _index(self, record: ApprovalRecord) -> None:
        """Finished requests are many and stay: nothing that happens often may look at them all."""
        if record.state in ("pending", "approved"):
            self._open.add(record.id)
        else:
            self._open.discard(record.id)
        known = self._of_action.setdefault((record.agent, record.action_digest), [])
        if record.id not in known:
            known.append(record.id)

    def _live(self) -> list[ApprovalRecord]:
        return [self.get(approval) for approval in self._open]

    def _on_change(self, entry: AnyEntry) -> None:
        if isinstance(entry, entries.Approval):
            self._index(self.get(entry.approval))
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()

    def get(self, approval: str) -> ApprovalRecord:
        found = self._records.store.get(ApprovalRecord, approval)
        if found is None:
            raise Unverifiable(Reason.NOT_FOUND, f'no approval "{visible(approval)}"')
        return found

    def all(self) -> list[ApprovalRecord]:
        return list(self._records.store.all(ApprovalRecord))

    @property
    def pending(self) -> int:
        """How many wait for a person."""
        return sum(one.state == "pending" for one in self._live())

    async def request(self, action: Action, dispatch: Dispatch, terms: Terms) -> ApprovalRecord:
        """The request for *action*: the one that is there already, or a new one.

        A denial holds for a day in whatever run, so that asking again does not wear people down.
        """
        async with self._records.deciding:
            known = self._same(dispatch)
            if known is not None:
                return known
            waiting = sum(one.state == "pending" and one.agent == dispatch.agent for one in self._live())
            if waiting >= MAX_PENDING:
                raise Unverifiable(Reason.OVERLOADED, f"{waiting} actions of {dispatch.agent} wait for people already")
            approval = new_id("apr")
            asked: dict[str, Any] = {
                **await self._kept(action, dispatch),
                "terms": terms.to_json(),
                "payload_sha256": action.payload_digest,
            }
            await self._records.change(
                entries.Approval(
                    "requested",
                    approval,
                    by=dispatch.agent,
                    request=asked,
                    action_digest=dispatch.action_digest,
                )
            )
            return self.get(approval)

    async def _kept(self, action: Action, dispatch: Dispatch) -> dict[str, Any]:
        """The request as its entry has it. Of one that is personal the bytes, and all that is made of them, lie
        beside the ledger, sealed."""
        body = action.payload.body
        if action.personal is None:
            return {**msgspec.to_builtins(dispatch), "body_sha256": await self._blobs.put(body)}
        key = action.personal.key
        sealed = await self._blobs.put(key.seal(wire.encode(dispatch, body), REQUEST))
        plain = msgspec.structs.replace(dispatch, headers=[], proof=None)
        return {**msgspec.to_builtins(plain), "body_sha256": sealed, "sealed_by": key.id}

    def _same(self, dispatch: Dispatch) -> ApprovalRecord | None:
        now = self._clock.wall_us()
        found: ApprovalRecord | None = None
        for approval in self._of_action.get((dispatch.agent, dispatch.action_digest), ()):
            one = self.get(approval)
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
        """The complete action as it was asked."""
        body = self._blobs.get(record.request["body_sha256"])
        if body is None:
            raise Unverifiable(Reason.APPROVAL_MISMATCH, "the stored bytes of this action are lost")
        if "sealed_by" in record.request:
            key = self._key_of(record)
            if key is None:
                raise Unverifiable(Reason.APPROVAL_CANCELLED, _ERASED)
            return wire.decode(key.unseal(body, REQUEST), Dispatch)
        statement = {key: value for key, value in record.request.items() if key not in _BESIDE}
        return msgspec.convert(statement, Dispatch), body

    def _key_of(self, record: ApprovalRecord) -> SubjectKey | None:
        return self._subjects.key_of(record.request["sealed_by"], record.agent)

    def text(self, record: ApprovalRecord) -> str:
        """The stored bytes as people read them; empty if they are lost or erased, and then nothing will run."""
        try:
            return self.stored(record)[1].decode("utf-8", "replace")
        except Unverifiable:
            return ""

    async def vote(self, approval: str, person: Person, decision: str, reason: str) -> ApprovalRecord:
        """Count one person's vote, and what follows from it."""
        if decision not in ("approve", "deny"):
            raise Unverifiable(Reason.MALFORMED_REQUEST, 'a vote is "approve" or "deny"')
        async with self._records.deciding:
            record = self.get(approval)
            self._require_may_vote(record, person)
            await self._records.change(
                entries.Approval(
                    "vote",
                    approval,
                    by=person.name,
                    decision=decision,
                    reason=reason[:MAX_REASON],
                    action_digest=record.action_digest,
                )
            )
            verdict = self._tally(self.get(approval))
            if verdict is not None:
                await self._records.change(entries.Approval(verdict, approval, by=person.name))
            return self.get(approval)

    def _require_may_vote(self, record: ApprovalRecord, person: Person) -> None:
        if record.state != "pending":
            raise _over(record)
        if record.expires_at_us <= self._clock.wall_us():
            raise Unverifiable(Reason.APPROVAL_EXPIRED, "nobody decided in time")
        roles = record.terms["quorum"]
        if not set(roles) & set(person.roles):
            raise Unverifiable(Reason.NOT_YOURS, f"{person.name} has none of the roles {', '.join(sorted(roles))}")
        if person.name == self._registry.agent(record.agent).agent.owner:
            raise Unverifiable(Reason.NOT_YOURS, f"{person.name} owns {record.agent} and cannot approve for it")
        if any(vote.by == person.name for vote in record.votes):
            raise Unverifiable(Reason.NOT_YOURS, f"{person.name} has voted already")

    def _tally(self, record: ApprovalRecord) -> str | None:
        denials = sum(vote.decision == "deny" for vote in record.votes)
        if denials >= int(record.terms["deny"]):
            return "denied"
        return "approved" if self._enough(record, record.terms["quorum"]) else None

    def _enough(self, record: ApprovalRecord, quorum: Mapping[str, int]) -> bool:
        """Whether as many people of each role approved; emptiness is no yes."""
        approvers = [vote.by for vote in record.votes if vote.decision == "approve"]
        people = {person.name: person.roles for person in self._records.store.all(Person)}
        return bool(quorum) and all(
            sum(role in people.get(name, ()) for name in approvers) >= count for role, count in quorum.items()
        )

    def require_approved(self, approval: str, dispatch: Dispatch, payload: str, terms: Terms | None) -> ApprovalRecord:
        """The approval that *dispatch* claims to have, if it covers exactly this action; it stays unspent.

        *payload* is the digest of the bytes that would run, *terms* what policy asks for now: the votes must
        satisfy those too. None: policy no longer asks for anybody.
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
            raise _over(record)
        if record.expires_at_us <= self._clock.wall_us():
            raise Unverifiable(Reason.APPROVAL_EXPIRED, "the approval was not used in time")
        if terms is not None and not self._enough(record, terms.quorum):
            raise Unverifiable(Reason.APPROVAL_MISMATCH, "policy asks for other people now than those who approved")
        return record

    async def consume(self, approval: str, dispatch: Dispatch, payload: str, terms: Callable[[], Terms | None]) -> None:
        """Spend the approval: of all who try, one returns. *terms* are asked for when nothing can change any more."""
        async with self._records.deciding:
            self.require_approved(approval, dispatch, payload, terms())
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
            async with self._records.deciding:
                if self.get(record.id).state in ("pending", "approved"):
                    await self._records.change(entries.Approval("cancelled", record.id, by="gateway", reason=why))

    def _over(self, record: ApprovalRecord) -> str:
        """Why what *record* asks for may not happen any more, whoever approves; empty if it may."""
        try:
            self._stops.require(self._registry.agent(record.agent).agent)
            if record.request["chain"]:
                self._delegations.open(record.request["chain"], record.agent)
        except Unverifiable as bad:
            return bad.detail
        erased = "sealed_by" in record.request and self._key_of(record) is None
        return _ERASED if erased else ""

    async def expire_due(self) -> None:
        """Called every second: what nobody decided, or nobody used, in time is over."""
        now = self._clock.wall_us()
        due = [record for record in self._live() if record.expires_at_us <= now]
        for record in due:
            async with self._records.deciding:
                if self.get(record.id).state in ("pending", "approved"):
                    await self._records.change(entries.Approval("expired", record.id))


_BESIDE: Final = ("body_sha256", "terms", "payload_sha256")
"""What a stored request has beside the statement of who asked."""
_ERASED: Final = "what it was about was erased"


def denial(record: ApprovalRecord) -> str:
    """Who said no to what, why, and how long that holds."""
    until = datetime.datetime.fromtimestamp((record.requested_at_us + DENIAL_HOLDS_US) / 1e6, datetime.UTC)
    votes = [vote for vote in record.votes if vote.decision == "deny"]
    by = ", ".join(vote.by for vote in votes) or "somebody"
    because = "; ".join(vote.reason for vote in votes if vote.reason)
    return (
        f"{by} denied {record.id}{f': {because}' if because else ''}; "
        f"the same action is refused until {until:%Y-%m-%d %H:%M} UTC"
    )


def _over(record: ApprovalRecord) -> Unverifiable:
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
