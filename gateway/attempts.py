"""One attempt of an action: recorded, ticketed, sent to one node, and what came of it recorded and measured.

How often and where else something may be tried again is decided in :mod:`gateway.dispatch`; here each attempt is one
ticket, one ``dispatch`` entry before it leaves, and one ``outcome`` entry after it ended.
"""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import AsyncExitStack
from functools import partial
from typing import Final

import msgspec

from edge.client import Broken, Reply, Unreachable
from edge.clock import SystemClock, new_id
from edge.http import Incoming, StreamResponse
from edge.stopping import Stopped, until
from edge.telemetry import Telemetry
from gateway.passing import Ending, is_stream, pass_on, passed
from gateway.reaching import Reaching
from gateway.records import Records
from gateway.router.routing import Routed, Router
from gateway.router.trace import Trace
from gateway.sessions import Sessions
from gateway.standings import Standings
from gateway.state import NodeRecord
from gateway.statements import Asked, Statements
from gateway.stops import Stops
from trust import wire
from trust.canonical import digest_of, sha256_hex
from trust.identity import ticket
from trust.identity.keys import SecretKey
from trust.ledger import entries
from trust.ledger.entries import Used
from trust.ledger.writer import LedgerUnavailable
from trust.personal import padded
from trust.policy.inventory import RISK_HIGH
from trust.reasons import Reason, Unverifiable
from trust.standing.breaker import Breaker
from trust.wire import Execute

TICKET_LIFE_S: Final = 30
MAX_HEADER: Final = 4_000
"""A client gives up at 8,190 bytes of one header, and then nobody would know what happened."""
TURNED_AWAY: Final = frozenset(
    {
        Reason.NO_ELIGIBLE_NODE,
        Reason.OVERLOADED,
        Reason.LEDGER_UNAVAILABLE,
        Reason.STALE_FACTS,
        Reason.TICKET_INVALID,
    }
)
"""What a node says before it has started anything, and what another node may not say."""
_log = logging.getLogger("licet.gateway")


Credentials = dict[tuple[str, str], dict[str, str]]
"""Headers with secrets, by namespace and server."""


class TurnedAway(Exception):
    """The node took nothing on; ``answer`` says why, for whoever asked."""

    def __init__(self, answer: StreamResponse, why: str) -> None:
        super().__init__(why)
        self.answer = answer


class Attempt(msgspec.Struct, frozen=True):
    """The ``number``-th way to do an action: to the node that was chosen, under one ticket. ``started``: monotonic
    nanoseconds."""

    asked: Asked
    routed: Routed
    node: NodeRecord
    number: int
    ticket: str
    started: int


class Begun(msgspec.Struct, frozen=True):
    """An attempt whose node has begun to answer: ``whole`` is the complete body, None for a stream. ``open`` holds the
    connection; closing it gives that back."""

    attempt: Attempt
    reply: Reply
    whole: bytes | None
    open: AsyncExitStack
    took_us: int


