"""How people decide on requests: they vote, change arguments, take back what they gave, and name deputies."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from edge.clock import SystemClock
from gateway.approvals import presented, rules
from gateway.approvals.desk import Desk, over
from gateway.bundles import Bundles
from gateway.passkeys import Passkeys
from gateway.records import Records
from gateway.registry import Registry
from gateway.state import ApprovalRecord, Deputy, Person
from gateway.statements import Edited, Statements
from trust.canonical import JsonObject
from trust.ledger import entries
from trust.ledger.entries import ONCE, Assertion, Scope
from trust.policy.inventory import RISK_CRITICAL
from trust.reasons import Reason, Unverifiable, visible

MAX_REASON: Final = 500
MAX_DEPUTY_DAYS: Final = 366


class Ballot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one person says of one request. ``presented``: the digest of what they were shown; ``seat``: for whom a
    deputy votes; ``tell``: whether the agent hears the reason; ``block``: a no to whatever the same policies ask for in
    the rest of the run; ``signed``: a yes as a passkey signed it, where the request asks for that."""

    decision: str
    presented: str
    reason: str = ""
    seat: str = ""
    tell: bool = True
    block: bool = False
    scope: Scope = ONCE
    signed: Assertion | None = None


class Votes:
    """Of one gateway."""

    def __init__(
        self,
        records: Records,
        registry: Registry,
        desk: Desk,
        statements: Statements,
        bundles: Bundles,
        passkeys: Passkeys,
        clock: SystemClock,
    ) -> None:
        self._records = records
        self._registry = registry
        self._desk = desk
        self._statements = statements
        self._bundles = bundles
        self._passkeys = passkeys
        self._clock = clock

    async def vote(self, approval: str, person: Person, ballot: Ballot) -> ApprovalRecord:
        """Count one person's vote, and what follows from it."""
        if ballot.decision not in ("approve", "deny"):
            raise Unverifiable(Reason.MALFORMED_REQUEST, 'a vote is "approve" or "deny"')
        async with self._records.deciding:
            record = self._open(approval)
            approves = ballot.decision == "approve"
            signs = approves and bool(record.terms["step_up"])
            all_ = self._desk.electorate(record)
            seat = rules.seat(record, person.name, self._owner(record), all_, ballot.seat, signs=signs)
            _require_seen(record, ballot.presented)
            scope = rules.require_scope(ballot.scope, record, self._risk(record)) if approves else ONCE
            if signs:
                self._passkeys.require_vote(person, record, ballot.signed)
            await self._records.change(
                entries.Approval(
                    "vote",
                    approval,
                    by=person.name,
                    decision=ballot.decision,
                    reason=ballot.reason[:MAX_REASON],
                    action_digest=record.action_digest,
                    presented=record.presented,
                    seat=seat,
                    hushed=not ballot.tell,
                    scope=scope,
                    signed=ballot.signed if signs else None,
                    block=list(record.policies) if ballot.block and not approves else [],
                )
            )
            await self._conclude(self._desk.get(approval))
            return self._desk.get(approval)

    async def conclude_the_rest(self) -> None:
        """At the start: what follows from votes of before, if the end came before that was written. Who voted cannot
        vote again, so nobody else would ever write it."""
        await self._desk.cancel_stopped()
        async with self._records.deciding:
            for record in self._desk.waiting():
                if record.votes and record.expires_at_us > self._clock.wall_us():
                    await self._conclude(record)

    async def _conclude(self, record: ApprovalRecord) -> None:
        """Write what the votes come to, if they come to something; it is the last voter's doing."""
        verdict = rules.outcome(record, self._desk.electorate(record))
        last = record.votes[-1].by
        if verdict == "approved":
            scope = rules.narrowest(record.votes)
            await self._records.change(entries.Approval("approved", record.id, by=last, scope=scope))
        elif verdict == "denied":
            blocked = list(record.policies) if any(vote.blocks for vote in record.votes) else []
            await self._records.change(entries.Approval("denied", record.id, by=last, block=blocked))

    async def edit(
        self, approval: str, person: Person, arguments: JsonObject, seen: str, reason: str
    ) -> ApprovalRecord:
        """Put other *arguments* in the place of those that were asked for. Nobody has voted on them then."""
        record = self._editable(approval, person, seen)
        edited = await self._statements.edited(*self._desk.stored(record), arguments)
        if edited.dispatch.action_digest == record.action_digest:
            raise Unverifiable(Reason.MALFORMED_REQUEST, "these are the arguments that it has already")
        asked = await self._asked(record, edited)
        editors = tuple(sorted({*record.editors, person.name}))
        async with self._records.deciding:
            self._editable(approval, person, seen)
            await self._records.change(
                entries.Approval(
                    "edited",
                    approval,
                    by=person.name,
                    reason=reason[:MAX_REASON],
                    request=asked,
                    action_digest=edited.dispatch.action_digest,
                    presented=presented.digest(asked, editors),
                )
            )
            return self._desk.get(approval)

    def _editable(self, approval: str, person: Person, seen: str) -> ApprovalRecord:
        record = self._open(approval)
        self._require_may_decide(record, person)
        _require_seen(record, seen)
        return record

    def _require_may_decide(self, record: ApprovalRecord, person: Person) -> None:
        rules.require_may_decide(record, person.name, self._owner(record), self._desk.electorate(record))

    async def _asked(self, record: ApprovalRecord, edited: Edited) -> dict[str, Any]:
        """Where policy asks for nobody any more, those decide who were asked before: somebody is asked already."""
        kept = await self._desk.stored_as(edited.action, edited.dispatch)
        before = {name: record.request[name] for name in ("terms", "policies", "because")}
        now = self._desk.terms_of(edited.hold) if edited.hold is not None else before
        return {**kept, **now, "payload_sha256": edited.action.payload_digest}

    async def revoke(self, approval: str, person: Person, reason: str) -> ApprovalRecord:
        """Take back a yes: what is left of its scope, and the yes itself if it was not used."""
        async with self._records.deciding:
            record = self._desk.get(approval)
            self._require_may_decide(record, person)
            if record.state == "pending":
                raise Unverifiable(Reason.APPROVAL_MISMATCH, "nobody approved it yet: there is nothing to take back")
            if record.state != "approved" and self._desk.granted(record) is None:
                raise over(record)
            await self._records.change(
                entries.Approval("revoked", approval, by=person.name, reason=reason[:MAX_REASON])
            )
            if record.state == "approved":
                why = f"{person.name} took the approval back"
                await self._records.change(entries.Approval("cancelled", approval, by=person.name, reason=why))
            return self._desk.get(approval)

    async def viewed(self, approval: str, person: Person) -> ApprovalRecord:
        """Who looked at it first is known from then on; that they did, each time."""
        async with self._records.deciding:
            self._desk.get(approval)
            await self._records.change(entries.Approval("viewed", approval, by=person.name))
            return self._desk.get(approval)

    async def name_deputy(self, person: Person, deputy: str, since_us: int, until_us: int) -> Deputy:
        """Let *deputy* vote in the seat of *person* for a while."""
        async with self._records.deciding:
            known = self._records.store.get(Person, deputy)
            if deputy == person.name or known is None or known.namespace != person.namespace:
                raise Unverifiable(Reason.NOT_FOUND, f'"{visible(deputy)}" is nobody else who could vote')
            now = self._clock.wall_us()
            longest = MAX_DEPUTY_DAYS * 86_400 * 1_000_000
            if not since_us < until_us <= since_us + longest or until_us <= now:
                wrong = f"from a moment to a later one that is to come, at most {MAX_DEPUTY_DAYS} days"
                raise Unverifiable(Reason.MALFORMED_REQUEST, wrong)
            await self._records.change(entries.Deputy("named", person.name, deputy, person.name, since_us, until_us))
            return Deputy(person.name, deputy, since_us, until_us)

    async def end_deputy(self, person: Person, deputy: str) -> None:
        async with self._records.deciding:
            if self._records.store.get(Deputy, f"{person.name}|{deputy}") is None:
                raise Unverifiable(Reason.NOT_FOUND, f'"{visible(deputy)}" does not stand in for {person.name}')
            await self._records.change(entries.Deputy("ended", person.name, deputy, person.name))

    def _open(self, approval: str) -> ApprovalRecord:
        record = self._desk.get(approval)
        if record.state != "pending":
            raise over(record)
        if record.expires_at_us <= self._clock.wall_us():
            raise Unverifiable(Reason.APPROVAL_EXPIRED, "nobody decided in time")
        return record

    def _owner(self, record: ApprovalRecord) -> str:
        return self._registry.agent(record.agent).agent.owner

    def _risk(self, record: ApprovalRecord) -> int:
        """What policy says today; what is not known is of the highest."""
        bundle = self._bundles.for_agent(record.agent).compiled
        server = bundle.inventory.servers.get(record.request["server"]) if bundle is not None else None
        tool = server.tools.get(record.request["tool"]) if server is not None else None
        return tool.manifest.risk if tool is not None else RISK_CRITICAL


def _require_seen(record: ApprovalRecord, seen: str) -> None:
    """That what somebody decides on is what they were shown."""
    if seen != record.presented:
        raise Unverifiable(Reason.APPROVAL_MISMATCH, "it is not what you were shown any more; look at it again")
