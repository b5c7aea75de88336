"""The Agents pages: who may act, how far each is trusted and why, and the button that stops one."""

from __future__ import annotations

from collections import defaultdict
from typing import Final

import msgspec

from edge.http import Incoming, Response
from gateway.api.access import Services
from gateway.console.charts import RECENT, Chart, Series, spark
from gateway.console.door import ROOT, Door, pairs
from gateway.console.pages import redirect
from gateway.console.visits import Guest
from gateway.state import AgentRecord, Moved
from trust.standing.score import HIGHEST, Standing

HERE: Final = "/agents"
WEEK_US: Final = 7 * 86_400 * 1_000_000
STORY: Final = 200
PAGE: Final = 100
_COUNTED: Final = """
SELECT agent, decision, count(*), max(wall_us) FROM entry INDEXED BY by_agent_and_decision
WHERE agent <> '' AND decision IN ('allow', 'hold', 'deny') AND wall_us >= ? GROUP BY 1, 2
"""


class Listed(msgspec.Struct, frozen=True):
    """One agent in a list. ``counts``: of a week, by decision; ``last_us``: of its last decision then, or 0."""

    record: AgentRecord
    standing: Standing
    state: str
    line: str
    counts: dict[str, int]
    last_us: int


class AgentPages:
    """Of one gateway."""

    def __init__(self, services: Services) -> None:
        self._s = services

    def add_to(self, door: Door) -> None:
        self._door = door
        door.section(HERE, "Agents", "agents.see")
        door.page(HERE, self._list, "agents.see")
        door.page(HERE + "/{name}", self._one, "agents.see", "agent")
        door.form(HERE + "/{name}/stop", self._stop, "agents.stop", "agent")
        door.form(HERE + "/{name}/lift", self._lift, "agents.stop", "agent")

    async def _list(self, incoming: Incoming, guest: Guest) -> Response:
        counts: dict[str, dict[str, int]] = defaultdict(dict)
        last: dict[str, int] = defaultdict(int)
        since = self._s.clock.wall_us() - WEEK_US
        for agent, decision, count, at_us in await self._s.ledgers.index.ask(_COUNTED, (since,)):
            counts[agent][decision] = count
            last[agent] = max(last[agent], at_us)
        after = pairs(incoming.query).get("after", "")
        seen = (one for one in self._s.registry.agents() if self._s.control.sees(guest.person, one.namespace))
        names = sorted((one for one in seen if one.agent.name > after), key=_name)
        found = [self._listed(one, counts[one.agent.name], last[one.agent.name]) for one in names[:PAGE]]
        following = found[-1].record.agent.name if len(names) > PAGE else ""
        return self._door.show("agents", incoming, guest, agents=found, next=following)

    def _listed(self, record: AgentRecord, counts: dict[str, int], last_us: int) -> Listed:
        name = record.agent.name
        stopped = self._s.stops.of(record.agent)
        state = str(stopped.reason) if stopped is not None else "active" if record.agent.key else "registered"
        line = spark([one.entry.after for one in self._s.standings.lately(name, RECENT)], HIGHEST)
        return Listed(record, self._s.standings.standing(name), state, line, counts, last_us)

    async def _one(self, incoming: Incoming, guest: Guest, name: str) -> Response:
        record = self._s.registry.known_agent(name)
        moved = self._s.standings.lately(name, STORY)
        killed = self._s.stops.killed(record.agent)
        return self._door.show(
            "agent", incoming, guest, one=self._listed(record, {}, 0), moved=moved[::-1], chart=_trust(moved),
            stopped=self._s.stops.of(record.agent), killed=killed,
            stops=self._door.may(guest, "agents.stop", "agent", name),
        )  # fmt: skip

    async def _stop(self, _incoming: Incoming, guest: Guest, fields: dict[str, str], name: str) -> Response:
        self._s.registry.known_agent(name)
        await self._s.stops.kill(name, guest.person.name, fields.get("reason", ""))
        await self._s.desk.cancel_stopped()
        return redirect(f"{ROOT}{HERE}/{name}")

    async def _lift(self, _incoming: Incoming, guest: Guest, fields: dict[str, str], name: str) -> Response:
        self._s.registry.known_agent(name)
        await self._s.stops.unkill(name, guest.person.name, fields.get("reason", ""))
        return redirect(f"{ROOT}{HERE}/{name}")


def _name(record: AgentRecord) -> str:
    return record.agent.name


def _trust(moved: list[Moved]) -> Chart | None:
    """The score over time, which stands between what moved it."""
    if len(moved) < 2:
        return None
    times = [one.entry.at_s for one in moved]
    form = "%Y-%m-%d %H:%M:%S"
    return Chart(
        "Trust", times, [Series("score", "accent", (), [one.entry.after for one in moved])], form, True, HIGHEST
    )
