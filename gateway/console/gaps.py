"""The Gaps page: what the logs do not say, by how much it matters."""

from __future__ import annotations

from typing import Final

from edge.clock import SystemClock
from edge.http import Incoming, Response
from gateway.console.asked import Asked
from gateway.console.door import Door, pairs
from gateway.console.visits import Guest
from gateway.gaps import KINDS
from gateway.ledgers import Ledgers

HERE: Final = "/gaps"
WEEK_US: Final = 7 * 86_400 * 1_000_000


class GapPages:
    """Of the last week, unless asked otherwise."""

    def __init__(self, ledgers: Ledgers, clock: SystemClock) -> None:
        self._ledgers = ledgers
        self._clock = clock

    def add_to(self, door: Door) -> None:
        self._door = door
        door.section(HERE, "Gaps", "ledger.read", "mesh")
        door.page(HERE, self._gaps, "ledger.read", "mesh")

    async def _gaps(self, incoming: Incoming, guest: Guest) -> Response:
        asked = Asked(pairs(incoming.query), self._clock.wall_us(), guest.person)
        since = asked.filter.since_us or self._clock.wall_us() - WEEK_US
        found = await self._ledgers.gaps(since, guest.person.name)
        by_kind = {kind: [gap for gap in found if gap.kind == kind] for kind in KINDS}
        return self._door.show(
            "gaps", incoming, guest, asked=asked, since_us=since, by_kind=by_kind, kinds=KINDS, found=found,
            logs=await self._ledgers.state(),
        )  # fmt: skip
