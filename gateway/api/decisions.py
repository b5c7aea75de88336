"""What people decide: approvals and policy bundles."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any
from urllib.parse import parse_qs

import msgspec

from edge.http import Incoming, Response, json_response
from gateway.api.access import Access, Services, decode
from gateway.approvals import rules
from gateway.approvals.desk import denial
from gateway.approvals.votes import Ballot
from gateway.control import Act
from gateway.people import AUDITOR, OPERATOR, require_namespace
from gateway.state import ApprovalRecord, Deputy, Grant, Person
from trust.policy.bundle import BundleRejected, Sources


class _Edit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    arguments: dict[str, Any]
    presented: str
    reason: str = ""


class _Revoke(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    reason: str = ""


class _Deputy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Times: Unix microseconds."""

    deputy: str
    since_us: int
    until_us: int


class _NoDeputy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    deputy: str


class _Activate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sources: Sources


class Decisions:
    """Routes for approvers and policy authors."""

    def __init__(self, services: Services) -> None:
        self._records = services.records
        self._desk = services.desk
        self._votes = services.votes
        self._bundles = services.bundles
        self._feed = services.feed
        self._control = services.control

    def add_to(self, access: Access) -> None:
        person = access.person
        person("GET", "/v1/approvals", self._list_approvals, "approvals.see")
        person("GET", "/v1/approvals/{approval}", self._show_approval, "approvals.see", "approval")
        person("POST", "/v1/approvals/{approval}/votes", self._vote, "approvals.decide", "approval")
        person("POST", "/v1/approvals/{approval}/edits", self._edit, "approvals.decide", "approval")
        person("POST", "/v1/approvals/{approval}/revocation", self._revoke, "approvals.decide", "approval")
        person("GET", "/v1/deputies", self._deputies, "approvals.see")
        person("POST", "/v1/deputies", self._name_deputy, "deputies.name")
        person("POST", "/v1/deputies/end", self._end_deputy, "deputies.name")
        person("GET", "/v1/bundles", self._bundle_status, "policies.see")
        person("POST", "/v1/bundles", self._activate, "policies.activate")
        person("POST", "/v1/bundles/rollback", self._rollback, "policies.activate")

    async def _list_approvals(self, incoming: Incoming, person: Person) -> Response:
        """Those in the states that are asked for; all if none is named. What is personal is shown one by one only."""
        wanted = parse_qs(incoming.query).get("state")
        found = [
            one
            for one in self._desk.all()
            if (wanted is None or one.state in wanted)
            and self._control.sees(person, self._control.whose("agent", one.agent) or "")
        ]
        return json_response({"approvals": [self._shown(one, person, opened=False) for one in found]})

    async def _show_approval(self, _incoming: Incoming, person: Person, approval: str) -> Response:
        return json_response(self._shown(await self._votes.viewed(approval, person), person))

    async def _vote(self, incoming: Incoming, person: Person, approval: str) -> Response:
        return json_response(self._shown(await self._votes.vote(approval, person, decode(incoming, Ballot)), person))

    async def _edit(self, incoming: Incoming, person: Person, approval: str) -> Response:
        asked = decode(incoming, _Edit)
        record = await self._votes.edit(approval, person, asked.arguments, asked.presented, asked.reason)
        return json_response(self._shown(record, person))

    async def _revoke(self, incoming: Incoming, person: Person, approval: str) -> Response:
        record = await self._votes.revoke(approval, person, decode(incoming, _Revoke).reason)
        return json_response(self._shown(record, person))

    async def _deputies(self, _incoming: Incoming, person: Person) -> Response:
        seen = [
            one
            for one in self._records.store.all(Deputy)
            if self._control.sees(person, self._control.whose("person", one.person) or "")
        ]
        return json_response({"deputies": msgspec.to_builtins(seen)})

    async def _name_deputy(self, incoming: Incoming, person: Person) -> Response:
        asked = decode(incoming, _Deputy)
        named = await self._votes.name_deputy(person, asked.deputy, asked.since_us, asked.until_us)
        return json_response(msgspec.to_builtins(named), 201)

    async def _end_deputy(self, incoming: Incoming, person: Person) -> Response:
        await self._votes.end_deputy(person, decode(incoming, _NoDeputy).deputy)
        return json_response({})

    def _shown(self, record: ApprovalRecord, person: Person, *, opened: bool = True) -> dict[str, Any]:
        """What is personal of it, for those who decide or who read the ledger."""
        may = bool((rules.wanted(record) | {AUDITOR, OPERATOR}) & self._desk.electorate(record).reach(person.name))
        sealed = "sealed_by" in record.request and not (opened and may)
        payload = "" if sealed else self._desk.text(record)
        return {**shown(record, self._desk.granted(record)), "payload": payload, "sealed": sealed}

    async def _bundle_status(self, incoming: Incoming, person: Person) -> Response:
        return json_response(self._bundles.status(self._namespace(incoming, person, "policies.see")))

    def _namespace(self, incoming: Incoming, person: Person, act: Act) -> str:
        """Whose policies it is about: those of the query's ``namespace``, or of the own one."""
        asked = parse_qs(incoming.query).get("namespace", [person.namespace])[0]
        self._control.require(person, act, require_namespace(asked))
        return asked

    async def _activate(self, incoming: Incoming, person: Person) -> Response:
        sources = decode(incoming, _Activate).sources
        namespace = self._namespace(incoming, person, "policies.activate")
        named = parse_qs(incoming.query).get("without", [""])[0]
        without = frozenset(filter(None, named.split(",")))
        doing = self._bundles.activate(sources, person.name, namespace, without)
        return await self._activation(doing, namespace)

    async def _rollback(self, incoming: Incoming, person: Person) -> Response:
        namespace = self._namespace(incoming, person, "policies.activate")
        return await self._activation(self._bundles.rollback(person.name, namespace), namespace)

    async def _activation(self, doing: Awaitable[Any], namespace: str) -> Response:
        try:
            await doing
        except BundleRejected as bad:
            problems = [msgspec.to_builtins(p) for p in bad.problems]
            return json_response({"rejected": str(bad), "problems": problems, **self._bundles.status(namespace)}, 422)
        self._feed.wake()
        return json_response(self._bundles.status(namespace))


def state_of(record: ApprovalRecord) -> dict[str, Any]:
    """What the asking agent may know."""
    return {
        "id": record.id,
        "state": record.state,
        "action_digest": record.action_digest,
        "edited": bool(record.editors),
        "expires_at": record.expires_at_us // 1_000_000,
        "reason": denial(record) if record.state == "denied" else record.cancelled,
    }


def shown(record: ApprovalRecord, left: Grant | None) -> dict[str, Any]:
    """What an approver sees of it; *left* of its scope."""
    asked = record.request
    return {
        **state_of(record),
        "agent": record.agent,
        "principal": asked["principal"],
        "authority": asked["authority"],
        "run": record.run,
        "server": asked["server"],
        "tool": asked["tool"],
        "place": asked["place"],
        "policies": list(record.policies),
        "because": asked["because"],
        "terms": record.terms,
        "presented": record.presented,
        "editors": list(record.editors),
        "groups": list(record.groups),
        "under": record.under,
        "count": record.count,
        "left": msgspec.to_builtins(left),
        "requested_at": record.requested_at_us // 1_000_000,
        "votes": [msgspec.to_builtins(vote) for vote in record.votes],
    }
