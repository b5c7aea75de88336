"""Placement policy: which nodes are admitted, and which may run a call. Asked of Cedar per class of equal nodes.

Two questions, both in the active bundle, both denied unless a policy permits: ``Action::"admit"`` (may this node take
part?) and ``Action::"place"`` (may this call of this agent run there?).
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from gateway.state import NodeRecord
from trust.facts import Agent
from trust.policy.bundle import Compiled
from trust.policy.cedar import Uid
from trust.policy.engine import Finding, Request

MAX_VERDICTS: Final = 100_000
_NAMED: Final = re.compile(r'\bNode::"((?:[^"\\]|\\.)*)"')
"""A node that a policy names; one in a comment only costs a little."""


class Work(msgspec.Struct, frozen=True):
    """What is to run somewhere. ``labels`` are those of the server's data and of the tool; ``run``: those of what the
    run has seen so far; ``requires``: what a node must hold."""

    server: str
    tool: str
    labels: tuple[str, ...] = ()
    run: tuple[str, ...] = ()
    requires: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        return f"{self.server}/{self.tool}"


class Placement:
    """Verdicts of one bundle, cached by what a verdict can depend on."""

    def __init__(self) -> None:
        self._bundle = ""
        self._named: frozenset[str] = frozenset()
        self._verdicts: dict[tuple[object, ...], Finding] = {}

    def permits(self, bundle: Compiled, agent: Agent, work: Work, node: NodeRecord, holds: frozenset[str]) -> bool:
        """Whether *work* of *agent* may run on *node*, which holds these capabilities."""
        key = (agent, work.name, work.labels, work.run, *self._class(bundle, node, holds))
        found = self._verdicts.get(key)
        if found is None:
            found = self._verdicts[key] = _place(bundle, agent, work, node, holds)
        return found.outcome == "permit"

    def admits(self, bundle: Compiled, node: NodeRecord, holds: frozenset[str]) -> Finding:
        """Whether *node* may take part, as it is registered and as it says what it offers."""
        key = (node.url, node.servers, tuple(node.claims.items()), *self._class(bundle, node, holds))
        found = self._verdicts.get(key)
        if found is None:
            found = self._verdicts[key] = _admit(bundle, node, holds)
        return found

    def _class(self, bundle: Compiled, node: NodeRecord, holds: frozenset[str]) -> tuple[object, ...]:
        """Nodes of one class get the same verdicts; one that a policy names is a class of its own."""
        if bundle.digest != self._bundle or len(self._verdicts) >= MAX_VERDICTS:
            texts = bundle.content.sources.policies.values()
            named = frozenset(name for text in texts for name in _NAMED.findall(text))
            self._bundle, self._named, self._verdicts = bundle.digest, named, {}
        # A name that Cedar would read differently from how it is written cannot be one of ours.
        return node.name if node.name in self._named else "", node.kind, node.zone, holds


def _place(bundle: Compiled, agent: Agent, work: Work, node: NodeRecord, holds: frozenset[str]) -> Finding:
    world = bundle.engine.world([*agent.entities(), _entity(node, holds)])
    context = {"server": work.server, "tool": work.tool, "labels": list(work.labels), "run": list(work.run)}
    return bundle.engine.evaluate(Request(agent.uid, "place", Uid("Node", node.name), context), world)


def _admit(bundle: Compiled, node: NodeRecord, holds: frozenset[str]) -> Finding:
    world = bundle.engine.world([_entity(node, holds)])
    context = {
        "servers": list(node.servers),
        "url": node.url,
        "claims": [name if value is True else f"{name}={value}" for name, value in node.claims.items()],
    }
    return bundle.engine.evaluate(Request(Uid("Node", node.name), "admit", Uid("Zone", node.zone), context), world)


def _entity(node: NodeRecord, holds: frozenset[str]) -> dict[str, object]:
    return {
        "uid": {"type": "Node", "id": node.name},
        "attrs": {"kind": node.kind, "capabilities": sorted(holds)},
        "parents": [{"type": "Zone", "id": node.zone}],
    }
