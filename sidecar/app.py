"""A sidecar, assembled: identity, what it knows from the gateway, memory, ledger, pipeline, server."""

from __future__ import annotations

import asyncio
import logging
import secrets
import traceback
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import msgspec

from edge import metrics, tls
from edge.backoff import Backoff
from edge.blobs import Blobs
from edge.client import Broken, Client, Unreachable
from edge.clock import SystemClock, new_id
from edge.durable import DurableLedger
from edge.http import (
    Border,
    Incoming,
    Listener,
    Server,
    StreamResponse,
    authorities,
    caller_of,
    json_response,
    require_c_parser,
    require_free,
)
from edge.routes import RouteHandler, Routes
from edge.stopping import ended, settled
from edge.telemetry import Telemetry
from edge.webhooks import TIMEOUT_S, Webhook
from sidecar.answers import Refused
from sidecar.callers import DELEGATION_HEADER, Callers
from sidecar.config import SidecarConfig, Worker
from sidecar.decided import Decided
from sidecar.enrolment import CURRENT_KEY, ENROLMENT
from sidecar.forgetting import Forgetting
from sidecar.guests import Guests
from sidecar.identity import Identity, NotEnrolled
from sidecar.ingress import actions
from sidecar.ingress.common import require_run
from sidecar.ingress.oauth import METADATA, OAuth
from sidecar.journal import Journal, OwnJournal, Recall, SharedJournal
from sidecar.left import KEYS, Left
from sidecar.mandates import Mandates
from sidecar.memories import Gone, Memories
from sidecar.pipeline import Caller
from sidecar.recovery import Before, Past
from sidecar.served import Served
from sidecar.shipping import Shipper
from sidecar.siblings import Siblings
from sidecar.world import View, World
from trust.canonical import read_object
from trust.identity import delegation
from trust.identity.keys import SecretKey, b64url
from trust.ledger import entries
from trust.ledger.disk import Disk
from trust.ledger.shipment import log_of
from trust.ledger.tiles import write_atomically
from trust.policy.inventory import require_server_name
from trust.reasons import Reason, Unverifiable
from trust.verdict import Refusal

VERSION = "0.1.0"
HEADER_NAME_BYTES = 64
AGENT_FILE = "agent.token"
MIN_TOKEN_CHARACTERS = 32
RUN_LIVES_S = 86_400
READY_WITHIN_S = 5.0
KEEP_EVERY_S = 3600.0
LOOK_S = 0.02
MAX_IN_FLIGHT = 1024
"""More would only wait inside; refusing early keeps answers quick."""
_log = logging.getLogger("licet.sidecar")


