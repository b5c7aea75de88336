"""An agent: a model that thinks, and functions that it may call; each call is an action of one run on the mesh."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from edge.clock import new_id
from licet.mesh.calls import Calls, Outcome, RoutedCall, place_of
from licet.mesh.chat import FunctionCall, MeshChatClient
from licet.mesh.endpoint import MeshError
from licet.mesh.functions import AIFunction, ai_function

MAX_TURNS: Final = 25
"""A model that goes on calling beyond that is going in circles."""
PROPERTIES: Final = frozenset({"mesh_routing", "emit_routing_trace", "approval_wait_s"})


@dataclass(frozen=True)
class AgentResult:
    """``text``: the model's last word. ``routing_trace``: where each call ran, in order, if that was asked for.
    ``correlation_id``: the run; everything about it can be asked by that (`licet audit trail`)."""

    text: str
    correlation_id: str
    routing_trace: list[RoutedCall] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list, repr=False)

    def __str__(self) -> str:
        return self.text


class ChatAgent:
    """*tools*: functions marked by ``ai_function``, or plain ones. *additional_properties*: ``mesh_routing`` (``auto``,
    or a place that narrows), ``emit_routing_trace``, ``approval_wait_s`` (how long a held call waits for a person)."""

    def __init__(
        self,
        chat_client: MeshChatClient,
        name: str = "agent",
        instructions: str = "",
        tools: Sequence[AIFunction | Callable[..., Any]] = (),
        additional_properties: dict[str, Any] | None = None,
    ) -> None:
        asked = additional_properties or {}
        unknown = sorted(asked.keys() - PROPERTIES)
        if unknown:
            raise MeshError(
                f"additional_properties {', '.join(unknown)}: expected some of {', '.join(sorted(PROPERTIES))}"
            )
        self.name = name
        self._client = chat_client
        self._instructions = instructions
        made = [tool if isinstance(tool, AIFunction) else ai_function(tool) for tool in tools]
        self._tools = {tool.name: tool for tool in made}
        self._place = place_of(asked.get("mesh_routing"))
        self._traced = bool(asked.get("emit_routing_trace", False))
        self._wait_s = int(asked.get("approval_wait_s", 0))

    async def run(self, message: str) -> AgentResult:
        """Let the model work on *message* until it has nothing more to call."""
        run = new_id("run")
        calls = Calls(self._client.mesh, run, self._place, self._wait_s)
        items: list[dict[str, Any]] = [{"role": "user", "content": message}]
        outcomes: list[Outcome] = []
        for _ in range(MAX_TURNS):
            reply = await self._client.respond(items, self._instructions, self._schemas(), run)
            items += reply.items
            if not reply.calls:
                routed = [one.routed for one in outcomes if one.routed is not None]
                return AgentResult(reply.text, run, routed if self._traced else [], outcomes)
            for call in reply.calls:
                outcome = await self._do(calls, call)
                outcomes.append(outcome)
                items.append({"type": "function_call_output", "call_id": call.call_id, "output": outcome.text})
        raise MeshError(f"{self.name} went on calling functions for {MAX_TURNS} turns; run {run} has them")

    async def _do(self, calls: Calls, call: FunctionCall) -> Outcome:
        function = self._tools.get(call.name)
        if function is None:
            known = ", ".join(self._tools) or "none"
            return Outcome(json.dumps({"detail": f"there is no function {call.name}; there are: {known}"}), "deny")
        try:
            arguments = json.loads(call.arguments or "{}")
        except ValueError as bad:
            return Outcome(json.dumps({"detail": f"the arguments are not JSON: {bad}"}), "deny")
        if not isinstance(arguments, dict):
            return Outcome(json.dumps({"detail": "the arguments are no JSON object"}), "deny")
        return await calls.do(function, arguments)

    def _schemas(self) -> list[dict[str, Any]]:
        return [
            {
                "type": "function",
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.schema,
                "strict": False,
            }
            for tool in self._tools.values()
        ]
