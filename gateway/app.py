"""A gateway, assembled: ledger, state, services, server, and the three things it does every second."""

from __future__ import annotations

import asyncio
import logging
import secrets
import traceback
from pathlib import Path

from edge.blobs import Blobs
from edge.client import Client
from edge.clock import SystemClock, new_id
from edge.durable import DurableLedger
from edge.http import (
    Border,
    Incoming,
    Listener,
    Response,
    Server,
    StreamResponse,
    authorities,
    caller_of,
    problem,
    require_c_parser,
)
from edge.reverse import Accepted
from edge.shared import Shared
from edge.stopping import ended, settled
from edge.telemetry import Telemetry
from gateway.admission import Admission
from gateway.anchors import Anchors
from gateway.api.access import Services
from gateway.api.routes import Api
from gateway.approvals.desk import Desk
from gateway.approvals.votes import Votes
from gateway.attempts import Attempts, Credentials
from gateway.bundles import BundleFiles, Bundles
from gateway.callers import Callers
from gateway.certificates import Certificates
from gateway.challenger import Challenger
from gateway.config import GatewayConfig
from gateway.console.door import ROOT
from gateway.console.site import Console
from gateway.control import Control
from gateway.delegations import Delegations
from gateway.dispatch import Dispatcher
from gateway.evidence import Packer
from gateway.feed import Feed
from gateway.fleet import Fleet
from gateway.ledgers import Ledgers
from gateway.naming import log_of_gateway, settled_name
from gateway.notices import Notices
from gateway.offers import Inventories
from gateway.oidc import Oidc
from gateway.passkeys import Passkeys
from gateway.peers import Peers
from gateway.people import AUTHOR, OPERATOR, People
from gateway.postgres import Postgres
from gateway.proofs import Proofs
from gateway.proving import Asks, Prover
from gateway.reaching import Reaching
from gateway.recall import Recall
from gateway.records import Records
from gateway.registry import Registry
from gateway.replica import Replica, Shelf, reach
from gateway.router.routing import Router
from gateway.servers import Servers
from gateway.standings import Standings
from gateway.state import Person
from gateway.statements import Statements
from gateway.stops import Stops
from gateway.store import Store
from gateway.subjects import FILE as SUBJECTS
from gateway.subjects import SubjectFile, Subjects
from gateway.tries import Tries
from gateway.witness import Witness
from trust import report
from trust.identity.keys import SecretKey
from trust.ledger import entries
from trust.ledger.disk import Disk
from trust.ledger.log import LedgerDamaged
from trust.ledger.tiles import write_atomically
from trust.ledger.writer import LedgerUnavailable
from trust.policy.bundle import Compiled
from trust.reasons import Reason, Unverifiable
from trust.standing.breaker import Breaker
from trust.verdict import Refusal

VERSION = "0.1.0"
REACHED_WITHIN_S = 30.0
"""For how long a gateway waits for its Redis at the start, which may begin at the same time."""
CONSOLE_HOST = "licet.localhost"
"""Browsers find it on this machine by themselves (RFC 6761), and nobody else's page is of the same site."""
_log = logging.getLogger("licet.gateway")


