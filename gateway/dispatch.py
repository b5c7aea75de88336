"""Step 8, route: the gateway decides a permitted action again, picks a node, and sends it there with a ticket.

A sidecar's permit is believed only as far as its signature goes: which agent says so. What the bytes are, what
policy says of them now, whether the agent was stopped and whether an approval is unspent is found out here.
"""

from __future__ import annotations

import logging
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Literal

import msgspec

from edge.client import Broken, Client, Reply, Unreachable
from edge.clock import SystemClock, new_id
from edge.http import Incoming, Response, StreamResponse, problem, relay
from edge.shared_nonces import SharedNonces
from gateway.approvals.desk import Desk
from gateway.bundles import Bundles
from gateway.callers import Sender
from gateway.delegations import Delegations
from gateway.proofs import Proofs
from gateway.records import Records
from gateway.registry import Registry
from gateway.router.choice import ANOTHER_VERSION, Choice, choose
from gateway.router.nodes import Nodes
from gateway.router.placement import Placement
from gateway.servers import Servers
from gateway.sessions import Sessions
from gateway.standings import Standings
from gateway.state import NodeRecord
from gateway.stops import Stops, circuit_open
from trust import mcp, report, wire
from trust.action import Action
from trust.canonical import JsonObject, digest_of, jcs
from trust.facts import Agent, Mandate, cedar_time, trust_context
from trust.identity import ticket
from trust.identity.keys import SecretKey
from trust.identity.replay import Nonces
from trust.ledger import entries
from trust.ledger.writer import LedgerUnavailable
from trust.policy import judge
from trust.policy.bundle import Compiled
from trust.policy.engine import Finding
from trust.policy.inventory import RISK_HIGH, Tool
from trust.policy.terms import Terms
from trust.reasons import Reason, Unverifiable, visible
from trust.standing.breaker import Breaker
from trust.standing.rules import COUNTED
from trust.standing.score import Standing
from trust.verdict import Hold, Permit, Refusal, decide
from trust.wire import Dispatch, Execute

MAX_IN_FLIGHT: Final = (64, 64, 48, 32, 8)
"""Of one agent, by its ring, streams included."""
MAX_ATTEMPTS: Final = 3
"""Nodes tried for one action; only when no connection was made, so nothing can have happened."""
TICKET_LIFE_S: Final = 30
MAX_TAIL_BYTES: Final = 256 << 10
"""Of a stream, kept to read its last event."""
_log = logging.getLogger("licet.gateway")
REMEMBER_S: Final = 120.0
"""Longer than any signature is valid, clock skew on both sides included: an action id is dispatched once."""


class Asked(msgspec.Struct, frozen=True):
    """One dispatch whose statement agrees with its bytes. ``standing`` and ``delegators`` are those of the moment."""

    dispatch: Dispatch
    action: Action
    agent: Agent
    bundle: Compiled
    sender: Sender
    mandate: Mandate
    delegators: tuple[Agent, ...]
    standing: Standing


class Sent(msgspec.Struct, frozen=True):
    """Where an action went."""

    node: NodeRecord
    choice: Choice


