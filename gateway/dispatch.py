"""Step 8, route: the gateway decides a permitted action again, and sends it where :mod:`gateway.tries` says.

Nothing goes that :mod:`gateway.statements` does not believe and permit in this very moment; an approval is spent just
before the first attempt, when a node for it is known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import msgspec

from edge.clock import SystemClock, new_span
from edge.http import Incoming, Response, StreamResponse, problem
from edge.telemetry import Telemetry
from edge.tracing import UNSEEN, Attributes
from gateway.approvals.desk import Desk
from gateway.attempts import TurnedAway
from gateway.callers import Sender
from gateway.recall import Recall
from gateway.records import Records
from gateway.standings import Standings
from gateway.statements import Asked, Statements
from gateway.stops import Stops, circuit_open
from gateway.tries import Tries
from trust import recalled, report
from trust.ledger import entries
from trust.ledger.writer import LedgerUnavailable
from trust.policy.inventory import RISK_HIGH
from trust.reasons import NOTHING_HAPPENED, Reason, Unverifiable
from trust.standing.breaker import Breaker
from trust.standing.rules import COUNTED
from trust.verdict import Hold, Permit, Refusal

MAX_IN_FLIGHT: Final = (64, 64, 48, 32, 8)
"""Of one agent, by its ring, streams included."""

_BEHIND: Final = Refusal(8, Reason.STALE_FACTS, "its agent did more than this sidecar knew; it decides again")


class Dispatcher:
    """One per gateway."""

    def __init__(
        self,
        records: Records,
        statements: Statements,
        stops: Stops,
        standings: Standings,
        breaker: Breaker,
        desk: Desk,
        tries: Tries,
        clock: SystemClock,
        telemetry: Telemetry,
        recall: Recall,
    ) -> None:
        self._recall = recall
        self._records = records
        self._telemetry = telemetry
        self._statements = statements
        self._stops = stops
        self._standings = standings
        self._breaker = breaker
        self._desk = desk
        self._tries = tries
        self._clock = clock
        self.busy: Counter[str] = Counter()

    async def dispatch(self, incoming: Incoming, sender: Sender) -> StreamResponse:
        """Route the action in *incoming*; the node's answer, streamed."""
        marks = self._telemetry.tracer.marks()
        asked = await self._statements.read(incoming, sender)
        if marks is UNSEEN:
            return await self._dispatch(incoming, asked)
        marks.at("8 believe")
        asked = msgspec.structs.replace(asked, trace=new_span(asked.action.trace), marks=marks)
        try:
            return await self._dispatch(incoming, asked)
        finally:
            about: Attributes = {"licet.action_id": asked.action.id, "licet.tool": asked.action.name}
            self._telemetry.tracer.told("licet route", asked.trace, marks, about, failed=False)

    async def _dispatch(self, incoming: Incoming, asked: Asked) -> StreamResponse:
        _require_key_for_high_risk(asked)
        try:
            await self._require_closed(asked)
        except Unverifiable as bad:
            return await self.refuse(asked, Refusal.of(8, bad))
        with self._in_flight(asked.agent.name, asked.standing.ring):
            return await self._decide_and_route(incoming, asked)

    async def _require_closed(self, asked: Asked) -> None:
        """No circuit breaker is open, and this call opens none."""
        agent, action = asked.agent.name, asked.action
        self._stops.require_closed(agent, action.server)
        trip = self._breaker.called(agent, asked.dispatch.action_digest, int(self._clock.now()))
        if trip is not None:
            await self._stops.trip(trip)
            raise circuit_open(trip.target, trip.rule, trip.until_s - self._clock.now())

    @contextmanager
    def _in_flight(self, agent: str, ring: int) -> Iterator[None]:
        """One agent may not take the connections of all, and the less it is trusted the fewer."""
        if self.busy[agent] >= MAX_IN_FLIGHT[ring]:
            raise Unverifiable(Reason.OVERLOADED, f"{self.busy[agent]} actions of {agent} (ring {ring}) are in flight")
        self.busy[agent] += 1
        try:
            yield
        finally:
            self.busy[agent] -= 1
            if not self.busy[agent]:
                del self.busy[agent]

    async def _decide_and_route(self, incoming: Incoming, asked: Asked) -> StreamResponse:
        asked, counted = await self._recall.count(asked, self.busy[asked.agent.name])
        verdict = self._statements.judge(asked, approved=asked.dispatch.approval is not None)
        asked.marks.at("8 decide again")
        if not isinstance(verdict, Permit):
            await self._recall.uncount(counted)
            if asked.recalled is not None:
                return await self.refuse(asked, _BEHIND)
            if isinstance(verdict, Hold):
                verdict = Refusal(8, Reason.PERMIT_INVALID, "a person must decide, and no approval was given")
            return await self.refuse(asked, verdict)
        try:
            return await self._route(incoming, asked, verdict)
        except Unverifiable as bad:
            return await self.refuse(asked, Refusal.of(8, bad))

    async def _route(self, incoming: Incoming, asked: Asked, permit: Permit) -> StreamResponse:
        """To a node that is eligible. An approval is spent when it is known that there is one."""
        if permit.payload_digest != asked.action.payload_digest:
            raise Unverifiable(Reason.PERMIT_INVALID, "the permit is for other bytes")
        approval = asked.dispatch.approval
        if approval is not None:
            payload = asked.action.payload_digest
            self._desk.require_approved(approval, asked.dispatch, payload, self._statements.present_hold(asked))
            # Whoever looks at it later asks the recorded policies who had to say yes: they must be those of now.
            if asked.dispatch.bundle != asked.bundle.digest:
                raise Unverifiable(Reason.PERMIT_INVALID, "the sidecar has not the policies of now yet; ask again")
        first = self._tries.choose(asked)
        try:
            await self._recall.claim(asked)
            if approval is not None:
                await self._consume(asked, approval)
            return await self._tries.send(incoming, asked, first)
        except TurnedAway as no:
            await self._recall.release(asked)
            return no.answer
        except Unverifiable as bad:
            if bad.reason in NOTHING_HAPPENED:
                await self._recall.release(asked)
            raise

    async def _consume(self, asked: Asked, approval: str) -> None:
        """Spend the approval under the policy of the very moment in which it is spent."""

        def asks() -> Hold | None:
            self._statements.require_unchanged(asked)
            return self._statements.present_hold(asked)

        await self._desk.consume(approval, asked.dispatch, asked.action.payload_digest, asks)

    async def refuse(self, asked: Asked, no: Refusal) -> Response:
        """Record, then answer."""
        deed = report.deed(
            asked.action,
            agent=asked.dispatch.agent,
            principal=asked.dispatch.principal,
            authn=asked.sender.authn,
            authority=asked.dispatch.authority,
            action_digest=asked.dispatch.action_digest,
            valid=no.reason is not Reason.ARGUMENTS_INVALID,
        )
        try:
            stamp = await self._records.note(
                report.refusal(no, asked.action.decision_id, deed=deed, approval=asked.dispatch.approval)
            )
            await self._count(asked, no, stamp.seq)
        except LedgerUnavailable as fault:
            no = no.unrecorded(fault)
        more = {recalled.MEMBER: asked.recalled} if no is _BEHIND and asked.recalled is not None else None
        return problem(no, asked.action.decision_id, more)

    async def _count(self, asked: Asked, no: Refusal, index: int) -> None:
        """A sidecar that asks for what policy refuses has not asked policy, or believes its agent more than it may."""
        if no.reason not in COUNTED:
            return
        await self._recall.denied(asked.agent.name, 1)
        severity = COUNTED[no.reason] or asked.bundle.engine.severity(no.policies)
        refused = entries.Refusals(str(no.reason), asked.action.server, 1, severity, list(no.policies))
        origin = self._records.ledger.origin
        await self._standings.refused(entries.Reported(asked.agent.name, origin, index, index, [refused]))


def _require_key_for_high_risk(asked: Asked) -> None:
    """A MAC proves nothing to others: what can do great harm carries a signature."""
    risk = asked.bundle.inventory.tool(asked.action.server, asked.action.tool).manifest.risk
    if risk >= RISK_HIGH and not asked.sender.strong:
        raise Unverifiable(Reason.UNAUTHENTICATED, f"an action of risk {risk} must be signed with the key")
