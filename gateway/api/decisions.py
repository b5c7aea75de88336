"""What people decide: approvals and policy bundles."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any
from urllib.parse import parse_qs

import msgspec

from edge.http import Incoming, Response, json_response
from gateway.api.access import Access, Services, decode
from gateway.approvals.desk import denial
from gateway.people import AUTHOR
from gateway.state import ApprovalRecord, Person
from trust.ledger import entries
from trust.policy.bundle import BundleRejected, Sources


class _Vote(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    decision: str
    reason: str = ""


class _Activate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sources: Sources


class Decisions:
    """Routes for approvers and policy authors."""

    def __init__(self, services: Services) -> None:
        self._records = services.records
        self._desk = services.desk
        self._bundles = services.bundles
        self._feed = services.feed

    def add_to(self, access: Access) -> None:
        person = access.person
        person("GET", "/v1/approvals", self._list_approvals)
        person("GET", "/v1/approvals/{approval}", self._show_approval)
        person("POST", "/v1/approvals/{approval}/votes", self._vote)
        person("GET", "/v1/bundles", self._bundle_status)
        person("POST", "/v1/bundles", self._activate, AUTHOR)
        person("POST", "/v1/bundles/rollback", self._rollback, AUTHOR)

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
        vote = decode(incoming, _Vote)
        return json_response(_shown(await self._desk.vote(approval, person, vote.decision, vote.reason)))

    async def _bundle_status(self, _incoming: Incoming, _person: Person) -> Response:
        return json_response(self._bundles.status())

    async def _activate(self, incoming: Incoming, person: Person) -> Response:
        sources = decode(incoming, _Activate).sources
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


def state_of(record: ApprovalRecord) -> dict[str, Any]:
    """What the asking agent may know."""
    return {
        "id": record.id,
        "state": record.state,
        "action_digest": record.action_digest,
        "expires_at": record.expires_at_us // 1_000_000,
        "reason": denial(record) if record.state == "denied" else record.cancelled,
    }


def _shown(record: ApprovalRecord) -> dict[str, Any]:
    """What an approver sees."""
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
        "terms": record.terms,
        "requested_at": record.requested_at_us // 1_000_000,
        "votes": [msgspec.to_builtins(vote) for vote in record.votes],
    }
