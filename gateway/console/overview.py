"""The Overview page: what is degraded, what was decided over time, what is refused most, agents' trust, nodes."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from edge.http import Incoming, Response
from gateway.api.access import Services
from gateway.condition import Seen, troubles
from gateway.console.charts import Chart, Series, slots
from gateway.console.door import Door, pairs
from gateway.console.visits import Guest
from gateway.state import Killed, Tripped
from trust.reasons import Reason, Unverifiable, visible

HERE: Final = "/overview"
SPANS: Final = {"1h": (60, 60), "1d": (900, 96), "7d": (7_200, 84)}
"""What can be asked for: seconds of one slot, and how many slots."""
TOP: Final = 10
SHOWN: Final = 12
LATE_US: Final = 5 * 60 * 1_000_000
DECIDED: Final = """
SELECT wall_us / (?1 * 1000000), kind, count(*) FROM entry WHERE kind = 'intent' AND wall_us >= ?2 GROUP BY 1
UNION ALL
SELECT wall_us / (?1 * 1000000), kind, count(*) FROM entry WHERE kind = 'hold' AND wall_us >= ?2 GROUP BY 1
UNION ALL
SELECT wall_us / (?1 * 1000000), kind, count(*) FROM entry WHERE kind = 'refusal' AND wall_us >= ?2 GROUP BY 1
"""
_DENIED: Final = """
SELECT agent, server, tool, reason, count(*) FROM entry WHERE kind = 'refusal' AND wall_us >= ? AND agent <> ''
GROUP BY 1, 2, 3, 4 ORDER BY 5 DESC, 1, 2, 3, 4 LIMIT ?
"""


class Denied(msgspec.Struct, frozen=True):
    """What was refused, and how often."""

    agent: str
    server: str
    tool: str
    reason: str
    count: int


class OverviewPage:
    """Of one gateway."""

    def __init__(self, services: Services) -> None:
        self._s = services

    def add_to(self, door: Door) -> None:
        self._door = door
        door.section(HERE, "Overview", "ledger.read", "mesh")
        door.page(HERE, self._show, "ledger.read", "mesh")

    async def _show(self, incoming: Incoming, guest: Guest) -> Response:
        span = pairs(incoming.query).get("span", "1d")
        if span not in SPANS:
            raise Unverifiable(Reason.MALFORMED_REQUEST, f"span {visible(span)}: expected one of {', '.join(SPANS)}")
        s, index = self._s, self._s.ledgers.index
        chart, since_us = await decided(s, span)
        denied = [Denied(*row) for row in await index.ask(_DENIED, (since_us, TOP))]
        nodes = s.fleet.shown()
        trusted = sorted(((s.standings.standing(one.agent.name), one) for one in s.registry.agents()), key=_least_first)
        return self._door.show(
            "overview", incoming, guest, span=span, spans=list(SPANS), chart=chart, denied=denied, nodes=nodes,
            agents=trusted[:SHOWN], more=max(0, len(trusted) - SHOWN), troubles=troubles(await self._seen(nodes)),
            pending=s.desk.pending,
        )  # fmt: skip

    async def _seen(self, nodes: list[Any]) -> Seen:
        s, now_us = self._s, self._s.clock.wall_us()
        return Seen(
            now_us=now_us,
            policies=s.bundles.degraded,
            active=s.bundles.sealed is not None,
            broken=str(s.records.fault or s.records.ledger.fault or ""),
            anchors=s.anchors.fault,
            logs=await s.ledgers.state(),
            nodes=nodes,
            killed=list(s.records.store.all(Killed)),
            tripped=list(s.records.store.all(Tripped)),
            late=s.desk.ending_before(now_us + LATE_US),
        )


async def decided(services: Services, span: str, agent: str = "") -> tuple[Chart, int]:
    """What was allowed, held and refused, and since when (Unix microseconds)."""
    step_s, count = SPANS[span]
    begin_s = (int(services.clock.now()) // step_s - count + 1) * step_s
    found = await services.ledgers.index.ask(DECIDED, (step_s, begin_s * 1_000_000))
    values = slots(found, begin_s, step_s, count)
    nothing = [0] * count
    series = [
        Series("allowed", "good", (), values.get("intent", nothing)),
        Series("held", "wait", (6, 3), values.get("hold", nothing)),
        Series("refused", "bad", (2, 3), values.get("refusal", nothing)),
    ]
    times = [begin_s + i * step_s for i in range(count)]
    return Chart("Decisions over time", times, series), begin_s * 1_000_000


def _least_first(one: tuple[Any, Any]) -> tuple[int, str]:
    standing, record = one
    return standing.score, record.agent.name
