"""For Microsoft's Agent Framework: its function calls go to the mesh, with one line added to the agent.

    agent = Agent(client=…, tools=[read_audit_log], middleware=[MeshFunctionMiddleware()])

A call runs on the node that the router picks; where only ``client-stub`` offers it, the function runs here once it is
permitted. A refusal becomes the function's result, so that the model hears why; a fault of the mesh ends the run.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from copy import deepcopy
from typing import Any

from agent_framework import FunctionInvocationContext, FunctionMiddleware, FunctionTool, MiddlewareFailure

from edge.clock import new_id
from licet.mesh.calls import Calls, RoutedCall, place_of
from licet.mesh.endpoint import Mesh
from licet.mesh.functions import AIFunction


class MeshFunctionMiddleware(FunctionMiddleware):
    """``correlation_id`` is the run that every call belongs to, ``routing_trace`` where each ran. One for each run of
    an agent. *mesh_routing* and *approval_wait_s*: as of :class:`licet.mesh.ChatAgent`."""

    def __init__(self, mesh: Mesh | None = None, mesh_routing: Any = "auto", approval_wait_s: int = 0) -> None:
        self.correlation_id = new_id("run")
        self.routing_trace: list[RoutedCall] = []
        self._calls = Calls(mesh or Mesh(), self.correlation_id, place_of(mesh_routing), approval_wait_s)

    async def process(self, context: FunctionInvocationContext, call_next: Callable[[], Awaitable[None]]) -> None:
        """One call: permitted, routed and recorded, or refused."""
        outcome = await self._calls.do(_Called(context, call_next), _given(context))
        if outcome.routed is not None:
            self.routing_trace.append(outcome.routed)
        if outcome.routed is None or not outcome.routed.client_stub:
            context.result = outcome.text


class _Called(AIFunction):
    """A function of the framework, as the mesh calls functions."""

    def __init__(self, context: FunctionInvocationContext, call_next: Callable[[], Awaitable[None]]) -> None:
        self.name, self.description, self.tool = context.function.name, context.function.description, ""
        self._context = context
        self._call_next = call_next
        self._function: FunctionTool = context.function

    @property
    def schema(self) -> dict[str, Any]:
        return self._function.parameters()

    def checked(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The framework has checked them; the mesh checks them again."""
        return arguments

    async def here(self, arguments: dict[str, Any]) -> Any:
        """What the framework makes of the function, which is what the model hears; of what was judged, or nothing."""
        if _given(self._context) != arguments:
            raise MiddlewareFailure(f"{self.name}: the arguments were changed after they were judged; nothing ran")
        await self._call_next()
        made = self._context.result
        return made if isinstance(made, str) else json.dumps(_plain(made), default=str)


def _given(context: FunctionInvocationContext) -> dict[str, Any]:
    """The arguments as they are now, apart from whatever else holds them."""
    arguments = context.arguments
    return deepcopy(dict(arguments)) if isinstance(arguments, Mapping) else arguments.model_dump(mode="json")


def _plain(made: Any) -> Any:
    return [one.to_dict() if hasattr(one, "to_dict") else one for one in made] if isinstance(made, list) else made