class Attempts:
    """Of one gateway."""

    def __init__(
        self,
        records: Records,
        statements: Statements,
        stops: Stops,
        standings: Standings,
        breaker: Breaker,
        sessions: Sessions,
        router: Router,
        reaching: Reaching,
        key: SecretKey,
        clock: SystemClock,
        credentials: Credentials,
        telemetry: Telemetry,
    ) -> None:
        self._records = records
        self._statements = statements
        self._stops = stops
        self._standings = standings
        self._breaker = breaker
        self._sessions = sessions
        self._router = router
        self._reaching = reaching
        self._key = key
        self._clock = clock
        self._credentials = credentials
        self._telemetry = telemetry

    def prepare(self, asked: Asked, routed: Routed, number: int) -> Attempt:
        """From here on it counts as work of the node, so that whoever chooses next knows of it."""
        node = routed.node
        if node is None:
            raise LookupError("nothing is sent to a node that was not chosen")
        attempt = Attempt(asked, routed, node, number, new_id("tkt"), self._clock.mono_ns())
        self._router.measured.started(node.name, attempt.ticket, attempt.started // 1000)
        return attempt

    async def begin(self, attempt: Attempt) -> Begun:
        """Send it, and wait for the node to answer. Raises :class:`Unreachable` (nothing was sent),
        :class:`TurnedAway` (nothing was started), :class:`Broken` (nobody knows) or :class:`Unverifiable` (ended)."""
        asked = attempt.asked
        try:
            await self._records.note(self._entry(attempt))
        except BaseException:
            self._router.measured.abandoned(attempt.node.name, attempt.ticket)
            raise
        asked.marks.at("8 record")
        try:
            self._statements.require_unchanged(asked)
            body = wire.encode(self._execute(attempt), asked.action.payload.body)
            ticketed = self._sealed(self._ticket(attempt), asked)
        except Exception as bad:
            self._router.measured.abandoned(attempt.node.name, attempt.ticket)
            reason = str(bad.reason) if isinstance(bad, Unverifiable) else ""
            await self._ended(attempt, "refused", by_us=True, reason=reason, detail="it was not sent")
            raise
        return await self._send(attempt, {"Content-Type": wire.EXECUTE_TYPE, wire.TICKET_HEADER: ticketed}, body)

    async def _send(self, attempt: Attempt, headers: dict[str, str], body: bytes) -> Begun:
        measured, name, work = self._router.measured, attempt.node.name, attempt.asked.action.name
        stack = AsyncExitStack()
        try:
            async with until(partial(self._why_stopped, attempt)):
                sending = self._reaching.send(attempt.node, "/v1/execute", headers, body)
                reply = await stack.enter_async_context(sending)
                whole = None if is_stream(reply) else await reply.read()
            refusal = _turned_away(reply, whole)
        except Unreachable as bad:
            await stack.aclose()
            measured.failed(name, attempt.ticket, work, self._now_us())
            await self._ended(attempt, "refused", reason=str(Reason.NODE_UNREACHABLE), detail=str(bad))
            raise
        except Broken as bad:
            await stack.aclose()
            measured.failed(name, attempt.ticket, work, self._now_us())
            await self._ended(attempt, "unknown", detail=f"the connection to {name} broke: {bad}")
            raise
        except Stopped:
            await stack.aclose()
            measured.abandoned(name, attempt.ticket)
            why = self._why_stopped(attempt)
            await self._ended(attempt, "unknown", by_us=True, detail=why)
            told = f"it was ended while it ran ({why}); whether it happened is not known"
            raise Unverifiable(Reason.OUTCOME_UNKNOWN, told) from None
        except asyncio.CancelledError:
            await stack.aclose()
            measured.abandoned(name, attempt.ticket)
            await self._ended(attempt, "abandoned", by_us=True, detail="another attempt answered first")
            raise
        except Exception as bug:
            await stack.aclose()
            measured.abandoned(name, attempt.ticket)
            await self._ended(attempt, "unknown", by_us=True, detail=type(bug).__name__)
            raise
        if refusal and whole is not None:
            await stack.aclose()
            measured.abandoned(name, attempt.ticket)
            answer = passed(reply, attempt.node, whole, {})
            await self._ended(attempt, "refused", status=reply.status, detail=refusal)
            raise TurnedAway(answer.response, refusal)
        now_us = self._now_us()
        if reply.status >= 500:
            measured.failed(name, attempt.ticket, work, now_us)
        else:
            measured.succeeded(name, attempt.ticket, work, now_us, goes_on=whole is None)
        attempt.asked.marks.at("9 execute")
        return Begun(attempt, reply, whole, stack, now_us - attempt.started // 1000)

    async def finish(self, incoming: Incoming, begun: Begun) -> StreamResponse:
        """Pass the answer on, to its end."""
        attempt = begun.attempt
        trace = msgspec.structs.replace(attempt.routed.trace(attempt.number), latency_ms=round(begun.took_us / 1000, 3))
        told = {wire.TRACE_HEADER: _header(trace)}
        if begun.whole is not None:
            answer = passed(begun.reply, attempt.node, begun.whole, told)
            await begun.open.aclose()
        else:
            try:
                stopped = partial(self._why_stopped, attempt)
                answer = await pass_on(incoming, begun.reply, attempt.node, stopped, told)
            finally:
                self._router.measured.over(attempt.node.name)
                await begun.open.aclose()
        await self._ended(attempt, answer.how, status=answer.status, size=answer.size, used=used_in(begun.reply))
        return answer.response

    async def abandon(self, begun: Begun) -> None:
        """Another attempt answered first, at the same time."""
        if begun.whole is None:
            self._router.measured.over(begun.attempt.node.name)
        await begun.open.aclose()
        await self._ended(begun.attempt, "abandoned", by_us=True, detail="another attempt answered first")

    def _now_us(self) -> int:
        return self._clock.mono_ns() // 1000

    def _why_stopped(self, attempt: Attempt) -> str:
        """Why what runs must be ended, if it must."""
        if self._router.quarantined(attempt.node.name):
            return f"node {attempt.node.name} was quarantined"
        return self._statements.stopped(attempt.asked)

    def _secrets(self, attempt: Attempt) -> dict[str, str]:
        """What the upstream is to get: of the namespace of the node, so that nobody takes a server's name to get it."""
        return self._credentials.get((attempt.node.namespace, attempt.asked.action.server), {})

    def _execute(self, attempt: Attempt) -> Execute:
        asked = attempt.asked
        dispatch, action = asked.dispatch, asked.action
        return Execute(
            action.server,
            dispatch.method,
            dispatch.headers,
            self._secrets(attempt),
            action.salt.hex(),
            asked.span.trace_id,
            asked.span.span_id,
        )

    def _ticket(self, attempt: Attempt) -> ticket.Ticket:
        asked, node = attempt.asked, attempt.node
        dispatch, action = asked.dispatch, asked.action
        now = int(self._clock.now())
        return ticket.Ticket(
            id=attempt.ticket,
            action_id=action.id,
            attempt=attempt.number,
            node=node.name,
            key=node.key,
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
            credentials=digest_of(dict(self._secrets(attempt))),
            issued_at=now,
            deadline=now + TICKET_LIFE_S,
            authority=asked.mandate.tokens,
            holds=tuple(sorted(attempt.routed.holds)) if _bound(asked) else (),
            body=sha256_hex(action.payload.body) if _bound(asked) else "",
        )

    def _sealed(self, entitled: ticket.Ticket, asked: Asked) -> str:
        """Within the node's session if it has one; what can do great harm is signed, and what others check."""
        action = asked.action
        risk = asked.bundle.inventory.tool(action.server, action.tool).manifest.risk
        subject = f"wimse://{asked.sender.workload.trust_domain}/node/{entitled.node}"
        plain = risk < RISK_HIGH and not _bound(asked)
        session = self._sessions.newest_of(subject, self._clock.now()) if plain else None
        if session is None:
            return ticket.seal(entitled, self._key)
        return ticket.seal_within(entitled, session.terms.session, session.back)

    def _entry(self, attempt: Attempt) -> entries.Dispatch:
        asked = attempt.asked
        dispatch, action = asked.dispatch, asked.action
        return entries.Dispatch(
            action_id=action.id,
            decision_id=action.decision_id,
            run=action.run,
            agent=dispatch.agent,
            principal=dispatch.principal,
            server=action.server,
            tool=action.tool,
            node=attempt.node.name,
            payload_sha256=action.payload_digest,
            action_digest=dispatch.action_digest,
            intent=dispatch.intent,
            ticket=attempt.ticket,
            attempt=attempt.number,
            approval=dispatch.approval,
            authn=asked.sender.authn,
            authority=list(asked.mandate.tokens),
            trace=msgspec.to_builtins(attempt.routed.trace(attempt.number)),
            node_kind=attempt.node.kind,
            data_locality=attempt.routed.locality,
            request_bytes=len(action.payload.body) if action.personal is None else None,
            idempotency_key=dispatch.idempotency_key,
        )

    async def _ended(
        self,
        attempt: Attempt,
        how: Ending,
        *,
        status: int = 0,
        size: int = 0,
        reason: str = "",
        detail: str = "",
        used: Used | None = None,
        by_us: bool = False,
    ) -> None:
        """What the gateway saw of the end: recorded, counted for the agent, and for the circuit breakers, unless it was
        ended *by_us*: a stop of one agent must not stop its server for the others."""
        asked = attempt.asked
        action, agent = asked.action, asked.agent.name
        took_ns, labels = self._clock.mono_ns() - attempt.started, (("status", how),)
        self._telemetry.tally.count("licet_dispatches", labels)
        self._telemetry.tally.took("licet_dispatch_seconds", took_ns / 1e9, labels)
        outcome = entries.Outcome(
            action_id=action.id,
            decision_id=action.decision_id,
            run=action.run,
            status=how,
            step=8,
            reason=reason,
            detail=detail[:500] if action.personal is None else "",
            node=attempt.node.name,
            attempt=attempt.number,
            upstream_status=status,
            duration_us=took_ns // 1000,
            response_bytes=size if action.personal is None else padded(size),
            agent=agent,
            risk=asked.bundle.inventory.tool(action.server, action.tool).manifest.risk,
            at_home=asked.at_home,
            used=used,
        )
        try:
            await self._standings.ended(outcome)
            broke = how == "unknown" and not status and not by_us  # a stream that its reader left is no failure
            if how == "failed" or broke:
                trip = self._breaker.failed(agent, action.server, int(self._clock.now()), asked.namespace)
                if trip is not None:
                    await self._stops.trip(trip)
            elif how == "done":
                self._breaker.succeeded(agent, action.server)
        except LedgerUnavailable as fault:
            _log.error("an outcome could not be recorded: %s", fault)


def _bound(asked: Asked) -> bool:
    """Whether the server looks at the ticket itself."""
    return asked.bundle.inventory.servers[asked.action.server].bound


def _header(trace: Trace) -> str:
    """A trace without its snapshot; what would be too long for a header stands in the ledger only."""
    told = {**msgspec.to_builtins(trace), "looked": len(trace.looked)}
    short = json.dumps(told)
    return short if len(short) <= MAX_HEADER else json.dumps({**told, "constraints": {}, "eliminated": {}})


def used_in(reply: Reply) -> Used | None:
    """What the node says that it measured; nothing, if that makes no sense."""
    try:
        return msgspec.json.decode(reply.header(wire.USED_HEADER), type=Used)
    except msgspec.DecodeError:
        return None


def _turned_away(reply: Reply, whole: bytes | None) -> str:
    """Why the node took nothing on; empty if it did, or if what it says would be said anywhere."""
    if whole is None or reply.header(wire.UPSTREAM_STATUS_HEADER):
        return ""
    try:
        told = json.loads(whole)
        return f"{told['reason']}: {told.get('detail', '')}" if told["reason"] in TURNED_AWAY else ""
    except (ValueError, KeyError, TypeError):
        return ""
