"""Who may run a call: every constraint, checked one by one, with a reason for each node that falls out. Pure.

Constraints never soften. They come from the signed bundle and the registry; a caller can only narrow further. When
nobody is left, nobody is chosen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import msgspec

from gateway.router.placement import Work
from gateway.state import NodeRecord
from trust.wire import Place

ANOTHER_VERSION = "offers_another_version"
"""The node has the server, but not the tool as it was admitted."""


class Candidate(msgspec.Struct, frozen=True):
    """A node as it is now. ``alive``: its lease runs; ``admitted``: by policy; ``holds``: what it verifiably is."""

    node: NodeRecord
    alive: bool
    admitted: bool
    holds: frozenset[str] = frozenset()


class Wanted(msgspec.Struct, frozen=True):
    """What is to run, and how the caller narrows where."""

    work: Work
    place: Place = Place()


class Eligible(msgspec.Struct, frozen=True):
    """``nodes`` in the order of their names, and how many fell out for which reason."""

    nodes: tuple[str, ...]
    eliminated: Mapping[str, int]


Question = Callable[[Candidate], bool]
"""What is wanted of one node."""


def eligible(candidates: Iterable[Candidate], wanted: Wanted, offered: Question, permitted: Question) -> Eligible:
    """*offered*: whether the tool is there as it was admitted; *permitted*: whether placement policy says yes."""
    eliminated: Counter[str] = Counter()
    nodes = []
    for candidate in candidates:
        reason = why_not(candidate, wanted, offered, permitted)
        if reason:
            eliminated[reason] += 1
        else:
            nodes.append(candidate.node.name)
    return Eligible(tuple(sorted(nodes)), dict(sorted(eliminated.items())))


def why_not(candidate: Candidate, wanted: Wanted, offered: Question, permitted: Question) -> str:
    """Why the node is not eligible, the cheapest question first; empty if it is."""
    node, place = candidate.node, wanted.place
    if place.pin is not None and place.pin != node.name:
        return "not_pinned"
    if place.kind is not None and place.kind != node.kind:
        return "of_another_kind"
    if wanted.work.server not in node.servers:
        return "does_not_offer_the_server"
    if node.state != "ready":
        return node.state
    if not candidate.alive:
        return "lost"
    if not candidate.admitted:
        return "not_admitted"
    lacking = wanted.work.requires - candidate.holds
    if lacking:
        return f"lacks:{min(lacking)}"
    if not offered(candidate):
        return ANOTHER_VERSION
    if not permitted(candidate):
        return "placement_policy"
    return ""
