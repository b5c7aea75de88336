"""Nodes for operators: registered, looked at, drained, quarantined, and asked to prove what they claim."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec

from edge.http import Incoming, Response, json_response
from gateway.api.access import Access, Services, decode
from gateway.fleet import NewNode
from gateway.questions import Filter
from gateway.router import trace
from gateway.state import NodeState, Person
from trust.ledger import entries
from trust.reasons import Reason, Unverifiable, visible


class _Put(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    state: NodeState
    reason: str = ""


class _Restore(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    capability: str
    reason: str = ""


class NodesApi:
    """Routes of one gateway."""

    def __init__(self, services: Services) -> None:
        self._s = services

    def add_to(self, access: Access) -> None:
        access.person("GET", "/v1/nodes", self._list, "nodes.see")
        access.person("POST", "/v1/nodes", self._register, "nodes.change")
        access.person("GET", "/v1/nodes/{name}", self._show, "nodes.see", "node")
        access.person("POST", "/v1/nodes/{name}/state", self._put, "nodes.change", "node")
        access.person("POST", "/v1/nodes/{name}/verify", self._verify, "nodes.change", "node")
        access.person("POST", "/v1/nodes/{name}/restore", self._restore, "nodes.change", "mesh")
        access.person("GET", "/v1/decisions/{decision}/routing", self._explain, "ledger.read")

    async def _list(self, _incoming: Incoming, person: Person) -> Response:
        seen = [one for one in self._s.fleet.shown() if self._s.control.sees(person, one.namespace)]
        return json_response({"nodes": [msgspec.to_builtins(one) for one in seen]})

    async def _register(self, incoming: Incoming, person: Person) -> Response:
        new = decode(incoming, NewNode)
        new = msgspec.structs.replace(new, namespace=self._s.control.home(person, new.namespace))
        if person.namespace and not new.outbound:
            raise Unverifiable(
                Reason.NOT_YOURS,
                "a node of a namespace connects itself (--outbound), so that the gateway sends nothing where a "
                "namespace says; one that is connected to is registered by an operator of the mesh",
            )
        token = await self._s.fleet.register(new, person.name)
        return json_response({"name": new.name, "enrolment_token": token}, 201)

    async def _show(self, _incoming: Incoming, _person: Person, name: str) -> Response:
        self._s.fleet.known(name)
        found = next(one for one in self._s.fleet.shown() if one.name == name)
        return json_response(msgspec.to_builtins(found))

    async def _put(self, incoming: Incoming, person: Person, name: str) -> Response:
        asked = decode(incoming, _Put)
        node = await self._s.fleet.put(name, asked.state, person.name, asked.reason)
        return json_response({"name": node.name, "state": node.state})

    async def _verify(self, _incoming: Incoming, _person: Person, name: str) -> Response:
        """Everything that can be asked of a node, asked now."""
        found = await self._s.prover.verify(name)
        return json_response({"name": name, "proved": [msgspec.to_builtins(one) for one in found]})

    async def _restore(self, incoming: Incoming, person: Person, name: str) -> Response:
        asked = decode(incoming, _Restore)
        await self._s.prover.restore(name, asked.capability, person.name, asked.reason)
        return json_response({"name": name, "restored": asked.capability})

    async def _explain(self, _incoming: Incoming, person: Person, decision: str) -> Response:
        """Every routed attempt of one decision, with its trace and whether the same choice comes out again."""
        attempts = [attempt async for attempt in self._attempts(decision, person)]
        if not attempts:
            missing = f"no routed action has the decision {visible(decision)}; `licet audit query` finds decisions"
            raise Unverifiable(Reason.NOT_FOUND, missing)
        return json_response({"decision_id": decision, "attempts": attempts})

    async def _attempts(self, decision: str, person: Person) -> AsyncIterator[dict[str, Any]]:
        """In the gateways' own logs, as far as they are sealed: a decision of this moment may be a second away."""
        ledgers = self._s.ledgers
        asked = Filter(kind="dispatch", decision_id=decision, oldest_first=True, namespace=person.namespace)
        page = await ledgers.find(asked, person.name)
        for row in page.rows:
            if not row.origin.startswith(f"{self._s.trust_domain}/gateway/"):
                continue
            line = entries.decode(await ledgers.read(row.origin, row.index, person))
            if isinstance(line.entry, entries.Dispatch) and line.entry.trace:
                yield {
                    "action_id": line.entry.action_id,
                    "audit": {"origin": row.origin, "index": row.index},
                    "trace": line.entry.trace,
                    "wrong": trace.replay(trace.read(line.entry.trace)),
                }
