"""A sidecar, assembled: identity, what it knows from the gateway, memory, ledger, pipeline, server."""

from __future__ import annotations

import asyncio
import base64
import hmac
import logging
import secrets
import traceback
from pathlib import Path

from edge import tls
from edge.blobs import Blobs
from edge.client import Broken, Client, Unreachable
from edge.clock import SystemClock, new_id
from edge.durable import DurableLedger
from edge.http import Border, Incoming, Listener, Server, StreamResponse, caller_of, json_response, require_c_parser
from edge.routes import RouteHandler, Routes
from sidecar.answers import Refused
from sidecar.config import SidecarConfig
from sidecar.identity import Identity, NotEnrolled
from sidecar.ingress import actions
from sidecar.ingress.actions import Actions
from sidecar.ingress.common import require_run
from sidecar.ingress.mcp import Mcp
from sidecar.ingress.oauth import METADATA, OAuth
from sidecar.ingress.repeats import Repeats
from sidecar.mandates import Mandates
from sidecar.memory import Memory
from sidecar.pipeline import Caller, Pipeline
from sidecar.recovery import recover
from sidecar.reports import Reports
from sidecar.world import World
from trust.canonical import read_object
from trust.identity import delegation
from trust.identity.keys import SecretKey, b64url
from trust.ledger import entries
from trust.ledger.disk import Disk
from trust.ledger.tiles import write_atomically
from trust.policy.inventory import require_server_name
from trust.reasons import Reason, Unverifiable, visible
from trust.verdict import Refusal

VERSION = "0.1.0"
DELEGATION_HEADER = "licet-delegation"
HEADER_NAME_BYTES = 64
MIN_TOKEN_CHARACTERS = 32
RUN_LIVES_S = 86_400
MAX_IN_FLIGHT = 1024
"""More would only wait inside; refusing early keeps answers quick."""
_log = logging.getLogger("licet.sidecar")


