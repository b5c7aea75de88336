"""The gateway's HTTP interface: who may call what, and how requests become commands.

Workloads (sidecars and nodes) sign their requests (WIT and HTTP message signature). People bring a bearer
token. Enrolment brings a one-time token and proves the key that it wants bound.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from urllib.parse import parse_qs

import msgspec

from edge.clock import SystemClock
from edge.http import Incoming, Response, StreamResponse, json_response, relay
from edge.routes import RouteHandler, Routes
from gateway.approvals.desk import Desk, denial
from gateway.bundles import Bundles
from gateway.callers import Callers, Sender
from gateway.dispatch import Dispatcher
from gateway.feed import Feed
from gateway.people import AUTHOR, OPERATOR, People
from gateway.records import Records
from gateway.registry import NewAgent, NewNode, Registry
from gateway.router.nodes import Nodes
from gateway.state import AgentRecord, ApprovalRecord, Person, ServerRecord
from trust import wire
from trust.canonical import read_object
from trust.identity.keys import PublicKey, SecretKey, unb64url
from trust.ledger import entries
from trust.policy.bundle import BundleRejected, Sources
from trust.policy.inventory import Server, to_json
from trust.reasons import Reason, Unverifiable
from trust.verdict import Hold, Permit, Refusal

Message = TypeVar("Message", bound=msgspec.Struct)


class _Enroll(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    token: str
    key: dict[str, str]
    proof: str


class _OpenSession(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: str


class _Join(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    url: str
    servers: list[Server]


class _Heartbeat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    epoch: int


class _Vote(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    decision: str
    reason: str = ""


class _NewPerson(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    roles: list[str]


class _Kill(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    target: str
    reason: str


class _Accept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    offer: str


class _Activate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sources: Sources


def _decode(incoming: Incoming, kind: type[Message]) -> Message:
    read_object(incoming.body)  # refuses what is ambiguous; msgspec would take the last duplicate
    try:
        return msgspec.json.decode(incoming.body, type=kind)
    except msgspec.DecodeError as bad:
        raise Unverifiable(Reason.MALFORMED_REQUEST, str(bad)) from None


def _seconds(incoming: Incoming) -> float:
    try:
        return max(0.0, float(parse_qs(incoming.query).get("wait", ["0"])[0]))
    except ValueError:
        raise Unverifiable(Reason.MALFORMED_REQUEST, "wait: expected seconds") from None


class Api:
    """Routes of one gateway."""

    def __init__(
        self,
        *,
        records: Records,
        registry: Registry,
        people: People,
        bundles: Bundles,
        feed: Feed,
        desk: Desk,
        nodes: Nodes,
        dispatcher: Dispatcher,
        callers: Callers,
        key: SecretKey,
        clock: SystemClock,
        trust_domain: str,
        audience: str,
    ) -> None:
        self._records = records
        self._registry = registry
        self._people = people
        self._bundles = bundles
        self._feed = feed
        self._desk = desk
        self._nodes = nodes
        self._dispatcher = dispatcher
        self._key = key
        self._clock = clock
        self._trust_domain = trust_domain
        self._audience = audience
        self._callers = callers
        self.routes = Routes()
        self._add_routes()

    def _add_routes(self) -> None:
        add, signed, person = self.routes.add, self._signed, self._person
        add("GET", "/", self._home)
        add("GET", "/livez", self._livez)
        add("GET", "/readyz", self._readyz)
        add("POST", "/v1/enroll", self._enroll)
        add("POST", "/v1/wit", signed(self._renew, strong=True))
        add("GET", "/v1/bundle", signed(self._bundle))
        add("GET", "/v1/feed", signed(self._feed_stream))
        add("POST", "/v1/session", signed(self._open_session, strong=True))
        add("POST", "/v1/dispatch", signed(self._dispatcher.dispatch))
        add("POST", "/v1/nodes/join", signed(self._join, strong=True))
        add("POST", "/v1/nodes/heartbeat", signed(self._heartbeat))
        add("POST", "/v1/approvals", signed(self._request_approval))
        add("GET", "/v1/approvals/{approval}/action", signed(self._stored_action))
        add("GET", "/v1/approvals/{approval}/state", signed(self._approval_state))
        add("GET", "/v1/approvals", person(None, self._list_approvals))
        add("GET", "/v1/approvals/{approval}", person(None, self._show_approval))
        add("POST", "/v1/approvals/{approval}/votes", person(None, self._vote))
        add("GET", "/v1/agents", person(OPERATOR, self._list_agents))
        add("POST", "/v1/agents", person(OPERATOR, self._register_agent))
        add("GET", "/v1/nodes", person(OPERATOR, self._list_nodes))
        add("POST", "/v1/nodes", person(OPERATOR, self._register_node))
        add("GET", "/v1/servers", person(OPERATOR, self._list_servers))
        add("POST", "/v1/servers/{server}/accept", person(OPERATOR, self._accept_server))
        add("GET", "/v1/people", person(OPERATOR, self._list_people))
        add("POST", "/v1/people", person(OPERATOR, self._register_person))
        add("POST", "/v1/kills", person(OPERATOR, self._kill))
        add("POST", "/v1/kills/lift", person(OPERATOR, self._unkill))
        add("GET", "/v1/bundles", person(None, self._bundle_status))
        add("POST", "/v1/bundles", person(AUTHOR, self._activate))
        add("POST", "/v1/bundles/rollback", person(AUTHOR, self._rollback))

    # Who calls

    def _signed(self, handler: Callable[..., Awaitable[StreamResponse]], *, strong: bool = False) -> RouteHandler:
        async def handle(incoming: Incoming, **parameters: str) -> StreamResponse:
            return await handler(incoming, self._callers.identify(incoming, strong=strong), **parameters)

        return handle

    def _person(self, role: str | None, handler: Callable[..., Awaitable[StreamResponse]]) -> RouteHandler:
        async def handle(incoming: Incoming, **parameters: str) -> StreamResponse:
            token = incoming.bearer
            person = self._people.identify(token) if role is None else self._people.require(token, role)
            return await handler(incoming, person, **parameters)

        return handle

    # Health

    async def _home(self, _incoming: Incoming) -> Response:
        text = "Licet gateway. Approve with `licet approvals`, ask with `licet audit`.\n"
        return Response(text=text, headers={"Cache-Control": "no-store"})

    async def _livez(self, _incoming: Incoming) -> Response:
        return json_response({"live": True})

    async def _readyz(self, _incoming: Incoming) -> Response:
        fault = self._records.fault or self._records.ledger.fault
        checks = {
            "bundle": self._bundles.sealed is not None,
            "ledger": fault is None,
        }
        return json_response({"ready": all(checks.values()), "checks": checks}, 200 if all(checks.values()) else 503)

    # Workloads

    async def _enroll(self, incoming: Incoming) -> Response:
        asked = _decode(incoming, _Enroll)
        key = PublicKey.from_jwk(asked.key)
        key.verify(unb64url(asked.proof), f"licet-enroll {asked.token}".encode())
        workload = await self._registry.enroll(asked.token, key)
        self._feed.wake()
        return json_response(
            {
                "kind": workload.kind,
                "name": workload.name,
                "did": workload.did,
                "wit": self._registry.issue_wit(workload.kind, workload.name),
                "trust_domain": self._trust_domain,
                "audience": self._audience,
                "gateway_key": dict(self._key.public.jwk),
            }
        )

    async def _renew(self, _incoming: Incoming, sender: Sender) -> Response:
        return json_response({"wit": self._registry.issue_wit(sender.workload.kind, sender.workload.name)})

    async def _open_session(self, incoming: Incoming, sender: Sender) -> Response:
        """A session for whoever signed with its key; that signature is in the ledger before the session counts."""
        statement, entry = self._callers.open_session(sender, _decode(incoming, _OpenSession).key)
        await self._records.note(entry)
        return json_response({"statement": statement}, 201)

    async def _bundle(self, incoming: Incoming, _sender: Sender) -> Response:
        known = (incoming.header("if-none-match") or "").strip('"')
        sealed = await self._bundles.wait_for_other_than(known, _seconds(incoming))
        if sealed is None:
            raise Unverifiable(Reason.NO_BUNDLE, "no bundle is active")
        headers = {"ETag": f'"{sealed.digest}"', "Content-Type": "application/octet-stream"}
        if sealed.digest == known:
            return Response(status=304, headers={"ETag": headers["ETag"]})
        return Response(body=sealed.data, headers=headers)

    async def _feed_stream(self, incoming: Incoming, sender: Sender) -> StreamResponse:
        if sender.workload.kind != "agent":
            raise Unverifiable(Reason.NOT_YOURS, "the feed is for agents' sidecars")
        lines = self._feed.lines(sender.workload.name)
        response, _ = await relay(incoming, lines, 200, {"Content-Type": "application/x-ndjson"})
        return response

    async def _join(self, incoming: Incoming, sender: Sender) -> Response:
        asked = _decode(incoming, _Join)
        _require_node(sender)
        epoch, grown = await self._registry.join_node(sender.workload.name, asked.url, asked.servers)
        self._nodes.renew(sender.workload.name, epoch, self._clock.mono())
        if grown:
            await self._bundles.refresh(sender.workload.name)
        return json_response({"epoch": epoch})

    async def _heartbeat(self, incoming: Incoming, sender: Sender) -> Response:
        _require_node(sender)
        epoch = _decode(incoming, _Heartbeat).epoch
        if not self._nodes.renew(sender.workload.name, epoch, self._clock.mono()):
            raise Unverifiable(Reason.PERMIT_INVALID, f"epoch {epoch} of {sender.workload.name} is over; join again")
        return json_response({"state": self._registry.node(sender.workload.name).state})

    async def _request_approval(self, incoming: Incoming, sender: Sender) -> StreamResponse:
        if incoming.header("content-type") != wire.DISPATCH_TYPE:
            raise Unverifiable(Reason.UNSUPPORTED_MEDIA_TYPE, f"expected {wire.DISPATCH_TYPE}")
        asked = self._dispatcher.read(incoming, sender)
        match self._dispatcher.judge(asked, approved=False):
            case Hold(terms=terms):
                record = await self._desk.request(asked.action, asked.dispatch, terms)
                return json_response(_state_of(record), 201)
            case Permit():
                return await self._dispatcher.refuse(
                    asked, Refusal(7, Reason.APPROVAL_MISMATCH, "nobody needs to approve this; send it again")
                )
            case Refusal() as no:
                return await self._dispatcher.refuse(asked, no)

    def _own(self, approval: str, sender: Sender) -> ApprovalRecord:
        record = self._desk.get(approval)
        if sender.workload.kind != "agent" or record.agent != sender.workload.name:
            raise Unverifiable(Reason.NOT_YOURS, "this approval belongs to another agent")
        return record

    async def _approval_state(self, incoming: Incoming, sender: Sender, approval: str) -> Response:
        self._own(approval, sender)
        return json_response(_state_of(await self._desk.wait(approval, _seconds(incoming))))

    async def _stored_action(self, _incoming: Incoming, sender: Sender, approval: str) -> Response:
        dispatch, body = self._desk.stored(self._own(approval, sender))
        return Response(body=wire.encode(dispatch, body), headers={"Content-Type": wire.DISPATCH_TYPE})

    # People

    async def _list_approvals(self, incoming: Incoming, _person: Person) -> Response:
        wanted = parse_qs(incoming.query).get("state")
        found = [
            {**_shown(r), "payload": self._desk.text(r)}
            for r in self._desk.all()
            if wanted is None or r.state in wanted
        ]
        return json_response({"approvals": found})

    async def _show_approval(self, _incoming: Incoming, person: Person, approval: str) -> Response:
        record = self._desk.get(approval)
        async with self._records.deciding:
            await self._records.change(entries.Approval("viewed", approval, by=person.name))
        return json_response({**_shown(record), "payload": self._desk.text(record)})

    async def _vote(self, incoming: Incoming, person: Person, approval: str) -> Response:
        vote = _decode(incoming, _Vote)
        return json_response(_shown(await self._desk.vote(approval, person, vote.decision, vote.reason)))

    async def _list_agents(self, _incoming: Incoming, _person: Person) -> Response:
        agents = []
        for record in self._records.store.all(AgentRecord):
            killed = self._registry.killed(record.agent.name)
            agents.append(
                {
                    **msgspec.to_builtins(record.agent),
                    "state": "killed" if killed else "active" if record.agent.key else "registered",
                    "score": self._feed.facts(record.agent.name).score,
                }
            )
        return json_response({"agents": agents})

    async def _register_agent(self, incoming: Incoming, person: Person) -> Response:
        new = _decode(incoming, NewAgent)
        token = await self._registry.register_agent(new, person.name)
        return json_response({"name": new.name, "enrolment_token": token}, 201)

    async def _list_nodes(self, _incoming: Incoming, _person: Person) -> Response:
        now = self._clock.mono()
        return json_response(
            {
                "nodes": [
                    {
                        **{k: v for k, v in msgspec.to_builtins(c.node).items() if k != "token_sha256"},
                        "weight": str(c.node.weight),
                        "lease": "live" if c.lease_s > 0 else "expired",
                        "outstanding": c.outstanding,
                        "ejected": c.ejected,
                    }
                    for c in self._nodes.candidates(now)
                ]
            }
        )

    async def _register_node(self, incoming: Incoming, person: Person) -> Response:
        new = _decode(incoming, NewNode)
        token = await self._registry.register_node(new, person.name)
        return json_response({"name": new.name, "enrolment_token": token}, 201)

    async def _list_servers(self, _incoming: Incoming, _person: Person) -> Response:
        servers = [
            {
                **to_json(self._registry.admitted(record)),
                "admitted": record.admitted,
                "offers": self._registry.offers(record),
            }
            for record in self._records.store.all(ServerRecord)
        ]
        return json_response({"servers": servers})

    async def _accept_server(self, incoming: Incoming, person: Person, server: str) -> Response:
        accepted = await self._registry.accept_server(server, _decode(incoming, _Accept).offer, person.name)
        await self._bundles.refresh(person.name)
        return json_response({"server": server, "accepted": list(accepted)})

    async def _list_people(self, _incoming: Incoming, _person: Person) -> Response:
        return json_response(
            {"people": [{"name": p.name, "roles": list(p.roles)} for p in self._records.store.all(Person)]}
        )

    async def _register_person(self, incoming: Incoming, person: Person) -> Response:
        new = _decode(incoming, _NewPerson)
        return json_response(
            {"name": new.name, "token": await self._people.register(new.name, new.roles, person.name)}, 201
        )

    async def _kill(self, incoming: Incoming, person: Person) -> Response:
        asked = _decode(incoming, _Kill)
        await self._registry.kill(asked.target, person.name, asked.reason)
        return json_response({"killed": asked.target})

    async def _unkill(self, incoming: Incoming, person: Person) -> Response:
        asked = _decode(incoming, _Kill)
        await self._registry.unkill(asked.target, person.name, asked.reason)
        return json_response({"lifted": asked.target})

    async def _bundle_status(self, _incoming: Incoming, _person: Person) -> Response:
        return json_response(self._bundles.status())

    async def _activate(self, incoming: Incoming, person: Person) -> Response:
        sources = _decode(incoming, _Activate).sources
        return await self._activation(self._bundles.activate(sources, person.name))

    async def _rollback(self, _incoming: Incoming, person: Person) -> Response:
        return await self._activation(self._bundles.rollback(person.name))

    async def _activation(self, doing: Awaitable[Any]) -> Response:
        try:
            await doing
        except BundleRejected as bad:
            problems = [msgspec.to_builtins(p) for p in bad.problems]
            return json_response({"rejected": str(bad), "problems": problems, **self._bundles.status()}, 422)
        self._feed.wake()
        return json_response(self._bundles.status())


def _require_node(sender: Sender) -> None:
    if sender.workload.kind != "node":
        raise Unverifiable(Reason.NOT_YOURS, "only nodes do this")


def _state_of(record: ApprovalRecord) -> dict[str, Any]:
    """What the asking agent may know."""
    return {
        "id": record.id,
        "state": record.state,
        "action_digest": record.action_digest,
        "expires_at": record.expires_at_us // 1_000_000,
        "reason": denial(record) if record.state == "denied" else "",
    }


def _shown(record: ApprovalRecord) -> dict[str, Any]:
    """What an approver sees."""
    asked = record.request
    return {
        **_state_of(record),
        "agent": record.agent,
        "principal": asked["principal"],
        "run": record.run,
        "server": asked["server"],
        "tool": asked["tool"],
        "place": asked["place"],
        "terms": record.terms,
        "requested_at": record.requested_at_us // 1_000_000,
        "votes": [msgspec.to_builtins(vote) for vote in record.votes],
    }
