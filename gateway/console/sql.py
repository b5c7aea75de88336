"""The SQL page: any question that reads, over a copy of the index, in a process that can do nothing else."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from edge.http import Incoming, Response
from gateway.console.door import Door
from gateway.console.visits import Guest
from gateway.ledgers import Ledgers
from gateway.sql import COLUMNS, SECONDS, Answer
from trust.reasons import Unverifiable

HERE: Final = "/sql"
SHOWN: Final = 200
"""Rows on a page; `licet audit sql` and the API tell more."""
MAX_CELL: Final = 400
EXAMPLE: Final = """SELECT agent, reason, count(*) AS refused
FROM entries
WHERE kind = 'refusal' AND time > now()::TIMESTAMP - INTERVAL 7 DAY
GROUP BY ALL ORDER BY refused DESC"""


class SqlPage:
    """What is asked, and what came of it."""

    def __init__(self, ledgers: Ledgers) -> None:
        self._ledgers = ledgers

    def add_to(self, door: Door) -> None:
        self._door = door
        door.section(HERE, "SQL", "ledger.sql", "mesh")
        door.page(HERE, self._page, "ledger.sql", "mesh")
        door.form(HERE, self._ask, "ledger.sql", "mesh")

    async def _page(self, incoming: Incoming, guest: Guest) -> Response:
        return await self._show(incoming, guest, EXAMPLE)

    async def _ask(self, incoming: Incoming, guest: Guest, fields: dict[str, str]) -> Response:
        text = fields.get("sql", "").replace("\r\n", "\n")  # as browsers send it
        try:
            return await self._show(incoming, guest, text, await self._ledgers.sql(text, guest.person.name))
        except Unverifiable as bad:  # what is wrong with the question stands above the question
            return await self._show(incoming, guest, text, problem=bad.detail)

    async def _show(
        self, incoming: Incoming, guest: Guest, text: str, answer: Answer | None = None, problem: str = ""
    ) -> Response:
        status = 400 if problem else 200
        if answer is not None:
            shown = [
                [cell[:MAX_CELL] if isinstance(cell, str) else cell for cell in row] for row in answer.rows[:SHOWN]
            ]
            answer = msgspec.structs.replace(answer, rows=shown, more=answer.more or len(answer.rows) > SHOWN)
        # In a thread: a page of many cells must hold up nobody, least of all a kill.
        return await asyncio.to_thread(
            self._door.show,
            "sql", incoming, guest, status, text=text.split("\n"), answer=answer, problem=problem, columns=COLUMNS,
            seconds=SECONDS, most=SHOWN,
        )  # fmt: skip