class Dispatcher:
    """One per gateway."""

    def __init__(
        self,
        records: Records,
        registry: Registry,
        servers: Servers,
        stops: Stops,
        standings: Standings,
        delegations: Delegations,
        breaker: Breaker,
        sessions: Sessions,
        shared: SharedNonces | None,
        bundles: Bundles,
        desk: Desk,
        nodes: Nodes,
        client: Client,
        key: SecretKey,
        clock: SystemClock,
        credentials: dict[str, dict[str, str]],
    ) -> None:
        self._records = records
        self._registry = registry
        self._servers = servers
        self._stops = stops
        self._standings = standings
        self._delegations = delegations
        self._breaker = breaker
        self._sessions = sessions
        self._bundles = bundles
        self._desk = desk
        self._nodes = nodes
        self._client = client
        self._key = key
        self._clock = clock
        self._credentials = credentials
        self._placement = Placement()
        self._seen = Nonces()
        self._proofs = Proofs(registry, clock, shared)
        self._busy: Counter[str] = Counter()
        self._remember_recent()

    def _remember_recent(self) -> None:
        """After a restart: what was dispatched while signatures of before the restart are still valid."""
        now = self._clock.now()
        for _, line in self._records.ledger.lines():
            at = line.stamp.wall_us / 1_000_000
            if isinstance(line.entry, entries.Dispatch) and at > now - REMEMBER_S:
                self._seen.spend(line.entry.action_id, at + REMEMBER_S, at)

    async def dispatch(self, incoming: Incoming, sender: Sender) -> StreamResponse:
        """Route the action in *incoming*; the node's answer, streamed."""
        asked = await self.read(incoming, sender)
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
        verdict = self.judge(asked, approved=asked.dispatch.approval is not None)
        if isinstance(verdict, Hold):
            verdict = Refusal(8, Reason.PERMIT_INVALID, "a person must decide, and no approval was given")
        if isinstance(verdict, Refusal):
            return await self.refuse(asked, verdict)
        try:
            return await self._route(incoming, asked, verdict)
        except Unverifiable as bad:
            return await self.refuse(asked, Refusal.of(8, bad))

    async def read(self, incoming: Incoming, sender: Sender) -> Asked:
        """The dispatch in *incoming*, or :class:`Unverifiable`. What an agent that is known asked in vain counts."""
        dispatch, body = wire.decode(incoming.body, Dispatch)
        try:
            return await self._believed(dispatch, body, sender)
        except Unverifiable as bad:
            await self._in_vain(dispatch, sender, bad)
            raise

    async def _in_vain(self, dispatch: Dispatch, sender: Sender, bad: Unverifiable) -> None:
        """Only against who signed this itself: what its sidecar says of a guest proves nothing."""
        bundle = self._bundles.compiled
        if sender.workload.kind != "agent" or sender.workload.name != dispatch.agent or bundle is None:
            return
        if bad.reason in COUNTED:
            index = self._records.ledger.size
            refused = entries.Refusals(str(bad.reason), visible(dispatch.server, 64), 1, COUNTED[bad.reason] or "minor")
            origin = self._records.ledger.origin
            await self._standings.refused(entries.Reported(dispatch.agent, origin, index, index, [refused]))

    async def _believed(self, dispatch: Dispatch, body: bytes, sender: Sender) -> Asked:
        record = self._registry.require_speaks_for(sender.workload, dispatch.agent)
        bundle = self._bundles.compiled
        if bundle is None:
            raise Unverifiable(Reason.NO_BUNDLE, "no bundle is active")
        action, message = wire.action_of(dispatch, body)
        agent = record.agent
        if agent.name != sender.workload.name:
            await self._proofs.require(dispatch, action, sender.workload.name, self._desk.proof_of(dispatch))
        tool = bundle.inventory.tool(action.server, action.tool)
        _require_own_headers(action, message, tool)
        mandate, delegators, standing = self._mandate(dispatch, agent, action, tool)
        if not dispatch.intent.startswith(f"{sender.workload.trust_domain}/sidecar/{sender.workload.name}#"):
            raise Unverifiable(Reason.PERMIT_INVALID, "the intent is not in the sender's own ledger")
        if dispatch.principal != mandate.principal:
            raise Unverifiable(Reason.PERMIT_INVALID, "the principal is not the one for whom this agent acts")
        if action.digest(agent.name, mandate.principal, mandate.tokens, tool.digest) != dispatch.action_digest:
            raise Unverifiable(Reason.PERMIT_INVALID, "the action digest is not that of these bytes")
        return Asked(dispatch, action, agent, bundle, sender, mandate, delegators, standing)

    def _mandate(
        self, dispatch: Dispatch, agent: Agent, action: Action, tool: Tool
    ) -> tuple[Mandate, tuple[Agent, ...], Standing]:
        """For whom the agent acts, through whom, and how far all of them together are trusted."""
        delegated = self._delegations.open(dispatch.chain, agent.name) if dispatch.chain else None
        if dispatch.authority != (delegated.mandate.tokens if delegated else ()):
            raise Unverifiable(Reason.PERMIT_INVALID, "the statement names another delegation chain than it carries")
        if delegated is None:
            return Mandate(agent.owner), (), self._standings.standing(agent.name)
        if tool.manifest.category != "protocol":
            delegated.authority.require(action.name, action.arguments)
        return delegated.mandate, delegated.delegators, delegated.standing

    def judge(self, asked: Asked, *, approved: bool) -> Permit | Hold | Refusal:
        """Policy, now, with the gateway's own word on trust: for whoever asks, and for everybody who delegated."""
        try:
            self._require_believed(asked)
            finding = judge.together([self._find(asked, agent, approved) for agent in (asked.agent, *asked.delegators)])
        except Unverifiable as bad:
            return Refusal.of(8, bad)
        verdict = decide(asked.action, finding, asked.dispatch.approval)
        if isinstance(verdict, Refusal):
            return Refusal(8, verdict.reason, verdict.detail, verdict.policies, verdict.errors)
        return verdict

    def _require_believed(self, asked: Asked) -> None:
        """Nobody of the chain was stopped, and nothing of it revoked, in the meantime."""
        for agent in (asked.agent, *asked.delegators):
            self._stops.require(agent)
        if asked.dispatch.chain:
            self._delegations.open(asked.dispatch.chain, asked.agent.name)

    def _find(self, asked: Asked, agent: Agent, approved: bool) -> Finding:
        action = asked.action
        context = asked.dispatch.facts.get("context")
        if not isinstance(context, dict):
            raise Unverifiable(Reason.PERMIT_INVALID, "the statement carries no facts")
        tool = asked.bundle.inventory.tool(action.server, action.tool)
        run = context.get("run")
        if not isinstance(run, dict) or run.get("id") != action.run:
            raise Unverifiable(Reason.PERMIT_INVALID, "the facts are those of another run")
        own: JsonObject = {
            "trust": trust_context(asked.standing),
            "risk": tool.manifest.risk,
            "authority": asked.mandate.context,
            "now": cedar_time(int(self._clock.now())),
        }
        return judge.evaluate_context(
            asked.bundle, action.server, tool, action.arguments, agent, {**context, **own}, approved
        )

    async def _route(self, incoming: Incoming, asked: Asked, permit: Permit) -> StreamResponse:
        """Try eligible nodes until one was reached. An approval is spent just before the first attempt."""
        if permit.payload_digest != asked.action.payload_digest:
            raise Unverifiable(Reason.PERMIT_INVALID, "the permit is for other bytes")
        approval = asked.dispatch.approval
        if approval is not None:
            payload = asked.action.payload_digest
            self._desk.require_approved(approval, asked.dispatch, payload, self._present_terms(asked))
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
            self._require_unchanged(asked)
            return self._present_terms(asked)

        await self._desk.consume(approval, asked.dispatch, asked.action.payload_digest, terms)

    def _require_unchanged(self, asked: Asked) -> None:
        """What was awaited may have taken long: a kill, a revocation or another bundle since then ends this attempt."""
        self._require_believed(asked)
        if asked.bundle is not self._bundles.compiled:
            raise Unverifiable(Reason.PERMIT_INVALID, "policy was changed while this waited; ask again")

    def _present_terms(self, asked: Asked) -> Terms | None:
        """Whom policy would ask today, if anybody."""
        match self.judge(asked, approved=False):
            case Hold(terms=terms):
                return terms
        return None

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
        await self._records.note(self._entry(asked, node, entitled.id, trace))
        self._require_unchanged(asked)
        body = wire.encode(
            Execute(action.server, dispatch.method, dispatch.headers, credentials),
            action.payload.body,
        )
        headers = {"Content-Type": wire.EXECUTE_TYPE, wire.TICKET_HEADER: self._sealed(entitled, asked)}
        started = self._clock.mono_ns()
        with self._nodes.working(node.name):
            try:
                async with self._client.send("POST", f"{node.url}/v1/execute", headers, body) as reply:
                    answer = await _pass_on(incoming, reply, node, lambda: self._stopped(asked))
            except Broken as bad:
                self._nodes.failed(node.name, self._clock.mono())
                await self._ended(asked, node, started, "unknown")
                raise Unverifiable(Reason.OUTCOME_UNKNOWN, f"the connection to {node.name} broke: {bad}") from None
        self._nodes.succeeded(node.name)
        await self._ended(asked, node, started, answer.how, answer.status, answer.size)
        return answer.response

    def _sealed(self, entitled: ticket.Ticket, asked: Asked) -> str:
        """Within the node's session if it has one; what can do great harm is signed."""
        action = asked.action
        risk = asked.bundle.inventory.tool(action.server, action.tool).manifest.risk
        subject = f"wimse://{asked.sender.workload.trust_domain}/node/{entitled.node}"
        session = self._sessions.newest_of(subject, self._clock.now()) if risk < RISK_HIGH else None
        if session is None:
            return ticket.seal(entitled, self._key)
        return ticket.seal_within(entitled, session.terms.session, session.back)

    def _stopped(self, asked: Asked) -> bool:
        """Whether a stream must be cut."""
        try:
            self._require_believed(asked)
        except Unverifiable:
            return True
        return False

    async def _ended(
        self, asked: Asked, node: NodeRecord, started: int, how: Ending, status: int = 0, size: int = 0
    ) -> None:
        """What the gateway saw of the end: recorded, counted for the agent, and for the circuit breakers."""
        action, agent = asked.action, asked.agent.name
        risk = asked.bundle.inventory.tool(action.server, action.tool).manifest.risk
        outcome = entries.Outcome(
            action_id=action.id,
            decision_id=action.decision_id,
            run=action.run,
            status=how,
            step=8,
            node=node.name,
            upstream_status=status,
            duration_us=(self._clock.mono_ns() - started) // 1000,
            response_bytes=size,
            agent=agent,
            risk=risk,
        )
        try:
            self._standings.ended(outcome)
            if how == "failed" or (how == "unknown" and not status):  # a stream that its reader left is no failure
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


