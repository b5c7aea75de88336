"""A node, assembled: its servers, its lease, its ledger, and the one thing that it answers: ``/v1/execute``."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import traceback
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from ssl import SSLContext
from typing import Final, Literal

import msgspec

from edge import http, metrics, tls
from edge.client import Broken, Client, Unreachable
from edge.clock import SystemClock, new_id, new_span
from edge.durable import DurableLedger
from edge.http import (
    Border,
    Incoming,
    Listener,
    Response,
    StreamResponse,
    caller_of,
    is_gone,
    json_response,
    problem,
    relay,
    require_c_parser,
    require_free,
    watched,
)
from edge.routes import Routes
from edge.stopping import Stopped, until
from edge.telemetry import Telemetry
from edge.tracing import UNSEEN, Attributes, Marks
from sidecar.config import NodeConfig, ToolServer
from sidecar.identity import Identity, detail_of
from sidecar.node.admission import inventory_of, unlisted
from sidecar.node.http_upstream import HttpUpstream
from sidecar.node.sessions import Sessions
from sidecar.node.stdio_upstream import StdioUpstream
from sidecar.node.upstream import Replied, Upstream, UpstreamFailed
from sidecar.shipping import Shipper
from sidecar.world import listen
from trust import feed, mcp, report, wire
from trust.action import Payload
from trust.canonical import digest_of, sha256_hex
from trust.identity import ticket
from trust.identity.keys import SecretKey
from trust.identity.replay import Nonces
from trust.identity.ticket import Ticket
from trust.ledger import entries
from trust.ledger.writer import LedgerUnavailable
from trust.personal import QUIET, padded
from trust.policy.inventory import RISK_HIGH, Server, Tool
from trust.reasons import Reason, Unverifiable
from trust.trace import HEADER as TRACEPARENT
from trust.trace import Trace, traceparent
from trust.verdict import Refusal
from trust.wire import Execute

VERSION: Final = "0.1.0"
LEASE_MARGIN_S: Final = 2.0
"""A node stops starting work this long before its lease ends, so that two never believe to hold it."""
LIST_TIMEOUT_S: Final = 20.0
START_TIMEOUT_S: Final = 35.0
MAX_EXECUTE_BYTES: Final = 8 << 20
_log = logging.getLogger("licet.node")
_Status = Literal["done", "tool_error", "failed", "unknown"]


class _Offer(msgspec.Struct, frozen=True):
    """What a server listed, and which of its processes or sessions said so."""

    generation: int
    server: Server


class _Job(msgspec.Struct, frozen=True):
    """One action that is being executed; ``salt`` of its digests, if it is personal."""

    entitled: Ticket
    payload: Payload
    salt: bytes
    started_ns: int


class Node:
    """Use :meth:`start` and :meth:`stop`; ``port`` is known after the start."""

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self.telemetry = Telemetry()
        self.port = 0
        self._epoch = 0
        self._renewed = float("-inf")
        self._tickets = Nonces()
        self._upstreams: dict[str, Upstream] = {}
        self._joining = asyncio.Lock()
        self._offers: dict[str, _Offer] = {}
        self._told: dict[str, Server] = {}
        self._look_again = asyncio.Event()
        self._stops: feed.Stops | None = None
        self._heard = float("-inf")
        self._sessions = Sessions()

    async def start(self) -> None:
        require_c_parser()
        require_free(self.config.host, self.config.port)
        authority = self.config.gateway_ca
        self._tls = tls.client(authority, "gateway") if authority is not None else None
        self._incoming: SSLContext | None = None
        self._client = Client(total_timeout_s=None, tls=self._tls)
        self._to_tools = Client(total_timeout_s=None)
        try:
            await self._start()
        except BaseException:
            await self._client.close()
            await self._to_tools.close()
            raise

    async def _start(self) -> None:
        config = self.config
        self._clock = SystemClock()
        config.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.identity = await Identity.obtain(
            config.home, config.gateway_url, config.enrolment_token, self._client, self._clock, config.key_service
        )
        await self._certify()
        self.ledger = DurableLedger(
            config.home / "ledger",
            origin=f"{self.identity.enrolment.trust_domain}/node/{self.identity.name}",
            key=SecretKey.load_or_create(config.home / "ledger.key"),
            clock=self._clock,
            segment_bytes=config.segment_bytes,
        )
        self.shipper = Shipper(self.identity, self.ledger.root, self._clock)
        await self.ledger.append(entries.Start(VERSION, self.ledger.size))
        self._watch()
        self.telemetry.open(config.otlp or "", "licet-node", self.identity.name, VERSION)
        hosts: set[str] = set()
        border = Border(hosts, frozenset({wire.TICKET_HEADER}), MAX_EXECUTE_BYTES)
        self._routes = Routes()
        self._routes.add("GET", "/livez", self._livez)
        self._routes.add("GET", "/readyz", self._readyz)
        self._routes.add("POST", "/v1/execute", self._execute)
        self._routes.add("GET", metrics.PATH, self.telemetry.metrics.serve)
        self._listener = Listener(http.Server(self._serve, self._refuse, border))
        self.port = await self._listener.open(config.host, config.port, self._incoming)
        hosts.update(f"{name}:{self.port}" for name in (config.host, "localhost", *config.hostnames))
        await asyncio.gather(*(self._start_upstream(server.name) for server in config.servers))
        await self._look()
        if len(self._offers) < len(config.servers):
            silent = ", ".join(server.name for server in config.servers if server.name not in self._offers)
            raise UpstreamFailed(f"{silent}: no list of tools (the reason was logged)")
        for server in config.servers:
            for name in unlisted(server, self._offers[server.name].server):
                _log.warning("%s: [tools.%s]: %s lists no such tool", server.manifest, name, server.name)
        await self._join()
        await self.identity.open_session_when_due()
        self._tasks = [
            asyncio.create_task(self._beat()),
            asyncio.create_task(self._watch_tools()),
            asyncio.create_task(self._keep_children()),
            asyncio.create_task(listen(self.identity, self._hear)),
            asyncio.create_task(self.shipper.work()),
        ]

    def _watch(self) -> None:
        """What is worth an alarm."""
        watch = self.telemetry.tally.watch
        watch("licet_ledger_entries", "Entries in this process's ledger.", lambda: self.ledger.size)
        watch("licet_ledger_broken", "1 if nothing can be recorded any more.", lambda: float(bool(self.ledger.fault)))
        watch("licet_lease_left_seconds", "For how long this node may still start something.", self._lease_left_s)
        watch("licet_unwitnessed_seconds", "Since all of the ledger was witnessed.", self.shipper.unwitnessed_s)

    async def _certify(self) -> None:
        """With TLS: show a certificate to the gateway, and serve under it."""
        config = self.config
        if self._tls is None or config.gateway_ca is None:
            return
        await self.identity.certify(self._tls, config.tls_certificate, config.tls_key)
        certificate, key = self._files()
        self._incoming = tls.server(certificate, key, config.gateway_ca, required=False)

    def _files(self) -> tuple[Path, Path]:
        config = self.config
        return config.tls_certificate or config.home / "tls.pem", config.tls_key or config.home / "tls.key"

    def _show_to_the_gateway(self) -> None:
        if self._incoming is not None:
            tls.show(self._incoming, *self._files())

    def _require_gateway(self, incoming: Incoming) -> None:
        """Over TLS only the gateway itself brings tickets."""
        expected = f"wimse://{self.identity.enrolment.trust_domain}/gateway/main"
        secured, named = tls.peer(incoming)
        if self._incoming is not None and (not secured or named != expected):
            shown = f"a certificate of {named}" if named else "no certificate"
            raise Unverifiable(Reason.UNAUTHENTICATED, f"expected the gateway, found {shown}")

    # Servers and lease

    async def _start_upstream(self, name: str) -> None:
        server = next(s for s in self.config.servers if s.name == name)
        upstream: Upstream = (
            HttpUpstream(server.url, self._to_tools)
            if server.url
            else StdioUpstream(server.command, server.env, server.cwd)
        )
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await upstream.start()
        except TimeoutError:
            raise UpstreamFailed(f"{name} did not answer within {START_TIMEOUT_S:.0f} s") from None
        self._upstreams[name] = upstream

    async def _join(self) -> None:
        """Tell the gateway what is offered here now; it answers with a new epoch."""
        config = self.config
        async with self._joining:
            offered = {name: found.server for name, found in self._offers.items()}
            scheme = "http" if self._incoming is None else "https"
            url = config.public_url or f"{scheme}://{config.host}:{self.port}"
            body = msgspec.json.encode({"url": url, "servers": list(offered.values())})
            async with self.identity.send(
                "POST", "/v1/nodes/join", body, _JSON, strong=True, timeout_s=LIST_TIMEOUT_S
            ) as reply:
                answer = await reply.read()
            if reply.status != 200:
                raise UpstreamFailed(f"the gateway did not let this node join: {detail_of(answer)}")
            self._told = offered
            self._epoch = int(json.loads(answer)["epoch"])
            self._renewed = self._clock.mono()

    async def _look(self) -> None:
        """What each server offers now; one that does not say is not offered."""
        await asyncio.gather(*(self._look_at(server) for server in self.config.servers))

    async def _look_at(self, server: ToolServer) -> None:
        upstream = self._upstreams[server.name]
        generation = upstream.generation
        try:
            async with asyncio.timeout(LIST_TIMEOUT_S):
                listed = await upstream.list_tools()
            self._offers[server.name] = _Offer(generation, inventory_of(server, listed))
        except Exception as bad:
            # Whatever it is, what was listed before may not hold any more.
            self._offers.pop(server.name, None)
            _log.warning("%s is not offered: %s: %s", server.name, type(bad).__name__, bad)

    async def _watch_tools(self) -> None:
        """A server may change its tools while it runs; what changed must not be called as what was pinned."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.config.recheck_s):
                    await self._look_again.wait()
            self._look_again.clear()
            try:
                await self._look()
                if {name: found.server for name, found in self._offers.items()} != self._told:
                    await self._join()
            except (Unreachable, Broken, Unverifiable, UpstreamFailed) as bad:
                _log.warning("what the servers offer was not told, trying again: %s", bad)
                self._retry_soon()
            except Exception:
                _log.exception("comparing what the servers offer failed; it is tried again")
                self._retry_soon()

    def _retry_soon(self) -> None:
        asyncio.get_running_loop().call_later(self.config.heartbeat_s, self._look_again.set)

    async def _beat(self) -> None:
        """Renew the lease, the identity and the session."""
        while True:
            await asyncio.sleep(self.config.heartbeat_s)
            try:
                await self._renew()
                await self.identity.renew_when_due()
                if await self.identity.certify_when_due(self._tls, self.config.tls_certificate):
                    self._show_to_the_gateway()
                await self.identity.open_session_when_due()
            except (Unreachable, Broken, Unverifiable, UpstreamFailed) as bad:
                _log.warning("the lease was not renewed, trying again: %s", bad)
            except Exception:
                _log.exception("a heartbeat failed; it is tried again")

    async def _renew(self) -> None:
        asked = self._clock.mono()
        body = msgspec.json.encode({"epoch": self._epoch})
        async with self.identity.send("POST", "/v1/nodes/heartbeat", body, _JSON, timeout_s=5.0) as reply:
            await reply.read()
        if reply.status == 200:
            self._renewed = asked
        elif reply.status == 403:
            await self._join()

    async def _keep_children(self) -> None:
        """Start dead children again, each on its own: one that cannot start takes nothing else away."""
        while True:
            await asyncio.sleep(self.config.heartbeat_s)
            dead = [n for n, u in self._upstreams.items() if isinstance(u, StdioUpstream) and not u.alive]
            await asyncio.gather(*(self._revive(name) for name in dead))

    async def _revive(self, name: str) -> None:
        """What it offers then may have changed, so nothing of it is called before a look."""
        self._offers.pop(name, None)
        try:
            await self._upstreams[name].close()
            await self._upstreams[name].start()
        except Exception as bad:
            _log.warning("%s could not be started again, trying on: %s", name, bad)
        self._look_again.set()

    # Who was stopped

    def _hear(self, line: bytes) -> None:
        try:
            self._stops = feed.open_stops(
                line, self.identity.gateway, node=self.identity.name, after=self._stops, now=self._clock.now()
            )
        except Unverifiable as bad:
            _log.warning("a line of the feed was not believed: %s", bad)
            return
        self._heard = self._clock.mono()

    def _is_stopped(self, agent: str) -> bool:
        return self._stops is not None and agent in self._stops.agents

    def _require_current(self, entitled: Ticket, tool: Tool) -> None:
        """The ticket's agent was not stopped since it was made, as far as can be known: who has not heard the gateway
        for too long starts nothing."""
        if self._is_stopped(entitled.agent):
            raise Unverifiable(Reason.REVOKED, f"{entitled.agent} was stopped after this ticket was made")
        age = self._clock.mono() - self._heard
        limit = feed.ALL_STALE_S if tool.manifest.effect == "read" else feed.SIDE_EFFECTS_STALE_S
        if age > limit:
            raise Unverifiable(
                Reason.STALE_FACTS, f"the gateway was last heard {age:.1f} s ago; the limit is {limit:.0f} s"
            )

    def _lease_left_s(self) -> float:
        return self.config.lease_ttl_s - LEASE_MARGIN_S - (self._clock.mono() - self._renewed)

    # Requests

    async def _livez(self, _incoming: Incoming) -> StreamResponse:
        return json_response({"live": True})

    async def _readyz(self, _incoming: Incoming) -> StreamResponse:
        heard = self._clock.mono() - self._heard < feed.SIDE_EFFECTS_STALE_S
        checks = {"ledger": self.ledger.fault is None, "lease": self._lease_left_s() > 0, "facts": heard}
        return json_response({"ready": all(checks.values()), "checks": checks}, 200 if all(checks.values()) else 503)

    async def _serve(self, incoming: Incoming) -> StreamResponse:
        try:
            return await self._routes.find(incoming)()
        except Unverifiable as bad:
            no = Refusal.of(9, bad)
        except LedgerUnavailable as fault:
            no = Refusal(9, Reason.LEDGER_UNAVAILABLE, str(fault))
        except Exception as bug:
            _log.error("%s %s failed:\n%s", incoming.method, incoming.path, traceback.format_exc())
            no = Refusal(9, Reason.INTERNAL_ERROR, type(bug).__name__)
        return await self._refuse(no, caller_of(incoming.raw))

    async def _refuse(self, no: Refusal, caller: str) -> Response:
        self.telemetry.tally.count("licet_refusals", (("reason", str(no.reason)),))
        decision_id = new_id("dec")
        try:
            await self.ledger.append(
                entries.Refusal(no.step, str(no.reason), report.detail(no), decision_id, caller=caller)
            )
        except LedgerUnavailable as fault:
            no = no.unrecorded(fault)
        return problem(no, decision_id)

    async def _execute(self, incoming: Incoming) -> StreamResponse:
        """Step 9: open the ticket, check that the bytes are its, spend it, record, pass them on."""
        self._require_gateway(incoming)
        execute, body = wire.decode(incoming.body, Execute)
        try:
            return await self._execute_traced(incoming, execute, body)
        except Unverifiable as bad:
            bad.personal = bool(execute.salt)
            raise

    async def _execute_traced(self, incoming: Incoming, execute: Execute, body: bytes) -> StreamResponse:
        marks = self.telemetry.tracer.marks()
        if marks is UNSEEN or not execute.trace_id:
            return await self._run(incoming, execute, body, Trace(execute.trace_id, execute.span_id), marks)
        trace = new_span(Trace(execute.trace_id, execute.span_id))
        try:
            return await self._run(incoming, execute, body, trace, marks)
        finally:
            about: Attributes = {"licet.server": execute.server, "licet.node": self.identity.name}
            self.telemetry.tracer.told("licet 9 execute", trace, marks, about, failed=False)

    async def _run(
        self, incoming: Incoming, execute: Execute, body: bytes, trace: Trace, marks: Marks
    ) -> StreamResponse:
        payload = wire.payload_of(execute, body)
        if self._joining.locked():  # the gateway knows the new epoch before this node does
            async with self._joining:
                pass
        entitled = self._open(incoming.header(wire.TICKET_HEADER) or "", execute, payload)
        upstream, tool = self._upstream_as_judged(entitled)
        self._require_current(entitled, tool)
        if tool.manifest.risk >= RISK_HIGH and not ticket.is_signed(incoming.header(wire.TICKET_HEADER) or ""):
            raise Unverifiable(Reason.TICKET_INVALID, f"ticket: one for risk {tool.manifest.risk} must be signed")
        self._sessions.require_own(entitled, payload)
        self.ledger.append_later(_dispatch(entitled, self.identity.name))
        marks.at("9 open the ticket")
        told = {TRACEPARENT: named} if (named := traceparent(trace.trace_id, trace.span_id)) else {}
        job = _Job(entitled, payload, bytes.fromhex(execute.salt), self._clock.mono_ns())

        def stopped() -> bool:
            return self._is_stopped(entitled.agent) or is_gone(incoming)

        try:
            async with AsyncExitStack() as stack:
                async with until(stopped):
                    replied = await stack.enter_async_context(
                        upstream.exchange(payload, {**execute.credentials, **told})
                    )
                marks.at("9 the tool answers")
                return await self._answer(incoming, job, replied)
        except Stopped:
            why = f"{entitled.agent} was stopped" if self._is_stopped(entitled.agent) else "the gateway hung up"
            self._outcome(job, "unknown", detail=f"{why} while it ran")
            raise Unverifiable(Reason.OUTCOME_UNKNOWN, f"{why} while this ran") from None
        except UpstreamFailed as bad:
            self._outcome(job, "failed", detail=str(bad))
            raise Unverifiable(Reason.UPSTREAM_FAILED, str(bad)) from None
        except Exception as bug:
            # The ticket is spent and the bytes may have been sent: whatever went wrong, this is no refusal.
            _log.error("executing failed:\n%s", traceback.format_exc())
            self._outcome(job, "unknown", detail=type(bug).__name__)
            raise Unverifiable(Reason.OUTCOME_UNKNOWN, f"{type(bug).__name__} while executing") from None

    def _upstream_as_judged(self, entitled: Ticket) -> tuple[Upstream, Tool]:
        """The server, if what runs now was looked at, and offers the tool exactly as it was judged."""
        upstream, offer = self._upstreams.get(entitled.server), self._offers.get(entitled.server)
        if upstream is None:
            raise Unverifiable(Reason.TICKET_INVALID, f"{entitled.server} is not offered here")
        if offer is None or offer.generation != upstream.generation:
            self._look_again.set()
            again = f"{entitled.server} was started again; its tools are compared first"
            raise Unverifiable(Reason.NO_ELIGIBLE_NODE, again)
        tool = offer.server.tools.get(entitled.tool)
        if tool is None or tool.digest != entitled.tool_digest:
            raise Unverifiable(Reason.TOOL_QUARANTINED, f"{entitled.tool} is not offered here as it was judged")
        return upstream, tool

    def _open(self, token: str, execute: Execute, payload: Payload) -> Ticket:
        now = self._clock.now()
        entitled = ticket.open_ticket(
            token,
            gateway=self.identity.gateway,
            sessions=self.identity.back_key,
            node=self.identity.name,
            epoch=self._epoch,
            payload=payload.digest(bytes.fromhex(execute.salt)),
            credentials=digest_of(dict(execute.credentials)),
            now=now,
        )
        if execute.server != entitled.server or wire.message_of(payload).tool != entitled.tool:
            raise Unverifiable(Reason.TICKET_INVALID, "made for another server or tool")
        if self._lease_left_s() <= 0:
            raise Unverifiable(Reason.TICKET_INVALID, "this node's lease ran out; it starts nothing new")
        try:
            self._tickets.spend(entitled.id, entitled.deadline, now)
        except Unverifiable:
            raise Unverifiable(Reason.TICKET_INVALID, "this ticket was used before") from None
        return entitled

    async def _answer(self, incoming: Incoming, job: _Job, replied: Replied) -> StreamResponse:
        headers = {**replied.headers, wire.UPSTREAM_STATUS_HEADER: str(replied.status)}
        self._sessions.note(job.entitled, job.payload, replied)
        if replied.chunks is None:
            self._outcome(job, _ending(replied, replied.body), replied)
            return Response(headers=headers, body=replied.body)
        stopped, tail = partial(self._is_stopped, job.entitled.agent), bytearray()
        response, complete = await relay(
            incoming, watched(replied.chunks, tail, mcp.MAX_TAIL_BYTES), 200, headers, stopped
        )
        self._outcome(job, _ending(replied, bytes(tail)) if complete else "unknown", replied)
        return response

    def _outcome(self, job: _Job, status: _Status, replied: Replied | None = None, detail: str = "") -> None:
        took_ns, labels = self._clock.mono_ns() - job.started_ns, (("status", status),)
        self.telemetry.tally.count("licet_executions", labels)
        self.telemetry.tally.took("licet_execution_seconds", took_ns / 1e9, labels)
        entry = entries.Outcome(
            action_id=job.entitled.action_id,
            decision_id=job.entitled.id,
            run=job.entitled.run,
            status=status,
            step=9,
            detail=QUIET if job.salt and detail else detail[:2000],
            node=self.identity.name,
            upstream_status=replied.status if replied else 0,
            duration_us=took_ns // 1000,
            response_sha256=sha256_hex(job.salt + replied.body) if replied and replied.chunks is None else "",
            response_bytes=_size(job, replied),
        )
        try:
            self.ledger.append_later(entry)
        except LedgerUnavailable as fault:
            _log.error("an outcome could not be recorded: %s", fault)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await self._listener.close()
        await asyncio.gather(*(upstream.close() for upstream in self._upstreams.values()))
        await self._client.close()
        await self._to_tools.close()
        await self.ledger.close()
        await asyncio.to_thread(self.telemetry.close)


_JSON: Final = {"Content-Type": "application/json"}


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
        step=9,
        approval=entitled.approval,
        authority=list(entitled.authority),
    )
