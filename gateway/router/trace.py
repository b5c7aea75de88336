"""Traces of choices: as JSON in the answer and the ledger, and replayed from it to the same choice, or not.

A trace holds what was asked, how many fell out and why, what was known of each node that was looked at, the seed, and
what was chosen. Anyone who has it can compute the choice again: the places that the seed draws, the costs, the order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import isclose
from typing import Any, Final

import msgspec

from gateway.router.capabilities import GPU, LOCALITY
from gateway.router.choice import Choice, Looked, Objective, decide, drawn, draws
from gateway.router.cost import Seen, cost
from gateway.router.eligibility import Eligible, Wanted
from trust.canonical import sha256_hex
from trust.reasons import Reason, Unverifiable

VERSION: Final = 1


class Trace(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``tool_name`` and ``node_id`` are what ran where; ``gpu_match`` and ``locality_match``: whether the node has what
    the work asks for of these (true if it asks for nothing); ``score`` from 0 to 1: 1 for a node that is idle and as
    fast as its class, 0.5 for one that is twice as dear. ``margin``: how much dearer the runner-up is (0.5: by half).

    ``constraints``, ``eliminated`` and ``eligible`` say who could be chosen (``eligible_sha256`` of their names, one
    per line; ``spared``: those passed over because they failed), ``seed``, ``looked`` and ``home`` (where it
    belongs; ``stays``: because what it belongs to is there) who was."""

    tool_name: str
    node_id: str
    gpu_match: bool
    locality_match: bool
    score: float
    why: str
    constraints: dict[str, Any]
    eliminated: dict[str, int]
    eligible: int
    eligible_sha256: str
    seed: str
    looked: list[Candidate]
    runner_up: str = ""
    margin: float = 0.0
    spared: int = 0
    home: str = ""
    stays: bool = False
    attempt: int = 1
    latency_ms: float | None = None
    version: int = VERSION


class Candidate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One node that was looked at: its place among those who could be chosen, what was known, what that costs."""

    at: int
    node: str
    cost: float
    slots: int
    weight_milli: int
    outstanding: int
    oldest_us: int
    peak_us: int
    age_us: int
    prior_us: int


def told(
    wanted: Wanted,
    found: Eligible,
    open_to: Sequence[str],
    choice: Choice,
    holds: frozenset[str],
    home: str,
    stays: bool,
    attempt: int,
) -> Trace:
    """The trace of *choice*, which was made among *open_to*: the *found* that were not spared. *holds*: the
    capabilities of the chosen node."""
    best = choice.looked[choice.chosen]
    other = choice.looked[choice.runner_up] if choice.runner_up >= 0 else None
    idle = best.seen.prior_us * 1000.0 / (best.seen.slots * best.seen.weight_milli)
    requires = wanted.work.requires
    return Trace(
        tool_name=wanted.work.name,
        node_id=choice.node,
        gpu_match=_met(requires, GPU, holds),
        locality_match=_met(requires, LOCALITY, holds),
        score=round(min(1.0, idle / best.cost), 4) if best.cost else 1.0,
        why=choice.why,
        constraints=_constraints(wanted),
        eliminated=dict(found.eliminated),
        eligible=len(open_to),
        eligible_sha256=names_sha256(open_to),
        seed=f"{choice.seed:016x}",
        looked=[_candidate(one) for one in choice.looked],
        runner_up=other.seen.node if other else "",
        margin=round(other.cost / best.cost - 1, 4) if other and best.cost else 0.0,
        spared=len(found.nodes) - len(open_to),
        home=home,
        stays=stays,
        attempt=attempt,
    )


def names_sha256(names: Sequence[str]) -> str:
    return sha256_hex("\n".join(names).encode())


def _met(requires: frozenset[str], capability: str, holds: frozenset[str]) -> bool:
    return all(one in holds for one in requires if re.split("[=@]", one)[0] == capability)


def _constraints(wanted: Wanted) -> dict[str, Any]:
    work, place = wanted.work, wanted.place
    known: dict[str, Any] = {
        "server": work.server,
        "labels": list(work.labels),
        "run_labels": list(work.run),
        "requires": sorted(work.requires),
        "pin": place.pin,
        "kind": place.kind,
        "slo_ms": place.slo_ms,
        "strict": place.strict,
    }
    return {name: value for name, value in known.items() if value}


def _candidate(one: Looked) -> Candidate:
    return Candidate(at=one.at, cost=one.cost, **msgspec.structs.asdict(one.seen))


def read(value: object) -> Trace:
    """A trace as it stands in the ledger, or :class:`Unverifiable`."""
    try:
        return msgspec.convert(value, Trace)
    except msgspec.ValidationError as bad:
        raise Unverifiable(Reason.MALFORMED_REQUEST, f"not a routing trace: {bad}") from None


def replay(trace: Trace) -> list[str]:
    """What does not follow from the trace's own seed and snapshot; empty if the same choice comes out."""
    wrong = []
    seed = int(trace.seed, 16)
    numbers = draws(seed)
    places = drawn(trace.eligible, numbers[2:7])
    at = [one.at for one in trace.looked]
    if at[: len(places)] != places:
        wrong.append(f"the seed draws the places {places}, and {at[: len(places)]} were looked at")
    looked = []
    for one in trace.looked:
        known = msgspec.structs.asdict(one)
        seen = Seen(**{name: known[name] for name in Seen.__struct_fields__})
        if not isclose(cost(seen), one.cost):
            wrong.append(f"{one.node} costs {cost(seen)}, and {one.cost} is told")
        looked.append(Looked(one.at, seen, cost(seen)))
    limits = trace.constraints
    objective = Objective(int(limits.get("slo_ms", 0)) * 1000, bool(limits.get("strict", False)))
    if not looked:
        return [*wrong, "nobody was looked at"]
    again = decide(seed, numbers, trace.eligible, tuple(looked), objective, trace.home, trace.stays)
    if again.chosen < 0 or again.node != trace.node_id:
        wrong.append(f"{again.node if again.chosen >= 0 else 'nobody'} is chosen, and {trace.node_id} is told")
    elif again.why != trace.why:
        wrong.append(f'"{again.why}" decides, and "{trace.why}" is told')
    return wrong


def summary(trace: Mapping[str, Any]) -> dict[str, Any]:
    """What the answer says of a trace: everything but the snapshot, which stands in the ledger."""
    return {name: value for name, value in trace.items() if name != "looked"}