class Sidecar:
    """Use :meth:`start` and :meth:`stop`; ``port`` and ``token`` are known after the start."""

    def __init__(self, config: SidecarConfig, disk: Disk | None = None) -> None:
        self.config = config
        self._disk = disk
        self._in_flight = 0
        self.port = 0
        self.token = ""

    async def start(self) -> None:
        require_c_parser()
        authority = self.config.gateway_ca
        self._tls = tls.client(authority) if authority is not None else None
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
        self.identity = await Identity.obtain(
            home, config.gateway_url, config.enrolment_token, self._client, clock, config.key_service
        )
        await self.identity.certify(self._tls, config.tls_certificate, config.tls_key)
        self.ledger = DurableLedger(
            home / "ledger",
            origin=f"{self.identity.enrolment.trust_domain}/sidecar/{self.identity.name}",
            key=SecretKey.load_or_create(home / "ledger.key"),
            clock=clock,
            segment_bytes=config.segment_bytes,
            disk=self._disk,
        )
        memory = Memory(config.labels_keep_s)
        found = self.ledger.size
        before = recover(self.ledger, memory, clock.now())
        await self.ledger.append(entries.Start(VERSION, found))
        for outcome in before.unfinished:
            await self.ledger.append(outcome)
        self.world = World(self.identity, home / "bundles", self.ledger, clock, before.newest_bundle)
        await self.world.load_last_good()
        self.token = _token(self.config)
        self._mandates = Mandates(self.identity, self.world, home / "mandates", self.token, clock)
        self._reports = Reports(self.identity, before.refusals)
        self.pipeline = Pipeline(
            self.identity,
            self.world,
            self._mandates,
            self._reports,
            memory,
            self.ledger,
            Blobs(home / "blobs"),
            clock,
        )
        run = _run(home, clock)
        self._actions = Actions(self.pipeline, run, Repeats(before.keys, clock.now))
        self._mcp = Mcp(self.pipeline, clock, run, config.hold_wait_s)
        self._oauth = OAuth(config.oauth, self._client, clock) if config.oauth is not None else None
        self._routes = self._make_routes()
        await self._listen()
        self._tasks = [
            asyncio.create_task(self.world.follow_bundle()),
            asyncio.create_task(self.world.follow_feed()),
            asyncio.create_task(self._tick()),
        ]

    async def _listen(self) -> None:
        hosts: set[str] = set()
        longest = delegation.MAX_CHAIN_BYTES + HEADER_NAME_BYTES
        border = Border(hosts, frozenset({DELEGATION_HEADER}), max_header=longest)
        self._listener = Listener(Server(self._serve, self._refuse_unread, border))
        self.port = await self._listener.open(self.config.host, self.config.port)
        if self._oauth is not None:
            self._oauth.base = f"http://{self.config.host}:{self.port}"
        names = (self.config.host, "localhost", *self.config.hostnames)
        hosts.update(f"{name}:{self.port}" for name in names)

    def _make_routes(self) -> Routes:
        routes, bound = Routes(), self._bound
        routes.add("GET", "/livez", self._livez)
        routes.add("GET", "/readyz", self._readyz)
        routes.add("POST", "/v1/actions", bound(self._actions.act))
        routes.add("GET", "/v1/approvals/{approval}", bound(self._actions.approval))
        routes.add("POST", "/v1/approvals/{approval}/claim", bound(self._actions.claim))
        routes.add("POST", "/v1/mandates", bound(self._accept_chain))
        for method in ("POST", "GET", "DELETE"):
            routes.add(method, "/mcp/{server}", bound(self._mcp.serve))
        if self._oauth is not None:
            routes.add("GET", METADATA + "/mcp/{server}", self._metadata)
        return routes

    async def _metadata(self, _incoming: Incoming, server: str) -> StreamResponse:
        if self._oauth is None:
            raise Unverifiable(Reason.NOT_FOUND, "no OAuth here")
        return json_response(self._oauth.metadata(require_server_name(server)))

    def _bound(self, handler: RouteHandler) -> RouteHandler:
        """The caller must bring the local token; everything it does counts as the agent's."""

        async def handle(incoming: Incoming, **parameters: str) -> StreamResponse:
            return await handler(incoming, await self._caller(incoming, parameters), **parameters)

        return handle

    async def _caller(self, incoming: Incoming, parameters: dict[str, str]) -> Caller:
        """Who asks: by a token of ours, or on MCP by an access token."""
        server = parameters.get("server")
        if self._oauth is not None and server is not None and incoming.bearer.count(".") == 2:
            facts = self.world.facts
            if facts is None:
                raise Unverifiable(Reason.STALE_FACTS, "the gateway has not been heard yet")
            bearer = await self._oauth.identify(incoming.bearer, require_server_name(server), facts.agent.owner)
            return Caller(f"oauth:{visible(bearer.client or bearer.subject, 64)}", self._brought(incoming) or "")
        return self._local(incoming)

    def _brought(self, incoming: Incoming) -> str | None:
        """The delegation chain that came along."""
        brought = incoming.header(DELEGATION_HEADER)
        if brought is not None and not brought.isascii():
            raise Unverifiable(Reason.DELEGATION_INVALID, "delegation: not ASCII")
        return brought

    def _local(self, incoming: Incoming) -> Caller:
        """The agent by its local token, or a program of its own by one that stands for a delegation chain."""
        offered, brought = _offered(incoming), self._brought(incoming)
        if hmac.compare_digest(offered, self.token.encode()):
            return Caller("bound", brought or "")
        chain = self._mandates.chain_of(offered)
        if chain is None:
            raise Unverifiable(Reason.UNAUTHENTICATED, "send Authorization: Bearer with the token of LICET_TOKEN")
        if brought is not None and brought != chain:
            raise Unverifiable(
                Reason.NOT_YOURS, "this token stands for one delegation chain; another cannot be brought"
            )
        return Caller("mandate", chain)

    async def _accept_chain(self, incoming: Incoming, caller: Caller) -> StreamResponse:
        """A token for a program that is to act under a chain."""
        if caller.chain:
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
        return json_response({"live": True})

    async def _readyz(self, incoming: Incoming) -> StreamResponse:
        checks = self.checks()
        ready = all(checks.values())
        digest = self.world.bundle.digest if self.world.bundle else ""
        known = hmac.compare_digest(_offered(incoming), self.token.encode())
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
        if self._in_flight >= MAX_IN_FLIGHT:
            no = Refusal(1, Reason.OVERLOADED, f"{MAX_IN_FLIGHT} requests are in flight", retry_after_s=1)
            return await self._refuse(no, caller_of(incoming.raw))
        self._in_flight += 1
        try:
            return await self._routes.find(incoming)()
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
        refused: Refused = await self.pipeline.refuse_with(no, new_id("dec"), caller=caller)
        response = await actions.respond(refused)
        if no.reason is Reason.UNAUTHENTICATED:
            response.headers["WWW-Authenticate"] = 'Bearer realm="licet"'
        return response

    async def _tick(self) -> None:
        """Renew the identity in time, and do what the gateway's facts ask for."""
        while True:
            try:
                await self.identity.renew_when_due()
                await self.identity.certify_when_due(self._tls, self.config.tls_certificate)
                await self.identity.open_session_when_due()
                await self._follow_up()
            except (Unreachable, Broken, Unverifiable) as bad:
                _log.warning("the identity was not renewed, trying again: %s", bad)
            except Exception:
                _log.exception("renewing the identity failed; it is tried again")
            await asyncio.sleep(1.0)

    async def _follow_up(self) -> None:
        facts = self.world.facts
        if facts is None:
            return
        await self._reports.tell(facts.heard)
        if facts.rotate and facts.rotate == b64url(self.identity.key.public.raw):
            await self.identity.rotate(self._mandates.hand_over)
            await self.identity.open_session_when_due()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        await self._listener.close()
        await self._client.close()
        await self.ledger.close()


def _run(home: Path, clock: SystemClock) -> str:
    """The run of whoever names none. It outlives a restart, so that what waits for a person is found again."""
    path = home / "run"
    if path.exists() and clock.now() - path.stat().st_mtime < RUN_LIVES_S:
        found = path.read_text("ascii").strip()
        if found:
            return require_run(found)
    run = new_id("run")
    write_atomically(path, run.encode() + b"\n")
    return run


def _token(config: SidecarConfig) -> str:
    """The local token, made on the first start; whoever can read the file is the agent."""
    path = config.home / "agent.token"
    if not path.exists():
        write_atomically(path, secrets.token_urlsafe(32).encode() + b"\n", flush=True)
    token = path.read_text("ascii").strip()
    if len(token) < MIN_TOKEN_CHARACTERS:
        raise NotEnrolled(f"{path} holds no token of {MIN_TOKEN_CHARACTERS} characters; remove it to get a new one")
    return token


def _offered(incoming: Incoming) -> bytes:
    """The token as Bearer, or as the password of Basic, which is what a token inside a URL becomes."""
    if incoming.bearer:
        return incoming.bearer.encode()
    scheme, _, value = (incoming.header("authorization") or "").partition(" ")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).partition(b":")[2]
        except ValueError:
            return b""
    return b""
