"""What the logs do not say: lost tails, missing intents, unknown outcomes, clocks that jump, logs nobody witnesses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

import msgspec

from gateway.index import Index
from gateway.state import LogRecord
from trust.ledger import words

Kind = Literal["contradicted", "dropped", "no_intent", "unknown", "unfinished", "clock", "unwitnessed", "unsealed"]
KINDS: Final[dict[Kind, str]] = {
    "contradicted": "A log contradicts what was witnessed of it, or came with another key.",
    "dropped": "Something could not be recorded, or was cut off after a crash.",
    "no_intent": "The gateway sent an action to a node, and no log says that its sidecar decided it.",
    "unknown": "The action left, and nobody can say whether it happened.",
    "unfinished": "An action was allowed, and no entry says how it ended.",
    "clock": "A clock went backward, or differs from the gateway's.",
    "unwitnessed": "Nothing of this log reached the gateway for some time: what is newer can still be changed there.",
    "unsealed": "Entries that are sealed and not yet searchable.",
}
"""In the order in which they matter, each in one sentence."""

AFTER_US: Final = 60 * 1_000_000
"""An intent without outcome, or a dispatch without intent, is still under way for so long."""
SILENT_US: Final = 90 * 1_000_000
"""A log is shipped within a second when it grows, and every 30 seconds when it does not."""
SKEW_US: Final = 5 * 1_000_000
STEP_BACK_US: Final = 1_000_000
BEHIND: Final = 2_000
"""Entries; the index follows once a second, and a busy second brings some."""
MOST: Final = 200
"""Of one kind."""


class Gap(msgspec.Struct, frozen=True):
    """One thing that is missing; ``index`` is -1 where it is about a whole log."""

    kind: Kind
    origin: str
    index: int
    wall_us: int
    words: str
    run: str = ""


class LogState(msgspec.Struct, frozen=True):
    """One log: how many of its entries are sealed and how many searchable; what the witness last heard of it and when
    (Unix microseconds). ``record`` is None for the witness's own log; ``stuck`` says why the index stands still;
    ``closed`` why nothing more is expected."""

    origin: str
    sealed: int
    indexed: int
    sealed_ms: int
    record: LogRecord | None = None
    seen_us: int = 0
    stuck: str = ""
    closed: str = ""


async def find(index: Index, logs: Sequence[LogState], since_us: int, now_us: int) -> list[Gap]:
    """Everything that is missing since then; times are Unix microseconds."""
    found = [gap for log in logs for gap in _of_a_log(log, now_us)]
    for kind, sql, said in _QUESTIONS:
        found += [
            Gap(kind, origin, place, wall_us, said(rest), run)
            for origin, place, wall_us, run, *rest in await index.ask(sql, (since_us, now_us - AFTER_US, MOST))
        ]
    order = list(KINDS)
    return sorted(found, key=lambda gap: (order.index(gap.kind), -gap.wall_us))


def _of_a_log(log: LogState, now_us: int) -> list[Gap]:
    found = []
    if log.stuck:
        found.append(Gap("unsealed", log.origin, log.indexed, now_us, f"the index stands still here: {log.stuck}"))
    behind = log.sealed - log.indexed
    if behind > BEHIND:
        found.append(Gap("unsealed", log.origin, -1, now_us, f"{behind} entries are not searchable yet"))
    record = log.record
    if record is None:
        return found
    if record.wrong:
        found.append(Gap("contradicted", log.origin, -1, record.at_us, record.wrong))
    silent = now_us - log.seen_us
    if silent > SILENT_US and not log.closed:
        told = f"nothing since {words.moment(log.seen_us)}" if log.seen_us else "nothing was ever witnessed of it"
        found.append(Gap("unwitnessed", log.origin, -1, log.seen_us, told))
    apart = record.time_ms * 1000 - record.at_us
    if record.size and abs(apart) > SKEW_US:
        which = "ahead of" if apart > 0 else "behind"
        found.append(
            Gap("clock", log.origin, -1, record.at_us, f"{abs(apart) / 1e6:.0f} s {which} the gateway's clock")
        )
    return found


_COLUMNS: Final = "s.origin, e.place, e.wall_us, e.run"
_FROM: Final = "FROM entry e JOIN source s ON s.id = e.source"
_QUESTIONS: Final[tuple[tuple[Kind, str, Callable[[list[Any]], str]], ...]] = (
    (
        "dropped",
        f"SELECT {_COLUMNS}, e.words {_FROM} WHERE e.kind = 'gap' AND e.kind <> '' AND e.wall_us >= ?1 "
        "AND ?2 > 0 ORDER BY e.wall_us DESC LIMIT ?3",
        lambda rest: str(rest[0]),
    ),
    (
        "no_intent",
        f"SELECT {_COLUMNS}, e.words {_FROM} WHERE e.kind = 'dispatch' AND e.kind <> '' AND e.step = 8 "  # noqa: S608
        "AND e.wall_us >= ?1 AND e.wall_us < ?2 AND NOT EXISTS (SELECT 1 FROM entry i WHERE i.action_id = e.action_id "
        "AND i.action_id <> '' AND i.kind = 'intent') ORDER BY e.wall_us DESC LIMIT ?3",
        lambda rest: str(rest[0]),
    ),
    (
        "unknown",
        f"SELECT {_COLUMNS}, e.words {_FROM} WHERE e.kind = 'outcome' AND e.decision = 'unknown' "
        "AND e.decision <> '' AND e.wall_us >= ?1 AND ?2 > 0 ORDER BY e.wall_us DESC LIMIT ?3",
        lambda rest: str(rest[0]),
    ),
    (
        "unfinished",
        f"SELECT {_COLUMNS}, e.words {_FROM} WHERE e.kind = 'intent' AND e.kind <> '' "  # noqa: S608
        "AND e.wall_us >= ?1 AND e.wall_us < ?2 AND NOT EXISTS (SELECT 1 FROM entry o WHERE o.action_id = e.action_id "
        "AND o.action_id <> '' AND o.kind = 'outcome' AND o.source = e.source) ORDER BY e.wall_us DESC LIMIT ?3",
        lambda rest: str(rest[0]),
    ),
    (
        "clock",
        "SELECT origin, place, wall_us, run, before - wall_us FROM ("  # noqa: S608
        f"SELECT {_COLUMNS}, lag(e.wall_us) OVER (PARTITION BY e.source ORDER BY e.place) AS before {_FROM} "
        "WHERE e.wall_us >= ?1 AND ?2 > 0) "
        f"WHERE before - wall_us > {STEP_BACK_US} ORDER BY wall_us DESC LIMIT ?3",
        lambda rest: f"{rest[0] / 1e6:.1f} s earlier than the entry before it",
    ),
)