class Gateway:
    """Use :meth:`start` and :meth:`stop`; ``port`` is known after the start."""

    def __init__(self, config: GatewayConfig, disk: Disk | None = None) -> None:
        self.config = config
        self._disk = disk
        self.telemetry = Telemetry()
        self.port = 0

    async def start(self) -> None:
        require_c_parser()
        config, clock = self.config, SystemClock()
        home = config.home
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.admission = Admission(config.inject) if config.inject is not None else None
        if self.admission is not None:
            await self.admission.open(config.host, shared=bool(config.own_port))
        key = _key(config)
        order = Postgres(config.database, key.derive("order of changes")) if config.database else None
        name = config.name
        if order is not None:
            await reach(order)
            name = await settled_name(home, config.name, config.trust_domain, order)
        self.ledger = DurableLedger(
            home / "ledger",
            origin=log_of_gateway(config.trust_domain, name),
            key=SecretKey.load_or_create(home / "ledger.key"),
            clock=clock,
            segment_bytes=config.segment_bytes,
            disk=self._disk,
        )
        self._store = Store(home / "state.sqlite")
        blobs, bundle_files = Blobs(home / "blobs"), BundleFiles(home / "bundles")
        self._subject_file = SubjectFile(home / SUBJECTS, key.derive("subjects"))
        self.records: Records = Records(self.ledger, self._store)
        self._replica: Replica | None = None
        if order is not None:
            shelves: dict[str, Shelf] = {"blob": blobs, "bundle": bundle_files, "subject": self._subject_file}
            self.records = self._replica = Replica(self.ledger, self._store, order, shelves)
        await self.records.open()
        await self.records.note(entries.Start(VERSION, self.ledger.size))
        if self._replica is not None:
            await self._replica.present(name, config.peer_url or "", VERSION)
        self._subjects = subjects = Subjects(self._subject_file, self.records)
        await subjects.settle()
        people = People(self.records)
        await self._first_operator(people)
        domain = config.trust_domain
        self.stops = Stops(self.records, clock)
        reserved = {credential.server: credential.namespace for credential in config.credentials}
        servers = Servers(self.records, Inventories(blobs), reserved)
        self.registry = registry = Registry(self.records, self.stops, key, domain, clock)
        self.standings = Standings(self.records, registry, self.stops, clock)
        await self.standings.settle_the_rest()
        delegations = Delegations(self.records, registry, self.stops, self.standings, key, clock, domain)
        self.bundles = Bundles(bundle_files, self.records, servers, people, key, clock, config.bundle_ttl_s)
        self._feed = Feed(self.records, registry, self.stops, self.standings, subjects, self.bundles, key, domain)
        self.desk = Desk(self.records, registry, self.stops, delegations, subjects, self.bundles, blobs, clock)
        asks = Asks(config.issuers, config.gpu, clock)
        self.router = Router(self.records, servers, config.lease_ttl_s, asks.of, self._policies)
        audience = f"wimse://{domain}/gateway/main"
        self._shared = Shared(config.redis, audience, name) if config.redis else None
        if self._shared is not None:
            await self._shared.start(REACHED_WITHIN_S)
        self.fleet = Fleet(self.records, registry, servers, self.router, self._policies, domain, clock, self._shared)
        self._oidc: Oidc | None = None
        self._own: Listener | None = None
        self._console: Console
        self._tls = Certificates.of(config, domain, clock)
        self._client = Client(tls=self._tls.outgoing if self._tls else None)
        self._accepted = Accepted()
        self.witness = Witness(self.records, home / "logs", f"{domain}/gateway/main", key, clock)
        if config.database:
            await self.witness.meet_gateway(self.ledger.origin, self.ledger.vkey)
        anchored = (config.checkpoints_to, config.witness_url or "", config.witness_vkey)
        self.anchors = Anchors(self.ledger.root, *anchored, self._client)
        index = home / "index.sqlite"
        self.ledgers = Ledgers(self.records, self.witness, index, clock, subjects.key_of, config.keep_days)
        peers = Peers(name, self.records, self.witness, self.ledgers.sealed_logs, self._client, key, clock)
        callers = Callers(registry, self.stops, key, clock, domain, audience, self._shared)
        self.records.listen(callers.hear)
        proofs = Proofs(registry, clock, self._shared)
        statements = Statements(
            self.records,
            registry,
            self.stops,
            self.standings,
            delegations,
            proofs,
            subjects,
            self.bundles,
            self.desk,
            clock,
        )
        reaching = Reaching(self._client, self._accepted, peers)
        self._prover = Prover(
            self.fleet,
            Challenger(reaching, key, clock),
            asks,
            self.router.measured,
            self._policies,
            domain,
            clock,
        )
        breaker = Breaker(config.breaker.limits)
        attempts = Attempts(
            self.records,
            statements,
            self.stops,
            self.standings,
            breaker,
            callers.sessions,
            self.router,
            reaching,
            key,
            clock,
            _credentials(config),
            self.telemetry,
        )
        self._recall = Recall(self.records, self.ledgers.index, self._shared, clock, config.labels_keep_s)
        tries = Tries(self.fleet, self.router, attempts)
        dispatcher = self._dispatcher = Dispatcher(
            self.records,
            statements,
            self.stops,
            self.standings,
            breaker,
            self.desk,
            tries,
            clock,
            self.telemetry,
            self._recall,
        )
        secret = key.derive("console") if config.database else _secret(home / "console.secret")
        passkeys = Passkeys(self.records, clock, secret, lambda: self.console)
        if config.oidc is not None:
            self._oidc = Oidc(config.oidc, self.records, clock, secret, lambda: self.console)
        votes = Votes(self.records, registry, self.desk, statements, self.bundles, passkeys, clock)
        await votes.conclude_the_rest()
        control = Control(self.records)
        self.ledgers.index.agents_of = control.agents_of
        services = Services(
            records=self.records,
            control=control,
            registry=registry,
            servers=servers,
            stops=self.stops,
            standings=self.standings,
            delegations=delegations,
            subjects=subjects,
            people=people,
            bundles=self.bundles,
            feed=self._feed,
            desk=self.desk,
            votes=votes,
            passkeys=passkeys,
            oidc=self._oidc,
            fleet=self.fleet,
            router=self.router,
            accepted=self._accepted,
            prover=self._prover,
            statements=statements,
            dispatcher=dispatcher,
            callers=callers,
            certificates=self._tls,
            witness=self.witness,
            recall=self._recall,
            ledgers=self.ledgers,
            anchors=self.anchors,
            policies=config.policies,
            peers=peers,
            packer=Packer(self.ledgers, self.witness.name, self.witness.vkey, key.public),
            key=key,
            clock=clock,
            trust_domain=domain,
            audience=audience,
        )
        self._notices = Notices(config.notify, self.records, self.desk, self.telemetry, clock, lambda: self.console)
        public, scheme = (config.public_url or "").lower(), "https" if self._tls else "http"
        self._console = Console(services, secret, secure=(public or scheme).startswith("https"))
        self._api = Api(services, self._console, self.telemetry.metrics)
        self._watch()
        self.telemetry.open(config.otlp or "", "licet-gateway", "main", VERSION)
        hosts: set[str] = set()
        border = Border(hosts, max_body=MAX_DISPATCH_BYTES, scheme=scheme, public_url=public)
        server = Server(self._serve, self._refuse_unread, border)
        self._listener = Listener(server)
        secured = self._tls.incoming if self._tls else None
        self.port = await self._listener.open(config.host, config.port, secured, shared=bool(config.own_port))
        if config.own_port:
            self._own = Listener(server)
            await self._own.open(config.host, config.own_port, secured)
        names = (config.host, CONSOLE_HOST, *config.hostnames)
        hosts.update(url.partition("://")[2] for url in (config.peer_url, public) if url)
        for port in {self.port, config.own_port or self.port}:
            hosts.update(authorities(port, *names))
        self._console.origin = public or f"{scheme}://{CONSOLE_HOST}:{self.port}"
        self._tasks = [
            *([asyncio.create_task(self._replica.work())] if self._replica is not None else []),
            asyncio.create_task(self._tick()),
            asyncio.create_task(self._keep_policies()),
            asyncio.create_task(self.standings.work()),
            asyncio.create_task(self.ledgers.work()),
            asyncio.create_task(self.anchors.work()),
            asyncio.create_task(self._notices.work()),
            asyncio.create_task(self._prover.work()),
            asyncio.create_task(self.fleet.hear_leases()),
            asyncio.create_task(self._recall.work(dispatcher.busy)),
            asyncio.create_task(peers.work()),
        ]

    @property
    def console(self) -> str:
        """The origin under which browsers find the console."""
        return self._console.origin

    def _policies(self) -> Compiled | None:
        return self.bundles.compiled

    def _watch(self) -> None:
        """What is worth an alarm."""
        watch = self.telemetry.tally.watch
        watch("licet_ledger_entries", "Entries in this process's ledger.", lambda: self.ledger.size)
        watch("licet_ledger_broken", "1 if nothing can be recorded any more.", lambda: float(bool(self.ledger.fault)))
        watch("licet_anchored_entries", "Entries of this log that are held fast outside.", lambda: self.anchors.size)
        watch("licet_approvals_pending", "Requests that wait for a person.", lambda: self.desk.pending)
        watch(
            "licet_nodes_alive",
            "Nodes whose lease runs.",
            lambda: sum(one.alive for one in self.fleet.candidates()),
        )
        watch(
            "licet_logs_witnessed", "Logs of sidecars and nodes that are witnessed.", lambda: len(self.witness.logs())
        )
        watch(
            "licet_logs_contradicted",
            "Logs that contradict what was witnessed of them.",
            lambda: sum(bool(log.wrong) for log in self.witness.logs()),
        )
        watch(
            "licet_bundle_version",
            "The version of the active policy bundle; 0 without one.",
            lambda: self.bundles.sealed.content.version if self.bundles.sealed else 0,
        )

    async def _first_operator(self, people: People) -> None:
        """On the first start somebody must be able to register the others."""
        path = self.config.first_home / "operator.token"
        if any(True for _ in self._store.all(Person)):
            return
        try:
            token = await people.register("operator", [OPERATOR, AUTHOR], "gateway")
        except Unverifiable:
            if any(True for _ in self._store.all(Person)):
                return  # another gateway, which starts at the same time, was first
            raise
        write_atomically(path, token.encode() + b"\n", flush=True)

    async def _keep_policies(self) -> None:
        """Beside the other periodic tasks: preparing policies may take seconds."""
        while True:
            await asyncio.sleep(1.0)
            try:
                await self.bundles.settle()
                await self.bundles.renew_when_due()
            except (LedgerUnavailable, Unverifiable) as fault:
                _log.error("policies were not renewed, trying again: %s", fault)
            except Exception:
                _log.exception("policies were not renewed; it is tried again in a second")

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            try:
                await self.desk.attend()
                await self.desk.cancel_stopped()
                await self.registry.end_drained_keys()
                if self._tls is not None:
                    self._tls.renew_when_due()
                if self.admission is not None:
                    self.admission.show_renewed()
            except LedgerUnavailable as fault:
                _log.error("ledger unavailable: %s", fault)
            except Exception:
                _log.exception("a periodic task failed; it is tried again in a second")

    async def _serve(self, incoming: Incoming) -> StreamResponse:
        decision_id, caller = new_id("dec"), ""
        try:
            return await self._api.routes.find(incoming)()
        except Unverifiable as bad:
            no = Refusal.of(2 if bad.reason in (Reason.UNAUTHENTICATED, Reason.REPLAYED) else 8, bad)
            caller = bad.caller
        except LedgerUnavailable as fault:
            no = Refusal(6, Reason.LEDGER_UNAVAILABLE, str(fault))
        except Exception as bug:
            _log.error("%s %s failed:\n%s", incoming.method, incoming.path, traceback.format_exc())
            no = Refusal(8, Reason.INTERNAL_ERROR, type(bug).__name__)
        answer = await self._refuse(no, f"{caller} {caller_of(incoming.raw)}".strip(), decision_id)
        return self._console.refusal(incoming, no, decision_id) if _is_page(incoming) else answer

    async def _refuse_unread(self, no: Refusal, caller: str) -> StreamResponse:
        return await self._refuse(no, caller, new_id("dec"))

    async def _refuse(self, no: Refusal, caller: str, decision_id: str) -> Response:
        """Recorded before the caller hears of it; if that fails, the ledger's fault is the answer."""
        self.telemetry.tally.count("licet_refusals", (("reason", str(no.reason)),))
        try:
            await self.records.note(
                entries.Refusal(no.step, str(no.reason), report.detail(no), decision_id, caller=caller)
            )
        except LedgerUnavailable as fault:
            no = Refusal(6, Reason.LEDGER_UNAVAILABLE, str(fault))
        return problem(no, decision_id)

    async def drain(self) -> None:
        """Whoever listens here, and whoever asks anew, goes to another gateway."""
        if not self.config.drain_s:
            return
        self._feed.closing = True
        self._feed.wake()
        for door in (self._listener, self._own):
            if door is not None:
                await door.leave()
        await settled(self._dispatcher.busy.total, self.config.drain_s)

    async def stop(self) -> None:
        self._feed.closing = True
        self._feed.wake()
        self.bundles.close()
        self.desk.close()
        self._console.close()
        await self._accepted.close()
        await self._listener.close()
        for door in (self._own, self.admission):
            if door is not None:
                await door.close()
        await ended(self._tasks)
        await self._client.close()
        await self._notices.close()
        if self._oidc is not None:
            await self._oidc.close()
        if self._shared is not None:
            await self._shared.close()
        await self.records.close()
        await self.ledger.end()
        await self.ledgers.close()
        self._store.close()
        self._subject_file.close()
        await asyncio.to_thread(self.telemetry.close)


