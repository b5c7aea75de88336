"""What was used, by whom and where: sums, events, and how they agree with the ledger."""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from gateway.index import Index
from trust.ledger import metering
from trust.ledger.metering import Metered
from trust.reasons import Reason, Unverifiable, visible

BY: Final = ("agent", "principal", "team", "node", "node_kind", "tool", "day", "run")
_SUMMED: Final = (
    "took_us", "node_us", "cpu_us", "gpu_us", "bytes_in", "bytes_out", "tokens_in", "tokens_out",
)  # fmt: skip
MAX_EVENTS: Final = 1000
_COLUMNS: Final = ", ".join(f'm."{name}"' for name in metering.COLUMNS)
_DAY_US: Final = 86_400_000_000
_ONLY: Final = (
    "NOT EXISTS (SELECT 1 FROM metered o WHERE o.source = m.source AND o.action_id = m.action_id "
    "AND o.status IN ('done', 'tool_error'))"
)
"""No other attempt of the action brought the answer."""
_WITHIN: Final = "wall_us >= ? AND wall_us < ? AND (? OR agent IN (SELECT value FROM json_each(?)))"
"""From, until, whether of all agents, of which."""
_DECIDED: Final = f"""
SELECT agent, wall_us / 86400000000, kind, count(*) FROM entry
WHERE agent <> '' AND kind IN ('intent', 'refusal', 'hold', 'dispatch') AND step <> 9 AND {_WITHIN}
GROUP BY 1, 2, 3
"""  # noqa: S608


class Sum(msgspec.Struct):
    """Of all attempts of one group; an amount is None if nobody measured any of it. ``lost``: whose outcome is not
    known; ``evaluations`` of policy are told where groups are of agents, teams or days."""

    group: dict[str, str]
    attempts: int = 0
    done: int = 0
    lost: int = 0
    refused: int = 0
    evaluations: int | None = None
    took_us: int | None = None
    node_us: int | None = None
    cpu_us: int | None = None
    gpu_us: int | None = None
    bytes_in: int | None = None
    bytes_out: int | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None


class Reconciled(msgspec.Struct, frozen=True):
    """How metering and ledger agree in a time. ``running``: sent, and not ended yet; ``corrected``: taken back and told
    again, because the node's log knows how it ended; ``unmetered``: what nodes executed without an event."""

    dispatched: int
    finished: int
    events: int
    running: int
    corrected: int
    unmetered: list[str]

    @property
    def agrees(self) -> bool:
        return self.finished == self.events and not self.unmetered


