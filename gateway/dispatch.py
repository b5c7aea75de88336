"""Step 8, route: the gateway decides a permitted action again, picks a node, and sends it there with a ticket.

A sidecar's permit is believed only as far as its signature goes: which agent says so. What the bytes are, what
policy says of them now, whether the agent was stopped and whether an approval is unspent is found out here.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import msgspec

from edge.client import Broken, Client, Reply, Unreachable
from edge.clock import SystemClock, new_id
from edge.http import Incoming, Response, StreamResponse, problem, relay
from gateway.approvals.desk import Desk
from gateway.bundles import Bundles
from gateway.callers import Sender
from gateway.records import Records
from gateway.registry import Registry
from gateway.router.choice import ANOTHER_VERSION, Choice, choose
from gateway.router.nodes import Nodes
from gateway.router.placement import Placement
from gateway.state import NodeRecord
from trust import mcp, report, wire
from trust.action import Action
from trust.canonical import JsonObject, digest_of
from trust.facts import Agent, cedar_time
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
from trust.reasons import Reason, Unverifiable
from trust.standing.score import NEWCOMER, Standing
from trust.verdict import Hold, Permit, Refusal, decide
from trust.wire import Dispatch, Execute

MAX_IN_FLIGHT: Final = 64
"""Of one agent, streams included."""
MAX_ATTEMPTS: Final = 3
"""Nodes tried for one action; only when no connection was made, so nothing can have happened."""
TICKET_LIFE_S: Final = 30
REMEMBER_S: Final = 120.0
"""Longer than any signature is valid, clock skew on both sides included: an action id is dispatched once."""


class Asked(msgspec.Struct, frozen=True):
    """One dispatch whose statement agrees with its bytes."""

    dispatch: Dispatch
    action: Action
    agent: Agent
    bundle: Compiled
    sender: Sender


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
        self._bundles = bundles
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
        for _, line in self._records.ledger.lines():
            at = line.stamp.wall_us / 1_000_000
            if isinstance(line.entry, entries.Dispatch) and at > now - REMEMBER_S:
                self._seen.spend(line.entry.action_id, at + REMEMBER_S, at)

    async def dispatch(self, incoming: Incoming, sender: Sender) -> StreamResponse:
        """Route the action in *incoming*; the node's answer, streamed."""
        asked = self.read(incoming, sender)
        _require_key_for_high_risk(asked)
        with self._in_flight(sender.workload.name):
            return await self._decide_and_route(incoming, asked)

    @contextmanager
    def _in_flight(self, agent: str) -> Iterator[None]:
        """One agent may not take the connections of all."""
        if self._busy[agent] >= MAX_IN_FLIGHT:
            raise Unverifiable(Reason.OVERLOADED, f"{self._busy[agent]} actions of {agent} are in flight")
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

    def read(self, incoming: Incoming, sender: Sender) -> Asked:
        """The dispatch in *incoming*, or :class:`Unverifiable`."""
        dispatch, body = wire.decode(incoming.body, Dispatch)
        if sender.workload.kind != "agent" or dispatch.agent != sender.workload.name:
            raise Unverifiable(Reason.NOT_YOURS, "an agent dispatches only for itself")
        bundle = self._bundles.compiled
        if bundle is None:
            raise Unverifiable(Reason.NO_BUNDLE, "no bundle is active")
        action, message = wire.action_of(dispatch, body)
        agent = self._registry.agent(sender.workload.name).agent
        tool = bundle.inventory.tool(action.server, action.tool)
        _require_own_headers(action, message, tool)
        if dispatch.authority:
            raise Unverifiable(Reason.PERMIT_INVALID, "delegated authority is not accepted yet")
        if not dispatch.intent.startswith(f"{sender.workload.trust_domain}/sidecar/{sender.workload.name}#"):
            raise Unverifiable(Reason.PERMIT_INVALID, "the intent is not in the sender's own ledger")
        if dispatch.principal != agent.owner:
            raise Unverifiable(Reason.PERMIT_INVALID, "the principal is not this agent's")
        if action.digest(agent.name, agent.owner, dispatch.authority, tool.digest) != dispatch.action_digest:
            raise Unverifiable(Reason.PERMIT_INVALID, "the action digest is not that of these bytes")
        return Asked(dispatch, action, agent, bundle, sender)

    def judge(self, asked: Asked, *, approved: bool) -> Permit | Hold | Refusal:
        """Policy, now, with the gateway's own word on trust."""
        killed = self._registry.killed(asked.agent.name)
        if killed is not None:
            return Refusal(8, Reason.KILLED, killed.reason)
        try:
            finding = self._find(asked, approved)
        except Unverifiable as bad:
            return Refusal.of(8, bad)
        verdict = decide(asked.action, finding, asked.dispatch.approval)
        if isinstance(verdict, Refusal):
            return Refusal(8, verdict.reason, verdict.detail, verdict.policies, verdict.errors)
        return verdict

    def _find(self, asked: Asked, approved: bool) -> Finding:
        action, standing = asked.action, Standing(NEWCOMER)
        context = asked.dispatch.facts.get("context")
        if not isinstance(context, dict):
            raise Unverifiable(Reason.PERMIT_INVALID, "the statement carries no facts")
        trust: JsonObject = {"score": standing.score, "tier": standing.tier, "ring": standing.ring}
        tool = asked.bundle.inventory.tool(action.server, action.tool)
        run = context.get("run")
        if not isinstance(run, dict) or run.get("id") != action.run:
            raise Unverifiable(Reason.PERMIT_INVALID, "the facts are those of another run")
        owner: JsonObject = {"__entity": {"type": "Human", "id": asked.agent.owner}}
        own: JsonObject = {
            "trust": trust,
            "risk": tool.manifest.risk,
            "authority": {"principal": owner, "depth": len(asked.dispatch.authority), "scopes": []},
            "now": cedar_time(int(self._clock.now())),
        }
        return judge.evaluate_context(
            asked.bundle, action.server, tool, action.arguments, asked.agent, {**context, **own}, approved
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
        """What was awaited may have taken long: a kill or another bundle since then ends this attempt."""
        killed = self._registry.killed(asked.agent.name)
        if killed is not None:
            raise Unverifiable(Reason.KILLED, killed.reason)
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
            return self._registry.offers_exactly(node.name, judged, action.tool)

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
        )
        trace = sent.choice.trace()
        await self._records.note(self._entry(asked, node, entitled.id, trace))
        self._require_unchanged(asked)
        body = wire.encode(
            Execute(action.server, dispatch.method, dispatch.headers, credentials),
            action.payload.body,
        )
        headers = {"Content-Type": wire.EXECUTE_TYPE, wire.TICKET_HEADER: ticket.seal(entitled, self._key)}
        with self._nodes.working(node.name):
            try:
                async with self._client.send("POST", f"{node.url}/v1/execute", headers, body) as reply:
                    response = await _pass_on(incoming, reply, node, lambda: self._registry.killed(dispatch.agent))
            except Broken as bad:
                self._nodes.failed(node.name, self._clock.mono())
                raise Unverifiable(Reason.OUTCOME_UNKNOWN, f"the connection to {node.name} broke: {bad}") from None
        self._nodes.succeeded(node.name)
        return response

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
            await self._records.note(
                report.refusal(no, asked.action.decision_id, deed=deed, approval=asked.dispatch.approval)
            )
        except LedgerUnavailable as fault:
            no = no.unrecorded(fault)
        return problem(no, asked.action.decision_id)


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


async def _pass_on(incoming: Incoming, reply: Reply, node: NodeRecord, stopped: Callable[[], object]) -> StreamResponse:
    """The node's answer to the sidecar, chunk by chunk when it is a stream, until it ends or is *stopped*."""
    headers = {
        name: value
        for name in ("Content-Type", "mcp-session-id", wire.UPSTREAM_STATUS_HEADER)
        if (value := reply.header(name))
    }
    headers[wire.NODE_HEADER] = node.name
    if not reply.header("Content-Type").startswith("text/event-stream"):
        return Response(status=reply.status, headers=headers, body=await reply.read())
    response, _ = await relay(incoming, reply.chunks(), reply.status, headers, stopped)
    return response
