"""The SQL page: any question that reads, over a copy of the index, in a process that can do nothing else."""

from __future__ import annotations

from typing import Final

from edge.http import Incoming, Response
from gateway.console.door import Door
from gateway.console.ledger import READERS
from gateway.console.visits import Guest
from gateway.duck import COLUMNS
from gateway.ledgers import Ledgers
from gateway.sql import MAX_ROWS, SECONDS, Answer
from trust.reasons import Unverifiable

HERE: Final = "/sql"
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
        door.section(HERE, "SQL", *READERS)
        door.page(HERE, self._page, *READERS)
        door.form(HERE, self._ask, *READERS)

    async def _page(self, incoming: Incoming, guest: Guest) -> Response:
        return self._show(incoming, guest, EXAMPLE)

    async def _ask(self, incoming: Incoming, guest: Guest, fields: dict[str, str]) -> Response:
        text = fields.get("sql", "")
        try:
            return self._show(incoming, guest, text, await self._ledgers.sql(text, guest.person.name))
        except Unverifiable as bad:  # what is wrong with the question stands above the question
            return self._show(incoming, guest, text, problem=bad.detail)

    def _show(
        self, incoming: Incoming, guest: Guest, text: str, answer: Answer | None = None, problem: str = ""
    ) -> Response:
        status = 400 if problem else 200
        return self._door.show(
            "sql", incoming, guest, status, text=text.split("\n"), answer=answer, problem=problem, columns=COLUMNS,
            seconds=SECONDS, most=MAX_ROWS,
        )  # fmt: skip