class Usage:
    """Of one gateway; *origin*: whose word it is, whichever process says it."""

    def __init__(self, index: Index, origin: str) -> None:
        self._index = index
        self._origin = origin

    async def sums(
        self,
        by: tuple[str, ...],
        since_us: int,
        until_us: int,
        teams: Mapping[str, str],
        agents: Sequence[str] | None = None,
    ) -> list[Sum]:
        """Each group of *by*, the one with most attempts first; of these *agents* only, unless it is None."""
        within = (agents is None, msgspec.json.encode(list(agents or ())).decode())
        for name in by:
            if name not in BY:
                raise Unverifiable(Reason.MALFORMED_REQUEST, f"by {visible(name)}: expected some of {', '.join(BY)}")
        plain = {"day": f"wall_us / {_DAY_US}", "team": "agent"}
        groups = [plain.get(name, f'"{name}"') for name in by] or ["''"]
        sums = ", ".join(f'sum("{name}")' for name in _SUMMED)
        statuses = ("IN ('done', 'tool_error')", "= 'unknown'", "= 'refused'")
        ended = ", ".join(f"count(*) FILTER (WHERE status {which})" for which in statuses)
        sql = (
            f"SELECT {', '.join(groups)}, count(*), {ended}, {sums} FROM metered "  # noqa: S608 (names of ours only)
            f"WHERE {_WITHIN} GROUP BY {', '.join(map(str, range(1, len(groups) + 1)))}"
        )
        found: dict[tuple[str, ...], Sum] = {}
        for row in await self._index.ask(sql, (since_us, until_us, *within)):
            names = tuple(_named(name, value, teams) for name, value in zip(by, row, strict=False))
            one = found.setdefault(names, Sum(dict(zip(by, names, strict=True))))
            counts = row[len(groups) :]
            one.attempts += counts[0]
            one.done += counts[1]
            one.lost += counts[2]
            one.refused += counts[3]
            for name, value in zip(_SUMMED, counts[4:], strict=True):
                if value is not None:
                    setattr(one, name, (getattr(one, name) or 0) + value)
        await self._evaluations(by, (since_us, until_us, *within), teams, found)
        return sorted(found.values(), key=lambda one: (-one.attempts, sorted(one.group.items())))

    async def _evaluations(
        self, by: tuple[str, ...], which: tuple[object, ...], teams: Mapping[str, str], found: dict[Any, Sum]
    ) -> None:
        """Each decision of a sidecar is one, and each that the gateway makes again; refused ones are nothing else."""
        if not set(by) <= {"agent", "team", "day"}:
            return
        counts: defaultdict[tuple[str, ...], int] = defaultdict(int)
        refused: defaultdict[tuple[str, ...], int] = defaultdict(int)
        for agent, day, kind, count in await self._index.ask(_DECIDED, which):
            known = {"agent": agent, "team": agent, "day": day}
            names = tuple(_named(name, known[name], teams) for name in by)
            counts[names] += count
            refused[names] += count if kind == "refusal" else 0
        for names, count in counts.items():
            one = found.setdefault(names, Sum(dict(zip(by, names, strict=True))))
            one.evaluations, one.refused = count, one.refused + refused[names]

    async def events(self, since_us: int, until_us: int, after: str = "") -> tuple[list[Metered], str]:
        """What finished, the oldest first, and where to go on; what was corrected is taken back and told again."""
        time, _, key = after.partition("|")
        begin = (int(time), key) if time.isdecimal() else (since_us - 1, "\U0010ffff")
        found = await self._index.ask(
            f"SELECT {_COLUMNS}, n.decision FROM metered m "  # noqa: S608
            "LEFT JOIN (SELECT action_id, node, max(decision) AS decision FROM entry "
            "WHERE kind = 'outcome' AND step = 9 AND decision IN ('done', 'tool_error', 'failed') GROUP BY 1, 2) n "
            f"ON m.status = 'unknown' AND n.action_id = m.action_id AND n.node = m.node AND {_ONLY} "
            "WHERE m.status <> '' AND (m.wall_us, m.action_id || ':' || m.attempt) > (?, ?) AND m.wall_us < ? "
            "ORDER BY m.wall_us, m.action_id, m.attempt LIMIT ?",
            (*begin, until_us, MAX_EVENTS),
        )
        told: list[Metered] = []
        for *values, otherwise in found:
            one = Metered(origin=self._origin, **dict(zip(metering.COLUMNS, values, strict=True)))
            told.append(one)
            if otherwise:
                told += [msgspec.structs.replace(one, sign=-1), msgspec.structs.replace(one, status=otherwise)]
        last = told[-1] if told else None
        following = f"{last.wall_us}|{last.action_id}:{last.attempt}" if last and len(found) == MAX_EVENTS else ""
        return told, following

    async def reconcile(self, since_us: int, until_us: int) -> Reconciled:
        """Counts of the ledger beside counts of metering."""
        span = (since_us, until_us)
        count = "SELECT count(*) FROM entry WHERE wall_us >= ? AND wall_us < ? AND step = 8 AND kind = ?"
        [(dispatched,)] = await self._index.ask(count, (*span, "dispatch"))
        [(finished,)] = await self._index.ask(count, (*span, "outcome"))
        [(events, running)] = await self._index.ask(
            "SELECT count(CASE WHEN status <> '' THEN 1 END), count(CASE WHEN status IS NULL THEN 1 END) FROM metered "
            "WHERE wall_us >= ? AND wall_us < ?",
            span,
        )
        [(corrected,)] = await self._index.ask(
            "SELECT count(*) FROM metered m WHERE m.status = 'unknown' AND m.wall_us >= ? AND m.wall_us < ? "  # noqa: S608
            "AND EXISTS (SELECT 1 FROM entry e WHERE e.action_id = m.action_id AND e.action_id <> '' "
            "AND e.kind = 'outcome' AND e.step = 9 AND e.node = m.node "
            f"AND e.decision IN ('done', 'tool_error', 'failed')) AND {_ONLY}",
            span,
        )
        unmetered = await self._index.ask(
            "SELECT DISTINCT e.action_id FROM entry e WHERE e.kind = 'dispatch' AND e.step = 9 AND e.wall_us >= ? "
            "AND e.wall_us < ? AND NOT EXISTS (SELECT 1 FROM metered m WHERE m.action_id = e.action_id) LIMIT 100",
            span,
        )
        return Reconciled(dispatched, finished, events, running, corrected, [action for (action,) in unmetered])


def _named(name: str, value: Any, teams: Mapping[str, str]) -> str:
    if name == "team":
        return teams.get(str(value), "")
    if name == "day":
        return (datetime.date(1970, 1, 1) + datetime.timedelta(days=int(value))).isoformat()
    return str(value or "")