def _require_own_headers(action: Action, message: mcp.Message, tool: Tool) -> None:
    """The headers that go to the server are those that its message makes; nothing rides along."""
    headers = dict(action.payload.headers)
    mcp.require_headers_agree(message, headers)
    if mcp.payload(message, action.payload.body, headers, tool) != action.payload:
        raise Unverifiable(Reason.PERMIT_INVALID, "the headers are not those of the message")


Ending = Literal["done", "tool_error", "refused", "failed", "unknown"]


class Passed(msgspec.Struct, frozen=True):
    """What was passed on to the sidecar, and how it ended; ``size`` in bytes, for what came whole."""

    response: StreamResponse
    status: int
    how: Ending
    size: int = 0


async def _pass_on(incoming: Incoming, reply: Reply, node: NodeRecord, stopped: Callable[[], object]) -> Passed:
    """The node's answer to the sidecar, chunk by chunk when it is a stream, until it ends or is *stopped*."""
    headers = {
        name: value
        for name in ("Content-Type", "mcp-session-id", wire.UPSTREAM_STATUS_HEADER)
        if (value := reply.header(name))
    }
    headers[wire.NODE_HEADER] = node.name
    if not reply.header("Content-Type").startswith("text/event-stream"):
        body = await reply.read()
        response = Response(status=reply.status, headers=headers, body=body)
        return Passed(response, reply.status, _ending(reply, body), len(body))
    tail = bytearray()
    streamed, complete = await relay(incoming, _watched(reply.chunks(), tail), reply.status, headers, stopped)
    return Passed(streamed, reply.status, _stream_ending(reply, bytes(tail)) if complete else "unknown")


async def _watched(chunks: AsyncIterator[bytes], tail: bytearray) -> AsyncIterator[bytes]:
    """*chunks* as they are; their end is kept in *tail*, to see how it ended."""
    async for chunk in chunks:
        tail += chunk
        del tail[:-MAX_TAIL_BYTES]
        yield chunk


def _stream_ending(reply: Reply, tail: bytes) -> Ending:
    """A stream is done if its last event is a response without an error; what cannot be read is no success."""
    try:
        last = jcs(mcp.final_response("text/event-stream", tail))
    except Unverifiable:
        return "tool_error"
    return _ending(reply, last)


def _ending(reply: Reply, body: bytes) -> Ending:
    """How the node says that it ended: only what its server answered, and answered without an error, is done."""
    upstream = reply.header(wire.UPSTREAM_STATUS_HEADER)
    if not upstream:
        return "failed" if reply.status >= 500 else "refused"
    if not upstream.isdecimal() or int(upstream) >= 400:
        return "failed"
    return "tool_error" if mcp.is_error(body) else "done"