def _key(config: GatewayConfig) -> SecretKey:
    """What everything is signed with that this gateway says. Everybody enrolled with it, so it stays the same."""
    own = config.home / "gateway.key"
    if config.key_file is None:
        return SecretKey.load_or_create(own)
    key = SecretKey.load(config.key_file)
    if own.exists() and SecretKey.load(own).public != key.public:
        raise LedgerDamaged(
            f"{config.key_file} is another key than {own}, with which this gateway signed until now and everybody "
            f"enrolled; name {own} as key_file, or a copy of it, here and at the other gateways"
        )
    return key


def _secret(path: Path) -> bytes:
    """32 bytes that only this gateway has."""
    if not path.exists():
        write_atomically(path, secrets.token_bytes(32), flush=True)
    return path.read_bytes()


def _is_page(incoming: Incoming) -> bool:
    """Whether a browser shows the answer to a person."""
    return incoming.path.startswith(ROOT) and "text/html" in (incoming.header("accept") or "")


MAX_DISPATCH_BYTES = 8 << 20
"""A payload of the largest size that a sidecar accepts, with its statement."""


def _credentials(config: GatewayConfig) -> Credentials:
    """Header values by namespace and server, read once; a missing file stops the start, not the first call."""
    found: Credentials = {}
    for credential in config.credentials:
        value = credential.value_file.read_text("utf-8").strip()
        found.setdefault((credential.namespace, credential.server), {})[credential.header] = value
    return found
