"""Step 9, execute: open the ticket, check that the bytes are its, spend it, record, pass them on, record the end."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from typing import Final, Literal

import msgspec

from edge.clock import SystemClock, new_span
from edge.durable import DurableLedger
from edge.http import Incoming, Response, StreamResponse, is_gone, relay, watched
from edge.stopping import Stopped, until
from edge.telemetry import Telemetry
from edge.tracing import UNSEEN, Attributes, Marks
from sidecar.identity import Identity
from sidecar.node.done import Done
from sidecar.node.measuring import tokens
from sidecar.node.membership import Membership
from sidecar.node.offers import Offers
from sidecar.node.sessions import Sessions
from sidecar.node.upstream import Replied, Upstream, UpstreamFailed
from trust import mcp, wire
from trust.action import Payload
from trust.canonical import digest_of, sha256_hex
from trust.identity import ticket
from trust.identity.keys import b64url
from trust.identity.replay import Nonces
from trust.identity.ticket import Ticket
from trust.ledger import entries
from trust.ledger.entries import Used
from trust.ledger.writer import LedgerUnavailable
from trust.personal import QUIET, padded
from trust.policy.inventory import RISK_HIGH, Tool
from trust.reasons import Reason, Unverifiable
from trust.trace import HEADER as TRACEPARENT
from trust.trace import Trace, traceparent
from trust.wire import Execute

_log = logging.getLogger("licet.node")
_Status = Literal["done", "tool_error", "failed", "unknown"]
AGAIN: Final = "answered again; it ran once"


class _Job(msgspec.Struct, frozen=True):
    """One action that is being executed; ``salt`` of its digests, if it is personal."""

    entitled: Ticket
    payload: Payload
    salt: bytes
    tool: Tool
    started_ns: int


class Executor:
    """Of one node."""

    def __init__(
        self,
        identity: Identity,
        membership: Membership,
        offers: Offers,
        ledger: DurableLedger,
        telemetry: Telemetry,
        clock: SystemClock,
    ) -> None:
        self._identity = identity
        self._membership = membership
        self._offers = offers
        self._ledger = ledger
        self._telemetry = telemetry
        self._clock = clock
        self._tickets = Nonces()
        self._sessions = Sessions()
        self._done = Done()
        self._running: Counter[str] = Counter()

    async def execute(self, incoming: Incoming) -> StreamResponse:
        execute, body = wire.decode(incoming.body, Execute)
        try:
            return await self._traced(incoming, execute, body)
        except Unverifiable as bad:
            bad.personal = bool(execute.salt)
            raise

    async def _traced(self, incoming: Incoming, execute: Execute, body: bytes) -> StreamResponse:
        marks = self._telemetry.tracer.marks()
        if marks is UNSEEN or not execute.trace_id:
            return await self._execute(incoming, execute, body, Trace(execute.trace_id, execute.span_id), marks)
        trace = new_span(Trace(execute.trace_id, execute.span_id))
        try:
            return await self._execute(incoming, execute, body, trace, marks)
        finally:
            about: Attributes = {"licet.server": execute.server, "licet.node": self._identity.name}
            self._telemetry.tracer.told("licet 9 execute", trace, marks, about, failed=False)

    async def _execute(
        self, incoming: Incoming, execute: Execute, body: bytes, trace: Trace, marks: Marks
    ) -> StreamResponse:
        payload = wire.payload_of(execute, body)
        await self._membership.settled()
        token = incoming.header(wire.TICKET_HEADER) or ""
        entitled = self._open(token, execute, payload)
        upstream, tool = self._offers.as_judged(entitled)
        self._membership.require_current(entitled.agent, tool)
        if tool.manifest.risk >= RISK_HIGH and not ticket.is_signed(token):
            raise Unverifiable(Reason.TICKET_INVALID, f"ticket: one for risk {tool.manifest.risk} must be signed")
        self._sessions.require_own(entitled, payload)
        job = _Job(entitled, payload, bytes.fromhex(execute.salt), tool, self._clock.mono_ns())
        if self._done.knows(entitled.action_id, entitled.payload):
            return await self._again(incoming, job)
        with self._at_once(entitled, tool):
            self._ledger.append_later(_dispatch(entitled, self._identity.name))
            self._done.begin(entitled.action_id, entitled.payload, self._clock.mono())
            marks.at("9 open the ticket")
            told = {TRACEPARENT: named} if (named := traceparent(trace.trace_id, trace.span_id)) else {}
            if self._offers.bound(entitled.server):
                told[wire.TICKET_HEADER] = token
                told[wire.USE_HEADER] = ticket.use(token, payload.body, self._identity.key)
            return await self._pass_on(incoming, job, upstream, {**execute.credentials, **told}, marks)

    @property
    def in_hand(self) -> int:
        """How many calls run here."""
        return self._running.total()

    @contextmanager
    def _at_once(self, entitled: Ticket, tool: Tool) -> Iterator[None]:
        """No more calls of a tool run here than its manifest lets run at once."""
        name, most = f"{entitled.server}/{entitled.tool}", tool.manifest.limits.at_once
        if most and self._running[name] >= most:
            raise Unverifiable(Reason.OVERLOADED, f"{self._running[name]} calls of {name} run here; {most} may")
        self._running[name] += 1
        try:
            yield
        finally:
            self._running[name] -= 1
            if not self._running[name]:
                del self._running[name]

    def _stopped(self, incoming: Incoming, agent: str) -> bool:
        return self._membership.is_stopped(agent) or is_gone(incoming)

    async def _pass_on(
        self, incoming: Incoming, job: _Job, upstream: Upstream, added: dict[str, str], marks: Marks
    ) -> StreamResponse:
        agent, seconds = job.entitled.agent, job.tool.manifest.limits.seconds
        try:
            async with AsyncExitStack() as stack:
                async with until(partial(self._stopped, incoming, agent)), asyncio.timeout(seconds or None):
                    own = await stack.enter_async_context(self._offers.serving(job.entitled, upstream))
                    replied = await stack.enter_async_context(own.exchange(job.payload, added))
                marks.at("9 the tool answers")
                return await self._answer(incoming, job, replied)
        except Stopped:
            why = f"{agent} was stopped" if self._membership.is_stopped(agent) else "the gateway hung up"
            self._outcome(job, "unknown", detail=f"{why} while it ran")
            raise Unverifiable(Reason.OUTCOME_UNKNOWN, f"{why} while this ran") from None
        except TimeoutError:
            why = f"it was ended after the {seconds} s that its manifest allows"
            self._outcome(job, "unknown", detail=why)
            raise Unverifiable(Reason.OUTCOME_UNKNOWN, f"{why}; whether it happened is not known") from None
        except UpstreamFailed as bad:
            self._outcome(job, "failed", detail=str(bad))
            raise Unverifiable(Reason.UPSTREAM_FAILED, str(bad)) from None
        except Exception as bug:
            # The ticket is spent and the bytes may have been sent: whatever went wrong, this is no refusal.
            _log.error("executing failed:\n%s", traceback.format_exc())
            self._outcome(job, "unknown", detail=type(bug).__name__)
            raise Unverifiable(Reason.OUTCOME_UNKNOWN, f"{type(bug).__name__} while executing") from None
        finally:
            self._done.ended(job.entitled.action_id, None)

    async def _again(self, incoming: Incoming, job: _Job) -> StreamResponse:
        """The gateway has lost the answer and asks for it with another ticket."""
        agent = job.entitled.agent
        try:
            async with until(partial(self._stopped, incoming, agent)):
                replied = await self._done.again(job.entitled.action_id)
        except Stopped:
            raise Unverifiable(Reason.OUTCOME_UNKNOWN, "it was ended while it waited for an answer of before") from None
        self._outcome(job, _ending(replied, replied.body), replied, AGAIN)
        return _response(replied)

    def _open(self, token: str, execute: Execute, payload: Payload) -> Ticket:
        now = self._clock.now()
        entitled = ticket.open_ticket(
            token,
            gateway=self._identity.gateway,
            sessions=self._identity.back_key,
            node=self._identity.name,
            key=b64url(self._identity.key.public.raw),
            epoch=self._membership.epoch,
            payload=payload.digest(bytes.fromhex(execute.salt)),
            credentials=digest_of(dict(execute.credentials)),
            now=now,
        )
        if execute.server != entitled.server or wire.message_of(payload).tool != entitled.tool:
            raise Unverifiable(Reason.TICKET_INVALID, "made for another server or tool")
        if self._membership.lease_left_s() <= 0:
            raise Unverifiable(Reason.TICKET_INVALID, "this node's lease ran out; it starts nothing new")
        try:
            self._tickets.spend(entitled.id, entitled.deadline, now)
        except Unverifiable:
            raise Unverifiable(Reason.TICKET_INVALID, "this ticket was used before") from None
        return entitled

    async def _answer(self, incoming: Incoming, job: _Job, replied: Replied) -> StreamResponse:
        self._sessions.note(job.entitled, job.payload, replied)
        most = job.tool.manifest.limits.bytes
        if replied.chunks is None:
            if most and len(replied.body) > most:
                raise UpstreamFailed(f"it answered {len(replied.body)} bytes; its manifest allows {most}")
            used = self._used(job, replied)
            self._outcome(job, _ending(replied, replied.body), replied, used=used)
            self._done.ended(job.entitled.action_id, replied)
            return _response(replied, used)
        stopped, tail = partial(self._membership.is_stopped, job.entitled.agent), bytearray()
        headers = {**replied.headers, wire.UPSTREAM_STATUS_HEADER: str(replied.status)}
        response, complete = await relay(
            incoming, watched(replied.chunks, tail, mcp.MAX_TAIL_BYTES), 200, headers, stopped
        )
        self._outcome(job, _ending(replied, bytes(tail)) if complete else "unknown", replied)
        return response

    def _used(self, job: _Job, replied: Replied) -> Used:
        """What can be told of a call that came to its end."""
        model = job.tool.manifest.category == "model"
        tokens_in, tokens_out = tokens(replied.body) if model else (None, None)
        took_us = (self._clock.mono_ns() - job.started_ns) // 1000
        return Used(took_us, replied.cpu_us, replied.memory_bytes, None, tokens_in, tokens_out)

    def _outcome(
        self,
        job: _Job,
        status: _Status,
        replied: Replied | None = None,
        detail: str = "",
        used: Used | None = None,
    ) -> None:
        took_ns, labels = self._clock.mono_ns() - job.started_ns, (("status", status),)
        self._telemetry.tally.count("licet_executions", labels)
        self._telemetry.tally.took("licet_execution_seconds", took_ns / 1e9, labels)
        entry = entries.Outcome(
            action_id=job.entitled.action_id,
            decision_id=job.entitled.id,
            run=job.entitled.run,
            status=status,
            step=9,
            detail=QUIET if job.salt and detail else detail[:2000],
            node=self._identity.name,
            attempt=job.entitled.attempt,
            upstream_status=replied.status if replied else 0,
            duration_us=took_ns // 1000,
            response_sha256=sha256_hex(job.salt + replied.body) if replied and replied.chunks is None else "",
            response_bytes=_size(job, replied),
            used=used,
        )
        try:
            self._ledger.append_later(entry)
        except LedgerUnavailable as fault:
            _log.error("an outcome could not be recorded: %s", fault)


def _response(replied: Replied, used: Used | None = None) -> Response:
    headers = {**replied.headers, wire.UPSTREAM_STATUS_HEADER: str(replied.status)}
    if used is not None:
        headers[wire.USED_HEADER] = msgspec.json.encode(used).decode("ascii")
    return Response(headers=headers, body=replied.body)


def _ending(replied: Replied, body: bytes) -> _Status:
    """How the server says that it ended."""
    if replied.status >= 400:
        return "failed"
    return "tool_error" if mcp.went_wrong(replied.headers.get("Content-Type", ""), body) else "done"


def _size(job: _Job, replied: Replied | None) -> int:
    """How large the answer was; of a personal call not exactly."""
    size = len(replied.body) if replied else 0
    return padded(size) if job.salt else size


def _dispatch(entitled: Ticket, node: str) -> entries.Dispatch:
    return entries.Dispatch(
        action_id=entitled.action_id,
        decision_id=entitled.id,
        run=entitled.run,
        agent=entitled.agent,
        principal=entitled.principal,
        server=entitled.server,
        tool=entitled.tool,
        node=node,
        payload_sha256=entitled.payload,
        action_digest=entitled.action_digest,
        intent="",
        ticket=entitled.id,
        attempt=entitled.attempt,
        step=9,
        approval=entitled.approval,
        authority=list(entitled.authority),
    )
