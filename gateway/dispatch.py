"""Step 8, route: the gateway decides a permitted action again, picks a node, and sends it there with a ticket.

Nothing goes that :mod:`gateway.statements` does not believe and permit in this very moment; an approval is spent just
before the first attempt, and an action goes out once.
"""

from __future__ import annotations

import logging
import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any, Final

import msgspec

from edge.client import Broken, Client, Unreachable
from edge.clock import SystemClock, new_id, new_span
from edge.http import Incoming, Response, StreamResponse, problem
from edge.stopping import Stopped, until
from edge.telemetry import Telemetry
from edge.tracing import UNSEEN, Attributes
from gateway.approvals.desk import Desk
from gateway.callers import Sender
from gateway.passing import Ending, Passed, is_stream, pass_on, passed
from gateway.records import Records
from gateway.router.choice import ANOTHER_VERSION, Choice, choose
from gateway.router.nodes import Nodes
from gateway.router.placement import Placement
from gateway.servers import Servers
from gateway.sessions import Sessions
from gateway.standings import Standings
from gateway.state import NodeRecord
from gateway.statements import Asked, Statements
from gateway.stops import Stops, circuit_open
from trust import report, wire
from trust.canonical import digest_of
from trust.identity import ticket
from trust.identity.keys import SecretKey
from trust.identity.replay import Nonces
from trust.ledger import entries
from trust.ledger.writer import LedgerUnavailable
from trust.personal import padded
from trust.policy.inventory import RISK_HIGH
from trust.policy.terms import Terms
from trust.reasons import Reason, Unverifiable
from trust.standing.breaker import Breaker
from trust.standing.rules import COUNTED
from trust.verdict import Hold, Permit, Refusal
from trust.wire import Execute

MAX_IN_FLIGHT: Final = (64, 64, 48, 32, 8)
"""Of one agent, by its ring, streams included."""
MAX_ATTEMPTS: Final = 3
"""Nodes tried for one action; only when no connection was made, so nothing can have happened."""
TICKET_LIFE_S: Final = 30
_log = logging.getLogger("licet.gateway")
REMEMBER_S: Final = 120.0
"""Longer than any signature is valid, clock skew on both sides included: an action id is dispatched once."""


class Sent(msgspec.Struct, frozen=True):
    """Where an action went."""

    node: NodeRecord
    choice: Choice