class Sidecar:
    """Use :meth:`start` and :meth:`stop`; ``port`` and ``token`` are known after the start."""

    def __init__(self, config: SidecarConfig, disk: Disk | None = None) -> None:
        self.config = config
        self._disk = disk
        self._in_flight = 0
        self._kept_at = 0.0
        self.telemetry = Telemetry()
        self.port = 0
        self.token = ""

    async def start(self) -> None:
        require_c_parser()
        if self.config.worker is None:
            require_free(self.config.host, self.config.port)
        authority = self.config.gateway_ca
        self._tls = tls.client(authority, "gateway") if authority is not None else None
        self._client = Client(tls=self._tls)
        try:
            await self._start()
        except BaseException:
            await self._client.close()
            raise

    async def _start(self) -> None:
        config, clock = self.config, SystemClock()
        home = config.home
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        if config.identity_from is not None and config.is_first:
            _copy_identity(config.identity_from, home)
        self.identity = await Identity.obtain(
            config.shared_home,
            config.gateway_urls,
            config.enrolment,
            self._client,
            clock,
            config.key_service,
            config.instance,
        )
        self.identity.certificates = home
        await self.identity.certify(self._tls, config.tls_certificate, config.tls_key)
        self.ledger = self._open_ledger(home, config.instance)
        self.shipper = Shipper(self.identity, self.ledger.root, clock)
        found = self.ledger.size
        self._before = Before(Memories(config.labels_keep_s))
        self._own = self._before.read(self.ledger.lines(), clock.now())
        self._left = Left(config, self._open_ledger)
        if config.is_first:
            await self._left.read(self._before, self.identity, clock)
        await self.ledger.append(entries.Start(VERSION, found))
        for outcome in self._own.unfinished:
            await self.ledger.append(outcome)
        self._journal, self._siblings = self._join(config.worker)
        self.world = World(
            self.identity,
            home / "bundles",
            self.ledger,
            self.shipper,
            clock,
            self._own.newest_bundle,
            config.unwitnessed_s,
        )
        await self.world.load_last_good()
        self.token = _token(self.config)
        self._blobs, self._run = Blobs(home / "blobs"), _run(config.shared_home, clock, keep=not config.is_first)
        self.own = self._serve_agent(self.identity.name, self.identity.own_keys, View(self.world, self.world.own))
        self.pipeline = self.own.pipeline
        self._decided: Decided | None = None
        if config.webhook is not None:
            client = Client(total_timeout_s=TIMEOUT_S)  # it goes elsewhere than to the gateway
            webhook = Webhook(config.webhook.url, config.webhook.secret_file, client, clock)
            self._decided = Decided(home / "awaited", webhook, client, self.pipeline.approvals.states)
            self.pipeline.on_held = self._decided.follow
        self._mandates = Mandates(
            self.own.chains, config.shared_home / "mandates", self.token, clock, removes=config.is_first
        )
        self._oauth = OAuth(config.oauth, self._client, clock) if config.oauth is not None else None
        self._guests = Guests(config.guests, self.identity, self.world, self._journal, clock, self._serve_agent)
        self._callers = Callers(self.own, self.token, self._mandates, self._oauth, self._guests)
        self._routes = self._make_routes()
        self._watch()
        self.telemetry.open(config.otlp or "", "licet-sidecar", self.identity.name, VERSION)
        shippers = [self.shipper, *self._left.shippers]
        forgetting = Forgetting(self.ledger, self.shipper, clock, config.keep_days, self.world.tell_again, self._blobs)
        work = [self.world.follow_bundle(), self.world.own.follow(), self._tick(), *(one.work() for one in shippers)]
        work.append(forgetting.work())
        self._tasks = [asyncio.create_task(one) for one in work]
        if self._siblings is not None:
            await self._siblings.open(self._act_for_sibling, self._refuse_unread, self.telemetry.tally)
            self.telemetry.metrics.of_workers = partial(self._siblings.tallies, self.telemetry.tally)
            await self._until_ready()
        await self._listen()

    def _open_ledger(self, home: Path, instance: str) -> DurableLedger:
        """That of one worker: its own, or what another has left."""
        return DurableLedger(
            home / "ledger",
            origin=log_of(self.identity.enrolment.trust_domain, "sidecar", self.identity.name, instance),
            key=SecretKey.load_or_create(home / "ledger.key"),
            clock=SystemClock(),
            segment_bytes=self.config.segment_bytes,
            disk=self._disk,
        )

    def _join(self, worker: Worker | None) -> tuple[Journal, Siblings | None]:
        """Be one of several: the first of them brings what all ledgers say, unless it was started again."""
        if worker is None:
            return OwnJournal(self._before.memories), None
        kept = worker.family / KEYS
        begins = worker.number == 1 and not kept.exists()
        journal = SharedJournal(worker.family, worker.number, self._before.memories if begins else None)
        if begins:
            write_atomically(kept, msgspec.msgpack.encode(self._before.keys))
        for agent, keys in msgspec.msgpack.decode(kept.read_bytes(), type=dict[str, dict[str, float]]).items():
            self._before.keys[agent] = {**keys, **self._before.keys[agent]}
        journal.tell(Gone(worker.number))
        return journal, Siblings(worker.family, worker.number, worker.of)

    async def _until_ready(self) -> None:
        """Nothing comes to a worker that would only say that it has just begun; for some seconds, if it stays so."""
        for _ in range(int(READY_WITHIN_S / LOOK_S)):
            if all(self.checks().values()):
                return
            await asyncio.sleep(LOOK_S)

    def _serve_agent(self, agent: str, own_keys: Callable[[], frozenset[bytes]], view: View) -> Served:
        return Served(
            agent,
            own_keys,
            self.identity,
            view,
            Recall(agent, self._journal),
            Past(self._before.keys[agent], self._own.refusals[agent]),
            self._siblings,
            self.ledger,
            self._blobs,
            SystemClock(),
            self._run,
            self.config.hold_wait_s,
            self.telemetry,
        )

    def _watch(self) -> None:
        """What is worth an alarm."""
        watch, world = self.telemetry.tally.watch, self.world
        watch("licet_in_flight", "Requests that are being answered.", lambda: self._in_flight)
        watch("licet_ready", "1 if every check of readiness holds.", lambda: float(all(self.checks().values())))
        watch("licet_ledger_entries", "Entries in this process's ledger.", lambda: self.ledger.size)
        watch("licet_ledger_broken", "1 if nothing can be recorded any more.", lambda: float(bool(self.ledger.fault)))
        watch("licet_facts_age_seconds", "Since the gateway was last heard.", world.age_s)
        watch("licet_unwitnessed_seconds", "Since all of the ledger was witnessed.", self.shipper.unwitnessed_s)
        watch(
            "licet_bundle_version",
            "The version of the policy bundle in use; 0 without one.",
            lambda: world.bundle.content.version if world.bundle else 0,
        )

    async def _listen(self) -> None:
        hosts: set[str] = set()
        longest = delegation.MAX_CHAIN_BYTES + HEADER_NAME_BYTES
        border = Border(hosts, frozenset({DELEGATION_HEADER}), max_header=longest)
        self._listener = Listener(Server(self._serve, self._refuse_unread, border))
        self.port = await self._listener.open(self.config.host, self.config.port, shared=self.config.worker is not None)
        if self._oauth is not None:
            self._oauth.base = f"http://{self.config.host}:{self.port}"
        hosts.update(authorities(self.port, self.config.host, *self.config.hostnames))

    def _make_routes(self) -> Routes:
        routes, served = Routes(), self._served
        routes.add("GET", "/livez", self._livez)
        routes.add("GET", "/readyz", self._readyz)
        routes.add("GET", metrics.PATH, self.telemetry.metrics.serve)
        routes.add("POST", "/v1/actions", served(lambda agent: agent.actions.act))
        routes.add("GET", "/v1/tools", served(lambda agent: agent.actions.tools))
        routes.add("GET", "/v1/approvals/{approval}", served(lambda agent: agent.actions.approval))
        routes.add("GET", "/v1/approvals/{approval}/events", served(lambda agent: agent.actions.events))
        routes.add("POST", "/v1/approvals/{approval}/claim", served(lambda agent: agent.actions.claim))
        routes.add("POST", "/v1/mandates", served(lambda agent: partial(self._accept_chain, agent)))
        for method in ("POST", "GET", "DELETE"):
            routes.add(method, "/mcp/{server}", served(lambda agent: agent.mcp.serve))
        if self._oauth is not None:
            routes.add("GET", METADATA + "/mcp/{server}", self._metadata)
        return routes

    async def _metadata(self, _incoming: Incoming, server: str) -> StreamResponse:
        if self._oauth is None:
            raise Unverifiable(Reason.NOT_FOUND, "no OAuth here")
        return json_response(self._oauth.metadata(require_server_name(server)))

    def _served(self, pick: Callable[[Served], RouteHandler]) -> RouteHandler:
        """What *pick* takes of whoever asks answers; nobody is answered who was not identified."""

        async def handle(incoming: Incoming, **parameters: str) -> StreamResponse:
            agent, caller = await self._callers.identify(incoming, parameters.get("server"))
            return await pick(agent)(incoming, caller, **parameters)

        return handle

    async def _accept_chain(self, agent: Served, incoming: Incoming, caller: Caller) -> StreamResponse:
        """A token for a program that is to act under a chain."""
        if caller.authn != "bound" or caller.chain or agent is not self.own:
            raise Unverifiable(Reason.NOT_YOURS, "this needs the agent's own token")
        asked = read_object(incoming.body).get("chain")
        if not isinstance(asked, str) or not asked.isascii():
            raise Unverifiable(Reason.MALFORMED_REQUEST, 'expected {"chain": "root~…~leaf"}')
        token, authority = self._mandates.accept(asked.strip())
        told = {
            "token": token,
            "principal": authority.principal,
            "tools": sorted(authority.tools),
            "tokens": list(authority.tokens),
            "expires_at": authority.expires_at,
        }
        return json_response(told, 201)

    async def _livez(self, _incoming: Incoming) -> StreamResponse:
        """A ledger that cannot be written stays so until a restart."""
        live = self.ledger.fault is None
        return json_response({"live": live}, 200 if live else 503)

    async def _readyz(self, incoming: Incoming) -> StreamResponse:
        checks = self.checks()
        ready = all(checks.values())
        digest = self.world.bundle.digest if self.world.bundle else ""
        known = self._callers.knows(incoming)
        return json_response(
            {"ready": ready, "checks": checks, "bundle": digest, "known": known}, 200 if ready else 503
        )

    def checks(self) -> dict[str, bool]:
        """What readiness is made of."""
        bundle = self.world.bundle
        return {
            "bundle": bundle is not None and bundle.content.not_after > SystemClock().now(),
            "ledger": self.ledger.fault is None,
            "facts": self.world.age_s() < 5.0,
        }

    async def _serve(self, incoming: Incoming) -> StreamResponse:
        return await self._answered(incoming, lambda: self._routes.find(incoming)())

    async def _act_for_sibling(self, agent: str, incoming: Incoming, caller: Caller) -> StreamResponse:
        """What another worker was asked for, under a key that is this one's."""

        async def act() -> StreamResponse:
            served = self.own if agent == self.own.agent else await self._guests.named(agent)
            return await served.actions.act(incoming, caller)

        return await self._answered(incoming, act)

    async def _answered(self, incoming: Incoming, answer: Callable[[], Awaitable[StreamResponse]]) -> StreamResponse:
        if self._in_flight >= MAX_IN_FLIGHT:
            no = Refusal(1, Reason.OVERLOADED, f"{MAX_IN_FLIGHT} requests are in flight", retry_after_s=1)
            return await self._refuse(no, caller_of(incoming.raw))
        self._in_flight += 1
        try:
            return await answer()
        except Unverifiable as bad:
            step = 2 if bad.reason is Reason.UNAUTHENTICATED else 1
            no = Refusal.of(2 if step == 2 else 1, bad)
        except Exception as bug:
            _log.error("%s %s failed:\n%s", incoming.method, incoming.path, traceback.format_exc())
            no = Refusal(1, Reason.INTERNAL_ERROR, type(bug).__name__)
        finally:
            self._in_flight -= 1
        response = await self._refuse(no, caller_of(incoming.raw))
        if self._oauth is not None and response.status == 401 and incoming.path.startswith("/mcp/"):
            response.headers["WWW-Authenticate"] = self._oauth.challenge(incoming.path.removeprefix("/mcp/"))
        return response

    async def _refuse_unread(self, no: Refusal, caller: str) -> StreamResponse:
        return await self._refuse(no, caller)

    async def _refuse(self, no: Refusal, caller: str) -> StreamResponse:
        self.telemetry.tally.count("licet_refusals", (("reason", str(no.reason)),))
        refused: Refused = await self.pipeline.refuse_with(no, new_id("dec"), caller=caller)
        response = await actions.respond(refused)
        if no.reason is Reason.UNAUTHENTICATED:
            response.headers["WWW-Authenticate"] = 'Bearer realm="licet"'
        return response

    async def _tick(self) -> None:
        """Renew the identity in time, and do what the gateway's facts ask for."""
        backoff = Backoff()
        while True:
            wait = 1.0
            try:
                if SystemClock().mono() > self._kept_at + KEEP_EVERY_S:
                    self._kept_at = SystemClock().mono()
                    self._journal.keep()
                with self._journal:
                    pass  # what others did is read now, and not all at once when somebody waits for a decision
                if self.world.is_revoked():
                    await asyncio.sleep(wait)
                    continue
                await self._look_after_identity()
                await self.identity.certify_when_due(self._tls)
                await self.identity.open_session_when_due()
                await self.own.report()
                backoff.reset()
            except (Unreachable, Broken) as bad:
                _log.warning("the gateway did not answer, trying again: %s", bad)
            except Unverifiable as bad:
                wait = max(wait, backoff.next())
                _log.warning("the gateway refused what is due (%s); asked again in %.0f s", bad.detail, wait)
            except Exception:
                _log.exception("what is done each second failed; it is tried again")
            await asyncio.sleep(wait)

    async def _look_after_identity(self) -> None:
        """Renew it, and rotate the key when the gateway asks for that; one worker does so for all."""
        if not self.config.is_first:
            if self.identity.follow_files():
                self._mandates.read_again()
            return
        await self.identity.renew_when_due()
        facts = self.world.facts
        if facts is not None and facts.rotate and facts.rotate == b64url(self.identity.key.public.raw):
            await self.identity.rotate(self._mandates.hand_over)

    async def drain(self) -> None:
        if self.config.drain_s:
            await self._listener.leave()
            await settled(lambda: self._in_flight, self.config.drain_s)

    async def stop(self) -> None:
        await ended(self._tasks)
        await self._guests.close()
        if self._decided is not None:
            await self._decided.close()
        await self._listener.close()
        if self._siblings is not None:
            await self._siblings.close()
        await self._left.close()
        await self.ledger.end()
        await self.shipper.ship_the_rest()
        await self._client.close()
        await asyncio.to_thread(self.telemetry.close)


