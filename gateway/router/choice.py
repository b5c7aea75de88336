"""The choice of a node. Pure: candidates, constraints, time and randomness are arguments.

Constraints come first and never soften: a node is eligible or it is not, and when none is, the answer says
how many fell out for which reason. Among the eligible the least outstanding work per slot and weight wins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from gateway.state import NodeRecord
from trust.wire import Place


class Candidate(msgspec.Struct, frozen=True):
    """A node as the router knows it now. ``lease_s``: seconds until its lease ends; ``ejected``: it failed just now."""

    node: NodeRecord
    lease_s: float
    outstanding: int
    ejected: bool


class Choice(msgspec.Struct, frozen=True):
    """``eliminated`` counts nodes by reason; ``scores`` are costs by node, lowest wins. ``chosen`` is None if
    nobody is eligible."""

    chosen: NodeRecord | None
    eliminated: Mapping[str, int]
    scores: Mapping[str, float]
    constraints: Mapping[str, Any]

    def trace(self) -> dict[str, Any]:
        """What the answer and the ledger say of this choice."""
        ranked = sorted(self.scores.items(), key=lambda item: item[1])
        runner_up = ranked[1][0] if len(ranked) > 1 else None
        return {
            "constraints": dict(self.constraints),
            "eliminated": dict(sorted(self.eliminated.items())),
            "candidates": {name: f"{cost:.6f}" for name, cost in ranked},
            "chosen": self.chosen.name if self.chosen else None,
            "runner_up": runner_up,
        }


Permitted = Callable[[NodeRecord], bool]
"""What is asked of one node."""


ANOTHER_VERSION: Final = "offers_another_version"


def choose(
    candidates: Sequence[Candidate],
    server: str,
    place: Place,
    offered: Permitted,
    permitted: Permitted,
    tie_break: float,
) -> Choice:
    """The node for one call to *server*, offered there as it was *offered* to whoever judged the call;
    *tie_break* from 0 to 1 decides among equals."""
    eliminated: Counter[str] = Counter()
    eligible: list[Candidate] = []
    for candidate in candidates:
        reason = _ineligible(candidate, server, place, offered, permitted)
        if reason is None:
            eligible.append(candidate)
        else:
            eliminated[reason] += 1
    scores = {c.node.name: _cost(c) for c in eligible}
    constraints = {"server": server, "pin": place.pin}
    if not eligible:
        return Choice(None, eliminated, scores, constraints)
    # Ejection may not leave nobody: then the least bad of the eligible is still better than none.
    pool = [c for c in eligible if not c.ejected] or eligible
    best = min(scores[c.node.name] for c in pool)
    equals = [c for c in pool if scores[c.node.name] == best]
    chosen = equals[min(int(tie_break * len(equals)), len(equals) - 1)]
    return Choice(chosen.node, eliminated, scores, constraints)


def _ineligible(
    candidate: Candidate, server: str, place: Place, offered: Permitted, permitted: Permitted
) -> str | None:
    """Why not, cheapest question first."""
    node = candidate.node
    if place.pin is not None and place.pin != node.name:
        return "not_pinned"
    if server not in node.servers:
        return "does_not_offer_the_server"
    if node.state != "ready":
        return node.state
    if candidate.lease_s <= 0:
        return "lease_expired"
    if not offered(node):
        return ANOTHER_VERSION
    if not permitted(node):
        return "placement_policy"
    return None


def _cost(candidate: Candidate) -> float:
    return (candidate.outstanding + 1) / (candidate.node.slots * candidate.node.weight)
