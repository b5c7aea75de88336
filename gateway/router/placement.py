"""Placement policy: may a call of this agent run on this node? Asked of Cedar once per class of equal nodes."""

from __future__ import annotations

from typing import Any, Final

from gateway.state import NodeRecord
from trust.facts import Agent
from trust.policy.bundle import Compiled
from trust.policy.cedar import Uid
from trust.policy.engine import Request

MAX_VERDICTS: Final = 100_000


class Placement:
    """Verdicts of one bundle, cached by what a verdict can depend on."""

    def __init__(self) -> None:
        self._bundle = ""
        self._verdicts: dict[tuple[Any, ...], bool] = {}

    def permits(
        self, bundle: Compiled, agent: Agent, server: str, tool: str, labels: tuple[str, ...], node: NodeRecord
    ) -> bool:
        if bundle.digest != self._bundle or len(self._verdicts) >= MAX_VERDICTS:
            self._bundle, self._verdicts = bundle.digest, {}
        key = (agent, server, tool, labels, node.name, node.kind, node.zone, _capabilities(node))
        found = self._verdicts.get(key)
        if found is None:
            found = self._verdicts[key] = self._ask(bundle, agent, server, tool, labels, node)
        return found

    def _ask(
        self, bundle: Compiled, agent: Agent, server: str, tool: str, labels: tuple[str, ...], node: NodeRecord
    ) -> bool:
        entity = {
            "uid": {"type": "Node", "id": node.name},
            "attrs": {"kind": node.kind, "capabilities": list(_capabilities(node))},
            "parents": [{"type": "Zone", "id": node.zone}],
        }
        world = bundle.engine.world([*agent.entities(), entity])
        context = {"server": server, "tool": tool, "labels": list(labels)}
        request = Request(agent.uid, "place", Uid("Node", node.name), context)
        return bundle.engine.evaluate(request, world).outcome == "permit"


def _capabilities(node: NodeRecord) -> tuple[str, ...]:
    """``true`` capabilities by name, others as ``name=value``."""
    return tuple(
        sorted(
            name if value is True else f"{name}={value}"
            for name, value in node.capabilities.items()
            if value is not False
        )
    )