class Dispatcher:
    """One per gateway."""

    def __init__(
        self,
        records: Records,
        statements: Statements,
        servers: Servers,
        stops: Stops,
        standings: Standings,
        breaker: Breaker,
        sessions: Sessions,
        desk: Desk,
        nodes: Nodes,
        client: Client,
        key: SecretKey,
        clock: SystemClock,
        credentials: dict[str, dict[str, str]],
        telemetry: Telemetry,
    ) -> None:
        self._records = records
        self._telemetry = telemetry
        self._statements = statements
        self._servers = servers
        self._stops = stops
        self._standings = standings
        self._breaker = breaker
        self._sessions = sessions
        self._desk = desk
        self._nodes = nodes
        self._client = client
        self._key = key
        self._clock = clock
        self._credentials = credentials
        self._placement = Placement()
        self._seen = Nonces()
        self._busy: Counter[str] = Counter()
        self._remember_recent()

    def _remember_recent(self) -> None:
        """After a restart: what was dispatched while signatures of before the restart are still valid."""
        now = self._clock.now()
        for _, line in self._records.ledger.since(int((now - REMEMBER_S) * 1e6)):
            at = line.stamp.wall_us / 1_000_000
            if isinstance(line.entry, entries.Dispatch) and at > now - REMEMBER_S:
                self._seen.spend(line.entry.action_id, at + REMEMBER_S, at)

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
        if self._busy[agent] >= MAX_IN_FLIGHT[ring]:
            raise Unverifiable(Reason.OVERLOADED, f"{self._busy[agent]} actions of {agent} (ring {ring}) are in flight")
        self._busy[agent] += 1
        try:
            yield
        finally:
            self._busy[agent] -= 1
            if not self._busy[agent]:
                del self._busy[agent]

    async def _decide_and_route(self, incoming: Incoming, asked: Asked) -> StreamResponse:
        now = self._clock.now()
        self._seen.spend(asked.action.id, now + REMEMBER_S, now)
        verdict = self._statements.judge(asked, approved=asked.dispatch.approval is not None)
        asked.marks.at("8 decide again")
        if isinstance(verdict, Hold):
            verdict = Refusal(8, Reason.PERMIT_INVALID, "a person must decide, and no approval was given")
        if isinstance(verdict, Refusal):
            return await self.refuse(asked, verdict)
        try:
            return await self._route(incoming, asked, verdict)
        except Unverifiable as bad:
            return await self.refuse(asked, Refusal.of(8, bad))

    async def _route(self, incoming: Incoming, asked: Asked, permit: Permit) -> StreamResponse:
        """Try eligible nodes until one was reached. An approval is spent just before the first attempt."""
        if permit.payload_digest != asked.action.payload_digest:
            raise Unverifiable(Reason.PERMIT_INVALID, "the permit is for other bytes")
        approval = asked.dispatch.approval
        if approval is not None:
            payload = asked.action.payload_digest
            self._desk.require_approved(approval, asked.dispatch, payload, self._statements.present_terms(asked))
            # Whoever looks at it later asks the recorded policies who had to say yes: they must be those of now.
            if asked.dispatch.bundle != asked.bundle.digest:
                raise Unverifiable(Reason.PERMIT_INVALID, "the sidecar has not the policies of now yet; ask again")
        unreachable: set[str] = set()
        spent = False
        for _ in range(MAX_ATTEMPTS):
            sent = self._choose(asked, unreachable)
            if approval is not None and not spent:
                await self._consume(asked, approval)
                spent = True
            try:
                return await self._send(incoming, asked, sent)
            except Unreachable:
                self._nodes.failed(sent.node.name, self._clock.mono())
                unreachable.add(sent.node.name)
        raise Unverifiable(Reason.NODE_UNREACHABLE, f"tried {', '.join(sorted(unreachable))}")

    async def _consume(self, asked: Asked, approval: str) -> None:
        """Spend the approval under the policy of the very moment in which it is spent."""

        def terms() -> Terms | None:
            self._statements.require_unchanged(asked)
            return self._statements.present_terms(asked)

        await self._desk.consume(approval, asked.dispatch, asked.action.payload_digest, terms)

    def _choose(self, asked: Asked, unreachable: set[str]) -> Sent:
        action = asked.action
        judged = asked.bundle.inventory.servers[action.server]
        labels = tuple(judged.labels)

        def offered(node: NodeRecord) -> bool:
            return self._servers.offers_exactly(node.name, judged, action.tool)

        def permitted(node: NodeRecord) -> bool:
            return self._placement.permits(asked.bundle, asked.agent, action.server, action.tool, labels, node)

        candidates = [
            candidate
            for candidate in self._nodes.candidates(self._clock.mono())
            if candidate.node.name not in unreachable
        ]
        chance = secrets.randbelow(1000) / 1000
        choice = choose(candidates, action.server, asked.dispatch.place, offered, permitted, chance)
        if choice.chosen is None and choice.eliminated.get(ANOTHER_VERSION):
            todo = f"an operator looks at it with `licet servers diff {action.server}`"
            raise Unverifiable(Reason.TOOL_QUARANTINED, f"{action.name} is not offered as it was admitted: {todo}")
        if choice.chosen is None:
            counts = {**choice.eliminated, **({"unreachable": len(unreachable)} if unreachable else {})}
            why = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items())) or "no node is registered"
            raise Unverifiable(Reason.NO_ELIGIBLE_NODE, why)
        return Sent(choice.chosen, choice)

    async def _send(self, incoming: Incoming, asked: Asked, sent: Sent) -> StreamResponse:
        dispatch, action, node = asked.dispatch, asked.action, sent.node
        now = int(self._clock.now())
        credentials = self._credentials.get(action.server, {})
        entitled = ticket.Ticket(
            id=new_id("tkt"),
            action_id=action.id,
            node=node.name,
            epoch=node.epoch,
            server=action.server,
            tool=action.tool,
            agent=dispatch.agent,
            principal=dispatch.principal,
            run=action.run,
            payload=action.payload_digest,
            tool_digest=asked.bundle.inventory.tool(action.server, action.tool).digest,
            action_digest=dispatch.action_digest,
            approval=dispatch.approval,
            credentials=digest_of(dict(credentials)),
            issued_at=now,
            deadline=now + TICKET_LIFE_S,
            authority=asked.mandate.tokens,
        )
        trace = sent.choice.trace()
        asked.marks.at("8 choose a node")
        await self._records.note(self._entry(asked, node, entitled.id, trace))
        asked.marks.at("8 record")
        self._statements.require_unchanged(asked)
        body = wire.encode(
            Execute(
                action.server,
                dispatch.method,
                dispatch.headers,
                credentials,
                action.salt.hex(),
                asked.span.trace_id,
                asked.span.span_id,
            ),
            action.payload.body,
        )
        headers = {"Content-Type": wire.EXECUTE_TYPE, wire.TICKET_HEADER: self._sealed(entitled, asked)}
        started = self._clock.mono_ns()
        with self._nodes.working(node.name):
            try:
                answer = await self._exchange(incoming, asked, node, headers, body)
            except Broken as bad:
                self._nodes.failed(node.name, self._clock.mono())
                await self._ended(asked, node, started, "unknown")
                raise Unverifiable(Reason.OUTCOME_UNKNOWN, f"the connection to {node.name} broke: {bad}") from None
            except Stopped:
                await self._ended(asked, node, started, "unknown", by_us=True)
                why = f"it was ended while it ran ({self._statements.stopped(asked)}); whether it happened is not known"
                raise Unverifiable(Reason.OUTCOME_UNKNOWN, why) from None
        self._nodes.succeeded(node.name)
        asked.marks.at("9 execute")
        await self._ended(asked, node, started, answer.how, answer.status, answer.size)
        return answer.response

    async def _exchange(
        self, incoming: Incoming, asked: Asked, node: NodeRecord, headers: dict[str, str], body: bytes
    ) -> Passed:
        """The node's answer, passed on. Who is stopped hears nothing more: what waits is ended, streams are cut."""

        def stopped() -> str:
            return self._statements.stopped(asked)

        async with AsyncExitStack() as stack:
            async with until(stopped):
                sending = self._client.send("POST", f"{node.url}/v1/execute", headers, body)
                reply = await stack.enter_async_context(sending)
                whole = None if is_stream(reply) else await reply.read()
            if whole is None:
                return await pass_on(incoming, reply, node, stopped)
            return passed(reply, node, whole)

    def _sealed(self, entitled: ticket.Ticket, asked: Asked) -> str:
        """Within the node's session if it has one; what can do great harm is signed."""
        action = asked.action
        risk = asked.bundle.inventory.tool(action.server, action.tool).manifest.risk
        subject = f"wimse://{asked.sender.workload.trust_domain}/node/{entitled.node}"
        session = self._sessions.newest_of(subject, self._clock.now()) if risk < RISK_HIGH else None
        if session is None:
            return ticket.seal(entitled, self._key)
        return ticket.seal_within(entitled, session.terms.session, session.back)

    async def _ended(
        self,
        asked: Asked,
        node: NodeRecord,
        started: int,
        how: Ending,
        status: int = 0,
        size: int = 0,
        *,
        by_us: bool = False,
    ) -> None:
        """What the gateway saw of the end: recorded, counted for the agent, and for the circuit breakers, unless it was
        ended *by_us*: a stop of one agent must not stop its server for the others."""
        action, agent = asked.action, asked.agent.name
        took_ns, labels = self._clock.mono_ns() - started, (("status", how),)
        self._telemetry.tally.count("licet_dispatches", labels)
        self._telemetry.tally.took("licet_dispatch_seconds", took_ns / 1e9, labels)
        risk = asked.bundle.inventory.tool(action.server, action.tool).manifest.risk
        outcome = entries.Outcome(
            action_id=action.id,
            decision_id=action.decision_id,
            run=action.run,
            status=how,
            step=8,
            node=node.name,
            upstream_status=status,
            duration_us=took_ns // 1000,
            response_bytes=size if action.personal is None else padded(size),
            agent=agent,
            risk=risk,
        )
        try:
            await self._standings.ended(outcome)
            broke = how == "unknown" and not status and not by_us  # a stream that its reader left is no failure
            if how == "failed" or broke:
                trip = self._breaker.failed(agent, action.server, int(self._clock.now()))
                if trip is not None:
                    await self._stops.trip(trip)
            elif how == "done":
                self._breaker.succeeded(agent, action.server)
        except LedgerUnavailable as fault:
            _log.error("an outcome could not be recorded: %s", fault)

    def _entry(self, asked: Asked, node: NodeRecord, ticket_id: str, trace: dict[str, Any]) -> entries.Dispatch:
        dispatch, action = asked.dispatch, asked.action
        return entries.Dispatch(
            action_id=action.id,
            decision_id=action.decision_id,
            run=action.run,
            agent=dispatch.agent,
            principal=dispatch.principal,
            server=action.server,
            tool=action.tool,
            node=node.name,
            payload_sha256=action.payload_digest,
            action_digest=dispatch.action_digest,
            intent=dispatch.intent,
            ticket=ticket_id,
            approval=dispatch.approval,
            authn=asked.sender.authn,
            authority=list(asked.mandate.tokens),
            trace=trace,
        )

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
        return problem(no, asked.action.decision_id)

    async def _count(self, asked: Asked, no: Refusal, index: int) -> None:
        """A sidecar that asks for what policy refuses has not asked policy, or believes its agent more than it may."""
        if no.reason not in COUNTED:
            return
        severity = COUNTED[no.reason] or asked.bundle.engine.severity(no.policies)
        refused = entries.Refusals(str(no.reason), asked.action.server, 1, severity, list(no.policies))
        origin = self._records.ledger.origin
        await self._standings.refused(entries.Reported(asked.agent.name, origin, index, index, [refused]))


def _require_key_for_high_risk(asked: Asked) -> None:
    """A MAC proves nothing to others: what can do great harm carries a signature."""
    risk = asked.bundle.inventory.tool(asked.action.server, asked.action.tool).manifest.risk
    if risk >= RISK_HIGH and not asked.sender.strong:
        raise Unverifiable(Reason.UNAUTHENTICATED, f"an action of risk {risk} must be signed with the key")
