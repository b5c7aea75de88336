"""What sidecars and nodes ask of the gateway: identity, facts, dispatch, leases, approvals of their own."""

from __future__ import annotations

from typing import Annotated, Any, Final
from urllib.parse import parse_qs

import msgspec

from edge.http import Incoming, Response, StreamResponse, json_response, relay
from gateway.api.access import Access, Services, decode, seconds
from gateway.api.decisions import state_of
from gateway.callers import WIT_HEADER, Sender
from gateway.delegations import NewRoot
from gateway.fleet import Joining
from gateway.state import ApprovalRecord
from trust import wire
from trust.identity import wit
from trust.identity.keys import PublicKey, b64url, unb64url
from trust.ledger import entries, shipment
from trust.ledger.shipment import log_of
from trust.reasons import Reason, Unverifiable
from trust.standing.rules import COUNTED
from trust.verdict import Hold, Permit, Refusal

MAX_REPORT_BYTES: Final = 40_000
MAX_REPORTED: Final = 100
"""Kinds of refusals in one report, which is one ledger entry."""


class _Enroll(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    token: str
    key: dict[str, str]
    proof: str


class _Rotate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: dict[str, str]
    proof: str


class _OpenSession(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: str


class _Heartbeat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    epoch: int


class _Chain(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    chain: str
    agent: str


class _Subject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``subject``: a :func:`trust.personal.subject_id`."""

    agent: str
    subject: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


Short = Annotated[str, msgspec.Meta(max_length=128)]


class _Refusals(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    reason: Short
    resource: Short
    count: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)]
    policies: Annotated[list[Short], msgspec.Meta(max_length=64)] = []


class _Report(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything from ``first`` to ``last`` in the sidecar's ledger."""

    agent: str
    first: Annotated[int, msgspec.Meta(ge=0)]
    last: int
    refusals: Annotated[list[_Refusals], msgspec.Meta(min_length=1, max_length=MAX_REPORTED)]
    instance: Short = ""


class Workloads:
    """Routes for whoever signs with a WIT, and for enrolment."""

    def __init__(self, services: Services) -> None:
        self._s = services

    def add_to(self, access: Access) -> None:
        signed = access.signed
        access.anyone("POST", "/v1/enroll", self._enroll)
        access.anyone("GET", "/.well-known/did.json", self._own_document)
        access.anyone("GET", "/agents/{name}/did.json", self._agent_document)
        access.anyone("GET", "/nodes/{name}/did.json", self._node_document)
        signed("POST", "/v1/wit", self._renew, strong=True, renewing=True, certified=False)
        signed("POST", "/v1/certificate", self._certify, strong=True, certified=False)
        signed("POST", "/v1/keys", self._rotate, strong=True)
        signed("POST", "/v1/session", self._open_session, strong=True)
        signed("POST", "/v1/delegations", self._issue_root, strong=True)
        signed("POST", "/v1/authority", self._authority)
        signed("POST", "/v1/refusals", self._report)
        signed("POST", "/v1/ledger", self._witness)
        signed("POST", "/v1/subjects/key", self._subject_key)
        signed("GET", "/v1/bundle", self._bundle)
        signed("GET", "/v1/feed", self._feed, listening=True)
        signed("POST", "/v1/dispatch", self._s.dispatcher.dispatch)
        signed("POST", "/v1/nodes/join", self._join, strong=True)
        signed("POST", "/v1/nodes/heartbeat", self._heartbeat)
        signed("POST", "/v1/nodes/work", self._work, strong=True)
        signed("POST", "/v1/approvals", self._request_approval)
        signed("GET", "/v1/approvals/{approval}/action", self._stored_action)
        signed("GET", "/v1/approvals/{approval}/state", self._approval_state)

    # Identity

    async def _enroll(self, incoming: Incoming) -> Response:
        asked, services = decode(incoming, _Enroll), self._s
        key = PublicKey.from_jwk(asked.key)
        key.verify(unb64url(asked.proof), f"licet-enroll {asked.token}".encode())
        workload = await services.registry.enroll(asked.token, key)
        services.feed.wake()
        return json_response(
            {
                "kind": workload.kind,
                "name": workload.name,
                "did": workload.did,
                "wit": services.registry.issue_wit(workload.kind, workload.name),
                "trust_domain": services.trust_domain,
                "audience": services.audience,
                "gateway_key": dict(services.key.public.jwk),
            }
        )

    async def _own_document(self, _incoming: Incoming) -> Response:
        return _document(self._s.registry.own_document())

    async def _agent_document(self, _incoming: Incoming, name: str) -> Response:
        return _document(self._s.registry.document("agent", name))

    async def _node_document(self, _incoming: Incoming, name: str) -> Response:
        return _document(self._s.registry.document("node", name))

    async def _renew(self, _incoming: Incoming, sender: Sender) -> Response:
        """For the workload's current key only: a key that drains gets no new tokens."""
        return json_response({"wit": self._s.registry.renew_wit(sender.workload)})

    async def _certify(self, incoming: Incoming, sender: Sender) -> Response:
        """A TLS certificate for a key that the workload made for that."""
        certificates, workload = self._s.certificates, sender.workload
        if certificates is None:
            raise Unverifiable(Reason.NOT_FOUND, "this gateway does not speak TLS")
        public = unb64url(decode(incoming, _OpenSession).key)
        node = self._s.registry.node(workload.name) if workload.kind == "node" else None
        pem = certificates.issue(workload, node, public, self._s.clock.now())
        return json_response({"certificate": pem.decode("ascii")}, 201)

    async def _rotate(self, incoming: Incoming, sender: Sender) -> Response:
        """Another key for an agent, by the one before; it proves that it holds both."""
        asked = decode(incoming, _Rotate)
        _require(sender, "agent", "only agents replace their keys so")
        key = PublicKey.from_jwk(asked.key)
        key.verify(unb64url(asked.proof), f"licet-rotate {sender.workload.subject}".encode())
        now = int(self._s.clock.now())
        until = max(now + wit.MAX_LIFE_S, self._s.delegations.longest(sender.workload.key))
        token = await self._s.registry.rotate(sender.workload, key, until)
        return json_response({"wit": token, "drains_until": until}, 201)

    async def _open_session(self, incoming: Incoming, sender: Sender) -> Response:
        """A session for whoever signed with its key; that signature is in the ledger before the session counts."""
        statement, entry = self._s.callers.open_session(sender, decode(incoming, _OpenSession).key)
        await self._s.records.note(entry)
        await self._s.callers.share(statement, entry, incoming.header(WIT_HEADER) or "")
        return json_response({"statement": statement}, 201)

    # Delegation and standing

    async def _issue_root(self, incoming: Incoming, sender: Sender) -> Response:
        _require(sender, "agent", "only agents delegate")
        bundle = self._s.bundles.for_agent(sender.workload.name).compiled
        if bundle is None:
            raise Unverifiable(Reason.NO_BUNDLE, "no bundle is active")
        token = await self._s.delegations.issue(sender.workload, decode(incoming, NewRoot), bundle.inventory)
        return json_response({"chain": token}, 201)

    async def _authority(self, incoming: Incoming, sender: Sender) -> Response:
        """Whether a chain holds now, and how far everybody in it is trusted; sidecars ask every few seconds."""
        asked = decode(incoming, _Chain)
        self._s.registry.require_speaks_for(sender.workload, asked.agent)
        opened = self._s.delegations.open(asked.chain, asked.agent)
        return json_response({"standing": msgspec.to_builtins(opened.standing)})

    async def _report(self, incoming: Incoming, sender: Sender) -> Response:
        """What a sidecar refused its own agent."""
        told = decode(incoming, _Report)
        bundle = self._s.bundles.for_agent(sender.workload.name).compiled
        name = self._s.registry.require_speaks_for(sender.workload, told.agent).agent.name
        if bundle is None:
            raise Unverifiable(Reason.NO_BUNDLE, "no bundle is active, so nobody can say how bad that was")
        if told.last < told.first:
            raise Unverifiable(Reason.MALFORMED_REQUEST, f"from {told.first} to {told.last}")
        origin = log_of(self._s.trust_domain, "sidecar", sender.workload.name, told.instance)
        if name != sender.workload.name:
            # What a shared sidecar says of a guest proves nothing: it could ruin whom it likes.
            return json_response({"heard": told.last})
        self._s.standings.require_due(origin)
        if len(incoming.body) > MAX_REPORT_BYTES:
            raise Unverifiable(Reason.BODY_TOO_LARGE, f"{len(incoming.body)} bytes; a report has {MAX_REPORT_BYTES}")
        counted = [
            entries.Refusals(
                one.reason,
                one.resource,
                one.count,
                COUNTED[one.reason] or bundle.engine.severity(one.policies),
                one.policies,
            )
            for one in told.refusals
            if one.reason in COUNTED
        ]
        if await self._s.standings.refused(entries.Reported(name, origin, told.first, told.last, counted)):
            await self._s.recall.denied(name, sum(one.count for one in counted), origin)
        return json_response({"heard": self._s.standings.heard(name, origin)})

    async def _witness(self, incoming: Incoming, sender: Sender) -> Response:
        """What a sidecar or node sealed of its log: kept, and cosigned."""
        if incoming.header("content-type") != shipment.SHIPMENT_TYPE:
            raise Unverifiable(Reason.UNSUPPORTED_MEDIA_TYPE, f"expected {shipment.SHIPMENT_TYPE}")
        if len(incoming.body) > shipment.MAX_SHIPMENT_BYTES:
            raise Unverifiable(Reason.BODY_TOO_LARGE, f"{len(incoming.body)} bytes in one shipment")
        shipped, bundle = shipment.unpack(incoming.body)
        received = await self._s.witness.receive(sender.workload, shipped, bundle)
        return json_response(msgspec.to_builtins(received))

    async def _subject_key(self, incoming: Incoming, sender: Sender) -> Response:
        """The key under which an agent's sidecar records what is personal of one subject."""
        asked = decode(incoming, _Subject)
        _require(sender, "agent", "only sidecars record what is personal")
        agent = self._s.registry.require_speaks_for(sender.workload, asked.agent).agent
        self._s.stops.require(agent)
        key = await self._s.subjects.obtain(asked.subject, agent.name)
        return json_response({"id": key.id, "secret": b64url(key.secret)})

    # Facts

    async def _bundle(self, incoming: Incoming, sender: Sender) -> Response:
        _require(sender, "agent", "only sidecars decide by policies")
        known = (incoming.header("if-none-match") or "").strip('"')
        edition = self._s.bundles.for_agent(sender.workload.name)
        sealed = await edition.wait_for_other_than(known, seconds(incoming))
        if sealed is None:
            raise Unverifiable(Reason.NO_BUNDLE, "no bundle is active")
        headers = {"ETag": f'"{sealed.digest}"', "Content-Type": "application/octet-stream"}
        if sealed.digest == known:
            return Response(status=304, headers={"ETag": headers["ETag"]})
        return Response(body=sealed.data, headers=headers)

    async def _feed(self, incoming: Incoming, sender: Sender) -> StreamResponse:
        name, feed = sender.workload.name, self._s.feed
        if sender.workload.kind == "node":
            lines = feed.stops(name)
        else:
            asked = parse_qs(incoming.query)
            agent, instance = asked.get("agent", [name])[0], asked.get("instance", [""])[0]
            log_of(self._s.trust_domain, "sidecar", name, instance)  # refuses what is no instance
            lines = feed.lines(self._s.registry.require_speaks_for(sender.workload, agent).agent.name, instance)
        response, _ = await relay(incoming, lines, 200, {"Content-Type": "application/x-ndjson"})
        return response

    # Nodes

    async def _join(self, incoming: Incoming, sender: Sender) -> Response:
        asked, services = decode(incoming, Joining), self._s
        _require(sender, "node", "only nodes do this")
        await services.prover.joined(sender.workload.name, asked.vouchers)
        epoch, grown = await services.fleet.join(sender.workload.name, asked)
        if grown:
            await services.bundles.refresh(sender.workload.name)
        services.prover.begin(sender.workload.name)
        return json_response({"epoch": epoch, "slots": services.registry.node(sender.workload.name).slots})

    async def _heartbeat(self, incoming: Incoming, sender: Sender) -> Response:
        _require(sender, "node", "only nodes do this")
        epoch, name = decode(incoming, _Heartbeat).epoch, sender.workload.name
        if not await self._s.fleet.renew(name, epoch):
            raise Unverifiable(Reason.PERMIT_INVALID, f"epoch {epoch} of {name} is over; join again")
        return json_response({"state": self._s.registry.node(name).state})

    async def _work(self, incoming: Incoming, sender: Sender) -> Response:
        """A node that cannot be reached lets itself be asked on this connection."""
        _require(sender, "node", "only nodes do this")
        node = self._s.registry.node(sender.workload.name)
        if node.may_live_at != wire.OUTBOUND:
            raise Unverifiable(Reason.NOT_YOURS, f"{node.name} is registered as one that can be reached")
        return await self._s.accepted.accept(node.name, incoming)

    # Approvals of the agent's own

    async def _request_approval(self, incoming: Incoming, sender: Sender) -> StreamResponse:
        if incoming.header("content-type") != wire.DISPATCH_TYPE:
            raise Unverifiable(Reason.UNSUPPORTED_MEDIA_TYPE, f"expected {wire.DISPATCH_TYPE}")
        dispatcher = self._s.dispatcher
        asked = await self._s.statements.read(incoming, sender)
        match self._s.statements.judge(asked, approved=False):
            case Hold() as hold:
                risk = asked.bundle.inventory.tool(asked.action.server, asked.action.tool).manifest.risk
                record = await self._s.desk.request(asked.action, asked.dispatch, hold, risk)
                return json_response(state_of(record), 201)
            case Permit():
                no = Refusal(7, Reason.APPROVAL_MISMATCH, "nobody needs to approve this; send it again")
                return await dispatcher.refuse(asked, no)
            case Refusal() as no:
                return await dispatcher.refuse(asked, no)

    def _own(self, approval: str, sender: Sender, incoming: Incoming) -> ApprovalRecord:
        """The approval, if it is that of the agent for which the sidecar asks."""
        record = self._s.desk.get(approval)
        agent = parse_qs(incoming.query).get("agent", [sender.workload.name])[0]
        if self._s.registry.require_speaks_for(sender.workload, agent).agent.name != record.agent:
            raise Unverifiable(Reason.NOT_YOURS, "this approval belongs to another agent")
        return record

    async def _approval_state(self, incoming: Incoming, sender: Sender, approval: str) -> Response:
        self._own(approval, sender, incoming)
        return json_response(state_of(await self._s.desk.wait(approval, seconds(incoming))))

    async def _stored_action(self, incoming: Incoming, sender: Sender, approval: str) -> Response:
        record = self._own(approval, sender, incoming)
        dispatch, body = self._s.desk.stored(record)
        headers = {"Content-Type": wire.DISPATCH_TYPE, **({wire.EDITED_HEADER: "true"} if record.editors else {})}
        return Response(body=wire.encode(dispatch, body), headers=headers)


def _require(sender: Sender, kind: str, why: str) -> None:
    if sender.workload.kind != kind:
        raise Unverifiable(Reason.NOT_YOURS, why)


def _document(document: dict[str, Any]) -> Response:
    """A DID document is for everybody, and fresh: keys are replaced and revoked."""
    return json_response(document, headers={"Content-Type": "application/did+json"})
