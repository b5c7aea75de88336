"""The Run pages: which runs there were, and one of them across every hop, with the clause that decided."""

from __future__ import annotations

from typing import Final

import msgspec

from edge.clock import SystemClock
from edge.http import Incoming, Response
from gateway.api.ledger import evidence_file
from gateway.console.asked import Asked
from gateway.console.door import Door, pairs
from gateway.console.placed import Placed, placed
from gateway.console.visits import Guest
from gateway.console.why import Why, Whys
from gateway.evidence import Packer
from gateway.ledgers import Ledgers
from trust.ledger import entries
from trust.ledger.rows import Row
from trust.reasons import Reason, Unverifiable

HERE: Final = "/runs"
DAY_US: Final = 86_400 * 1_000_000
MAX_EXPLAINED: Final = 40
"""Decisions of one run that are made again for its page; the others link to their entries."""
_DECIDES: Final = ("intent", "refusal", "hold")


class Step(msgspec.Struct, frozen=True):
    """One entry: microseconds since the run began, and at which hop."""

    row: Row
    after_us: int
    hop: str
    where: str
    why: Why | None = None
    placed: Placed | None = None


class Act(msgspec.Struct):
    """Everything about one action, or (without a name) about the run itself."""

    action_id: str
    title: str = ""
    agent: str = ""
    decision: str = ""
    ended: str = ""
    steps: list[Step] = []


class RunPages:
    """Across all logs."""

    def __init__(self, ledgers: Ledgers, packer: Packer, whys: Whys, clock: SystemClock) -> None:
        self._ledgers = ledgers
        self._packer = packer
        self._whys = whys
        self._clock = clock

    def add_to(self, door: Door) -> None:
        self._door = door
        door.section(HERE, "Runs", "ledger.read")
        door.page(HERE, self._list, "ledger.read")
        door.page(HERE + "/{run}", self._one, "ledger.read")
        door.page(HERE + "/{run}/evidence", self._evidence, "ledger.export")

    async def _list(self, incoming: Incoming, guest: Guest) -> Response:
        asked = Asked(pairs(incoming.query), self._clock.wall_us(), guest.person)
        since = asked.filter.since_us or self._clock.wall_us() - DAY_US
        runs = await self._ledgers.runs(since, asked.filter.agent, guest.person)
        return self._door.show("runs", incoming, guest, runs=runs, asked=asked)

    async def _one(self, incoming: Incoming, guest: Guest, run: str) -> Response:
        after = pairs(incoming.query).get("after", "")
        page = await self._ledgers.run(run, guest.person, after)
        if not page.rows:
            raise Unverifiable(Reason.NOT_FOUND, f"no log has a run {run} (the index is about a second behind)")
        explained: dict[tuple[str, int], Why | Placed | None] = {}
        for row in [row for row in page.rows if row.kind in _DECIDES][:MAX_EXPLAINED]:
            explained[row.origin, row.index] = await self._whys.of(self._line(row))
        for row in [row for row in page.rows if row.kind == "dispatch" and row.step == 8][:MAX_EXPLAINED]:
            explained[row.origin, row.index] = placed(self._line(row).entry)
        acts = gathered(page.rows, explained)
        return self._door.show("run", incoming, guest, run=run, acts=acts, rows=page.rows, next=page.next)

    def _line(self, row: Row) -> entries.Line:
        return entries.decode(self._ledgers.sealed(row.origin).entry(row.index))

    async def _evidence(self, _incoming: Incoming, guest: Guest, run: str) -> Response:
        return evidence_file(run, await self._packer.pack(run, guest.person))


def gathered(rows: list[Row], explained: dict[tuple[str, int], Why | Placed | None]) -> list[Act]:
    """*rows* (the oldest first) by the action they are about, in the order in which actions began.

    What names only an approval belongs to the action that was held for it, or ran under it.
    """
    begin = rows[0].wall_us
    # A held action and the claim that runs it are two decisions about one thing: the approval ties them together.
    first_of: dict[str, str] = {}
    for row in rows:
        if row.approval and row.action_id:
            first_of.setdefault(row.approval, row.action_id)
    joined = {row.action_id: first_of[row.approval] for row in rows if row.approval and row.action_id}
    acts: dict[str, Act] = {}
    for row in rows:
        action = row.action_id or first_of.get(row.approval, "")
        act = acts.setdefault(joined.get(action, action), Act(action))
        hop, _, where = row.origin.partition("/")[2].partition("/")
        told = explained.get((row.origin, row.index))
        why, way = (None, told) if isinstance(told, Placed) else (told, None)
        act.steps.append(Step(row, row.wall_us - begin, hop, where, why, way))
        if row.kind in _DECIDES:
            act.title, act.agent = f"{row.server}/{row.tool}" if row.tool else row.words, row.agent
            act.decision = row.decision
        elif row.kind == "outcome":
            act.ended = row.decision
    return list(acts.values())