def _run(home: Path, clock: SystemClock, keep: bool) -> str:
    """The run of whoever names none. It outlives a restart, so that what waits for a person is found again; *keep*: and
    for as long as the first worker has it."""
    path = home / "run"
    if path.exists() and (keep or clock.now() - path.stat().st_mtime < RUN_LIVES_S):
        found = path.read_text("ascii").strip()
        if found:
            return require_run(found)
    run = new_id("run")
    write_atomically(path, run.encode() + b"\n")
    return run


def _copy_identity(source: Path, home: Path) -> None:
    """What somebody else enrolled for this sidecar, as a Secret gives it; what is in *home* already stays."""
    for name in (CURRENT_KEY, ENROLMENT, AGENT_FILE):
        if (source / name).exists() and not (home / name).exists():
            write_atomically(home / name, (source / name).read_bytes(), flush=True)


def _token(config: SidecarConfig) -> str:
    """The local token, made on the first start; whoever can read the file is the agent."""
    path = config.shared_home / AGENT_FILE
    if not path.exists():
        write_atomically(path, secrets.token_urlsafe(32).encode() + b"\n", flush=True)
    token = path.read_text("ascii").strip()
    if len(token) < MIN_TOKEN_CHARACTERS:
        raise NotEnrolled(f"{path} holds no token of {MIN_TOKEN_CHARACTERS} characters; remove it to get a new one")
    return token
