"""A node, assembled: its servers, its lease, its ledger, and the one thing that it answers: ``/v1/execute``."""

from __future__ import annotations

import asyncio
import logging
import traceback
from pathlib import Path
from ssl import SSLContext
from typing import Final

from edge import http, metrics, reverse, tls
from edge.client import Broken, Client, Unreachable
from edge.clock import SystemClock, new_id
from edge.durable import DurableLedger
from edge.http import (
    Border,
    Incoming,
    Listener,
    Response,
    StreamResponse,
    authorities,
    caller_of,
    json_response,
    problem,
    require_c_parser,
    require_free,
)
from edge.routes import Routes
from edge.stopping import settled
from edge.telemetry import Telemetry
from sidecar.config import NodeConfig
from sidecar.forgetting import Forgetting
from sidecar.identity import Identity
from sidecar.node.execution import Executor
from sidecar.node.membership import Membership, sleeping
from sidecar.node.offers import Offers
from sidecar.node.outbound import Outbound
from sidecar.node.showing import Showing
from sidecar.node.upstream import UpstreamFailed
from sidecar.shipping import Shipper
from sidecar.world import listen
from trust import report, wire
from trust.identity.keys import SecretKey
from trust.ledger import entries
from trust.ledger.writer import LedgerUnavailable
from trust.reasons import Reason, Unverifiable
from trust.verdict import Refusal
from trust.wire import OUTBOUND

VERSION: Final = "0.1.0"
MAX_EXECUTE_BYTES: Final = 8 << 20
_log = logging.getLogger("licet.node")


class Node:
    """Use :meth:`start` and :meth:`stop`; ``port`` is known after the start."""

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self.telemetry = Telemetry()
        self.port = 0
        self._leaving = False

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
            config.home, config.gateway_urls, config.enrolment, self._client, self._clock, config.key_service
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
        self.membership = Membership(config, self.identity, self._clock)
        self.offers = Offers(config.servers, self._to_tools, config.home)
        self._executor = Executor(self.identity, self.membership, self.offers, self.ledger, self.telemetry, self._clock)
        self._showing = Showing(self.identity, self.membership, config.gpu, self._clock)
        await self.ledger.append(entries.Start(VERSION, self.ledger.size))
        self._watch()
        self.telemetry.open(config.otlp or "", "licet-node", self.identity.name, VERSION)
        hosts: set[str] = set()
        border = Border(hosts, frozenset({wire.TICKET_HEADER}), MAX_EXECUTE_BYTES)
        self._routes = Routes()
        self._routes.add("GET", "/livez", self._livez)
        self._routes.add("GET", "/readyz", self._readyz)
        self._routes.add("POST", "/v1/execute", self._execute)
        self._routes.add("POST", "/v1/prove", self._prove)
        self._routes.add("GET", metrics.PATH, self.telemetry.metrics.serve)
        server = http.Server(self._serve, self._refuse, border)
        self._listener = Listener(server)
        slots = self.membership.slots
        self._outbound = Outbound(self.identity, server, self._tls, slots) if config.outbound else None
        self.port = await self._listener.open(config.host, config.port, self._incoming)
        hosts.update(authorities(self.port, config.host, *config.hostnames))
        if config.public_url:
            hosts.add(config.public_url.partition("://")[2])
        if self._outbound is not None:
            hosts.add(self.identity.name + reverse.HOST)
        await self.offers.start()
        await self._join()
        await self.identity.open_session_when_due()
        forgetting = Forgetting(self.ledger, self.shipper, self._clock, config.keep_days)
        self._tasks = [
            asyncio.create_task(self._beat()),
            asyncio.create_task(self._watch_tools()),
            asyncio.create_task(self.offers.keep_children(self.config.heartbeat_s)),
            asyncio.create_task(listen(self.identity, self.membership.hear)),
            asyncio.create_task(self.shipper.work()),
            asyncio.create_task(forgetting.work()),
            *([asyncio.create_task(self._outbound.work())] if self._outbound is not None else []),
        ]

    def _watch(self) -> None:
        """What is worth an alarm."""
        watch = self.telemetry.tally.watch
        watch("licet_ledger_entries", "Entries in this process's ledger.", lambda: self.ledger.size)
        watch("licet_ledger_broken", "1 if nothing can be recorded any more.", lambda: float(bool(self.ledger.fault)))
        watch(
            "licet_lease_left_seconds",
            "For how long this node may still start something.",
            self.membership.lease_left_s,
        )
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

    async def _join(self) -> None:
        scheme = "http" if self._incoming is None else "https"
        url = self.config.public_url or f"{scheme}://{self.config.host}:{self.port}"
        if self.config.outbound:
            url = OUTBOUND
        await self.membership.join(url, self.offers.now())

    async def _watch_tools(self) -> None:
        """A server may change its tools while it runs; what changed must not be called as what was pinned."""
        while True:
            await sleeping(self.offers.look_again, self.config.recheck_s)
            try:
                if await self.offers.look() != self.membership.told:
                    await self._join()
            except (Unreachable, Broken, Unverifiable, UpstreamFailed) as bad:
                _log.warning("what the servers offer was not told, trying again: %s", bad)
                self._retry_soon()
            except Exception:
                _log.exception("comparing what the servers offer failed; it is tried again")
                self._retry_soon()

    def _retry_soon(self) -> None:
        asyncio.get_running_loop().call_later(self.config.heartbeat_s, self.offers.look_again.set)

    async def _beat(self) -> None:
        """Renew the lease, the identity and the session."""
        while True:
            await asyncio.sleep(self.config.heartbeat_s)
            try:
                if not await self.membership.renew():
                    await self._join()
                await self.identity.renew_when_due()
                if await self.identity.certify_when_due(self._tls):
                    self._show_to_the_gateway()
                await self.identity.open_session_when_due()
            except (Unreachable, Broken, Unverifiable, UpstreamFailed) as bad:
                _log.warning("the lease was not renewed, trying again: %s", bad)
            except Exception:
                _log.exception("a heartbeat failed; it is tried again")

    # Requests

    async def _livez(self, _incoming: Incoming) -> StreamResponse:
        """A ledger that cannot be written stays so until a restart."""
        live = self.ledger.fault is None
        return json_response({"live": live}, 200 if live else 503)

    async def _readyz(self, _incoming: Incoming) -> StreamResponse:
        member = self.membership
        lease, heard = member.lease_left_s() > 0, member.heard_lately()
        checks = {"ledger": self.ledger.fault is None, "lease": lease, "facts": heard}
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
        self._require_gateway(incoming)
        if self._leaving:
            raise Unverifiable(Reason.OVERLOADED, "this node is ending, and takes nothing new on", 1)
        if self._outbound is None:
            return await self._executor.execute(incoming)
        with self._outbound.working():
            return await self._executor.execute(incoming)

    async def _prove(self, incoming: Incoming) -> StreamResponse:
        """The gateway asks for something that only the holder of this node's key can show."""
        self._require_gateway(incoming)
        return await self._showing.prove(incoming)

    async def drain(self) -> None:
        """The gateway that asks anew is told no, before anything is started, and sends it elsewhere."""
        if self.config.drain_s:
            self._leaving = True
            await self._listener.leave()
            await settled(lambda: self._executor.in_hand, self.config.drain_s)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await self._listener.close()
        await self.offers.close()
        await self._showing.close()
        await self._to_tools.close()
        await self.ledger.end()
        await self.shipper.ship_the_rest()
        await self._client.close()
        await asyncio.to_thread(self.telemetry.close)
