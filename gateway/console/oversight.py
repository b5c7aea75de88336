"""The Oversight page: is the queue decided by people who look, or is it being rubber-stamped?"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Final

from edge.clock import SystemClock
from edge.http import Incoming, Response
from gateway.approvals.desk import Desk
from gateway.approvals.oversight import GLANCE_US, Oversight, oversight
from gateway.console.charts import Chart, Series, Tone
from gateway.console.door import Door, pairs
from gateway.console.visits import Guest
from gateway.state import ApprovalRecord
from trust.reasons import Reason, Unverifiable, visible

HERE: Final = "/oversight"
SPANS: Final = {"1d": 1, "7d": 7, "30d": 30, "90d": 90}
DAY_S: Final = 86_400
KEPT_S: Final = 5.0
_US: Final = 1_000_000
_ENDS: Final[tuple[tuple[str, str, Tone, tuple[int, ...]], ...]] = (
    ("approved", "approved", "good", ()),
    ("nobody decided", "expired", "wait", (6, 3)),
    ("denied", "denied", "bad", (2, 3)),
)


class OversightPage:
    """Of one gateway."""

    def __init__(self, desk: Desk, clock: SystemClock) -> None:
        self._desk = desk
        self._clock = clock
        self._one = asyncio.Lock()
        self._kept: dict[str, tuple[float, Oversight, Chart]] = {}

    def add_to(self, door: Door) -> None:
        self._door = door
        door.section(HERE, "Oversight", "ledger.read", "mesh")
        door.page(HERE, self._show, "ledger.read", "mesh")

    async def _show(self, incoming: Incoming, guest: Guest) -> Response:
        span = pairs(incoming.query).get("span", "30d")
        if span not in SPANS:
            raise Unverifiable(Reason.MALFORMED_REQUEST, f"span {visible(span)}: expected one of {', '.join(SPANS)}")
        today = int(self._clock.now()) // DAY_S
        first = today - SPANS[span] + 1
        told, chart = await self._counted(span, first, today)
        return self._door.show(
            "oversight",
            incoming,
            guest,
            told=told,
            chart=chart,
            span=span,
            spans=list(SPANS),
            glance_s=GLANCE_US // _US,
        )

    async def _counted(self, span: str, first: int, today: int) -> tuple[Oversight, Chart]:
        """Once for everybody who asks at the same time, and kept for some seconds."""
        async with self._one:
            now = self._clock.mono()
            kept = self._kept.get(span)
            if kept is None or now - kept[0] > KEPT_S:
                records = await self._desk.since(first * DAY_S * _US)
                told = await asyncio.to_thread(lambda: (oversight(records), _by_day(records, first, today)))
                kept = self._kept[span] = (now, *told)
            return kept[1], kept[2]


def _by_day(records: list[ApprovalRecord], first: int, today: int) -> Chart:
    """How what was asked on each day ended."""
    counted: Counter[tuple[int, str]] = Counter(
        (one.requested_at_us // (DAY_S * _US), "approved" if one.state == "consumed" else one.state) for one in records
    )
    days = range(first, today + 1)
    series = [Series(name, tone, dash, [counted[day, state] for day in days]) for name, state, tone, dash in _ENDS]
    return Chart("What was asked, by day, and how it ended", [day * DAY_S for day in days], series, "%Y-%m-%d")
