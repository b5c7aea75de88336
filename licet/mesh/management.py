"""The mesh for those who run it: nodes registered and listed, and the trail of a run. Blocking."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from licet.client.api import Api, ApiError, Unavailable
from licet.mesh.endpoint import MeshError, token_of

KINDS: Final = {
    "on_prem": "on_prem",
    "windows_server": "on_prem",
    "cloud_pc": "cloud_pc",
    "windows_365": "cloud_pc",
    "edge": "edge",
    "azure_arc": "edge",
    "cloud": "cloud",
}
"""How the tutorial calls kinds of nodes, and how the mesh does."""
SEALED_WITHIN_S: Final = 10.0
"""What was done just now is in the trail once it is sealed, a second or two later."""


@dataclass(frozen=True)
class MeshNode:
    """``kind`` is one of on_prem, cloud_pc, edge, cloud; ``health``: ``healthy``, or why it gets nothing.
    ``enrolment_token``: only of a node that was registered just now; its process enrols with it, once."""

    node_id: str
    kind: str
    capabilities: dict[str, str]
    health: str
    enrolment_token: str = field(default="", repr=False)


@dataclass(frozen=True)
class Hop:
    """One step of a run, all of it texts: who acted (a DID), where, what, on data of which place, and where that stands
    in the ledger (``origin#index``)."""

    actor_object_id: str
    node_id: str
    action: str
    data_locality: str
    purview_record_id: str


@dataclass(frozen=True)
class AuditTrail:
    """``one_identity``: every hop was made by the same agent for the same principal."""

    correlation_id: str
    one_identity: bool
    hops: list[Hop]


class MeshManagementClient:
    """*endpoint*: the gateway's address; *credential*: of an operator (for trails an auditor's is enough)."""

    def __init__(self, endpoint: str, credential: Any = None) -> None:
        self._api = Api(endpoint.rstrip("/"), token_of(credential, "management"))

    def register_node(
        self,
        node_id: str,
        kind: str,
        capabilities: Mapping[str, Any] | Sequence[str] = (),
        routing_weight: float = 1.0,
        *,
        arc_resource_id: str = "",
        cloud_pc_id: str = "",
        servers: Sequence[str] = (),
        slots: int = 16,
        zone: str = "default",
        url: str = "",
        outbound: bool = False,
    ) -> MeshNode:
        """Register a node; its process enrols with the token that comes back. ``tools`` among the capabilities, or
        *servers*, are what it may offer (default: the workbench)."""
        if kind not in KINDS:
            raise MeshError(f"kind {kind!r}: expected one of {', '.join(KINDS)}")
        given: dict[str, Any] = {}
        given.update(capabilities if isinstance(capabilities, Mapping) else dict.fromkeys(capabilities, True))
        offered = [str(one).partition("/")[0] for one in given.pop("tools", ())]
        body = {
            "name": node_id,
            "kind": KINDS[kind],
            "capabilities": given,
            "weight": routing_weight,
            "slots": slots,
            "zone": zone,
            "url": url,
            "outbound": outbound,
            "servers": list(dict.fromkeys([*servers, *offered])) or ["workbench"],
            "reference": arc_resource_id or cloud_pc_id,
        }
        token = str(self._call("POST", "/v1/nodes", body)["enrolment_token"])
        return MeshNode(node_id, KINDS[kind], _texts(given), "not enrolled", token)

    def list_nodes(self) -> list[MeshNode]:
        """Every registered node, with the capabilities that more than its own claim stands for."""
        return [_node(one) for one in self._call("GET", "/v1/nodes")["nodes"]]

    def get_audit_trail(self, correlation_id: str) -> AuditTrail:
        """The hops of a run, in order; waits a moment for those that were made just now."""
        deadline = time.monotonic() + SEALED_WITHIN_S
        told = self._trail(correlation_id, deadline)
        while any(hop["status"] == "running" for hop in told["hops"]) and time.monotonic() < deadline:
            time.sleep(0.25)
            told = self._trail(correlation_id, deadline)
        return AuditTrail(correlation_id, bool(told["one_identity"]), [_hop(one) for one in told["hops"]])

    def _trail(self, run: str, deadline: float) -> Any:
        while True:
            try:
                return self._call("GET", f"/v1/runs/{run}/trail")
            except ApiError as bad:
                if bad.status != 404 or time.monotonic() > deadline:
                    raise MeshError(f"no trail of {run}: {bad}") from None
            time.sleep(0.25)

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        try:
            return self._api.call(method, path, body).body
        except Unavailable as bad:
            raise MeshError(f"no gateway answers at {self._api.url}: {bad}") from None


def _node(one: dict[str, Any]) -> MeshNode:
    held = {
        c["word"].partition("=")[0]: c["word"].partition("=")[2] or "true"
        for c in one["capabilities"]
        if c["level"] != "claimed"
    }
    reason = f"{one['state']}: {one['reason']}" if one["reason"] else one["state"]
    return MeshNode(one["name"], one["kind"], held, "healthy" if one["state"] == "ready" else reason)


def _texts(given: Mapping[str, Any]) -> dict[str, str]:
    return {name: "true" if value is True else str(value) for name, value in given.items() if value is not False}


def _hop(one: dict[str, Any]) -> Hop:
    return Hop(one["actor"], one["node"], one["action"], one["data_locality"], f"{one['origin']}#{one['index']}")
