"""Why an action ran where it ran, as pages show it: the trace of its choice, made again."""

from __future__ import annotations

import msgspec

from gateway.router import trace
from gateway.router.trace import Candidate, Trace
from trust.ledger import entries


class Placed(msgspec.Struct, frozen=True):
    """``candidates`` by cost; ``wrong``: what does not follow when the choice is made again."""

    trace: Trace
    candidates: list[Candidate]
    wrong: list[str]


def placed(entry: object) -> Placed | None:
    """Of an entry that a router wrote; None for others."""
    if not isinstance(entry, entries.Dispatch) or not entry.trace or "looked" not in entry.trace:
        return None
    told = trace.read(entry.trace)
    return Placed(told, sorted(told.looked, key=lambda one: one.cost), trace.replay(told))
