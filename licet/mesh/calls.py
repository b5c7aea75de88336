"""A model's call of a function: an action on the mesh, which runs where it is offered, or here once it is permitted.

Where a node offers a tool of the function's name, it runs there. Where only the server ``client-stub`` offers one
(:mod:`licet.mesh.stubs`, for development), the mesh decides and records, the function runs in this process, and a
second action reports the digest of its result.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Final

from licet.client.api import ApiError
from licet.mesh.endpoint import Mesh, MeshError
from licet.mesh.functions import AIFunction

STUB: Final = "client-stub"
"""The server whose tools run at whoever calls them."""
REPORT: Final = f"{STUB}/report_result"
PLACES: Final = frozenset({"pin", "kind", "slo_ms", "strict"})


@dataclass(frozen=True)
class RoutedCall:
    """Where one call ran, and why. ``score`` from 0 to 1; ``latency_ms`` from the gateway to the node and back;
    ``client_stub``: it ran in this process. The matches are False where the mesh told no trace; ``trace`` has ``why``
    and everything else that it tells."""

    tool_name: str
    node_id: str
    latency_ms: float
    gpu_match: bool
    locality_match: bool
    score: float
    decision_id: str
    client_stub: bool = False
    trace: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Outcome:
    """What the model hears of a call, and where it ran, if it did. ``decision``: allow, deny or hold. ``reported``:
    False for a function that ran here and of whose result the mesh could not be told."""

    text: str
    decision: str
    routed: RoutedCall | None = None
    reported: bool = True


def place_of(routing: Any) -> dict[str, Any]:
    """What ``mesh_routing`` narrows: ``auto`` nothing, ``{"pin": "node-1"}`` a node, ``{"kind": "cloud"}`` a kind."""
    if routing in (None, "auto"):
        return {}
    if isinstance(routing, dict) and routing.keys() <= PLACES:
        return dict(routing)
    raise MeshError(
        f'mesh_routing {routing!r}: expected "auto", or some of {", ".join(sorted(PLACES))} as in {{"pin": "node-1"}}'
    )


class Calls:
    """Of one run of one agent."""

    def __init__(self, mesh: Mesh, run: str, place: dict[str, Any], wait_s: int = 0) -> None:
        self._mesh = mesh
        self._run = run
        self._place = place
        self._wait_s = wait_s
        self._offered: dict[str, dict[str, Any]] | None = None

    async def do(self, function: AIFunction, arguments: dict[str, Any]) -> Outcome:
        """Call *function*; whatever comes of it is told to the model as a text."""
        try:
            return await self.act(await self._tool(function), function.checked(arguments), function)
        except MeshError as bad:
            return Outcome(json.dumps({"decision": "deny", "detail": str(bad)}), "deny")

    async def act(self, tool: str, arguments: dict[str, Any], function: AIFunction | None = None) -> Outcome:
        """One action by the name of its tool."""
        try:
            answer = await self._act(tool, arguments, self._place)
        except ApiError as no:
            return Outcome(json.dumps(_denied(no)), "deny")
        if answer.status == 202:
            return Outcome(json.dumps(_pending(answer.body)), "hold")
        routed = _routed(tool, answer.body)
        result = answer.body["result"]
        if not routed.client_stub:
            return Outcome(text_of(result), "allow", routed)
        if result.get("isError") or (result.get("structuredContent") or {}).get("client_stub") is not True:
            return Outcome(json.dumps({"decision": "deny", "detail": f"the stub says no: {text_of(result)}"}), "deny")
        if function is None:
            raise MeshError(f"{tool} runs at whoever calls it, and there is no function for it here")
        return await self._here(function, arguments, routed)

    async def _here(self, function: AIFunction, arguments: dict[str, Any], routed: RoutedCall) -> Outcome:
        """From here on it has happened, whatever comes of telling so."""
        made = await function.here(arguments)
        text = made if isinstance(made, str) else json.dumps(made, default=str)
        digest = hashlib.sha256(text.encode()).hexdigest()
        try:
            told = await self._act(REPORT, {"decision_id": routed.decision_id, "sha256": digest}, {})
        except (ApiError, MeshError):
            return Outcome(text, "allow", routed, reported=False)
        return Outcome(text, "allow", routed, reported=told.status == 200)

    async def _act(self, tool: str, arguments: dict[str, Any], place: dict[str, Any]) -> Any:
        return await asyncio.to_thread(self._mesh.act, tool, arguments, self._run, place, self._wait_s)

    async def _tool(self, function: AIFunction) -> str:
        """The tool of the mesh that *function* stands for; one that runs on a node goes before a stub."""
        if function.tool:
            return function.tool
        if self._offered is None:
            self._offered = await asyncio.to_thread(self._mesh.tools)
        named = sorted(tool for tool in self._offered if tool.partition("/")[2] == function.name)
        on_nodes = [tool for tool in named if tool.partition("/")[0] != STUB]
        if len(on_nodes) > 1:
            raise MeshError(
                f'{function.name} is offered by several servers; say which: @ai_function(tool="{on_nodes[0]}")'
            )
        found = on_nodes or named
        if not found:
            raise MeshError(
                f"{function.name}: this agent may call no such tool; it may call {', '.join(self._offered) or 'none'}"
            )
        return found[0]


def _routed(tool: str, body: dict[str, Any]) -> RoutedCall:
    trace = body.get("trace") or {}
    stub = tool.partition("/")[0] == STUB and tool != REPORT
    return RoutedCall(
        tool_name=tool,
        node_id=str(body.get("node") or ""),
        latency_ms=float(trace.get("latency_ms") or 0.0),
        gpu_match=bool(trace.get("gpu_match", False)),
        locality_match=bool(trace.get("locality_match", False)),
        score=float(trace.get("score", 0.0)),
        decision_id=str(body["decision_id"]),
        client_stub=stub,
        trace=trace,
    )


def _denied(no: ApiError) -> dict[str, Any]:
    """A refusal as a model understands it: final or not, why, and what it can be asked about by."""
    kept = ("reason", "class", "retryable", "detail", "because", "decision_id", "policy_ids")
    return {"decision": "deny", **{name: no.problem[name] for name in kept if name in no.problem}}


def _pending(body: dict[str, Any]) -> dict[str, Any]:
    kept = ("decision", "approval", "detail", "because", "expires_at", "decision_id")
    return {name: body[name] for name in kept if name in body}


def text_of(result: dict[str, Any]) -> str:
    """What an MCP result says."""
    texts = [part["text"] for part in result.get("content", []) if part.get("type") == "text"]
    told = "\n".join(texts) if texts else json.dumps(result.get("structuredContent", result))
    return f"error: {told}" if result.get("isError") else told
