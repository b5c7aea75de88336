"""The Ledger pages: what all logs say, found by what it says; one entry with its proof."""

from __future__ import annotations

import json
from typing import Final

from edge.clock import SystemClock
from edge.http import Incoming, Response, StreamResponse
from gateway import exporting
from gateway.api.ledger import export
from gateway.console.asked import TEXTS, Asked
from gateway.console.door import ROOT, Door, pairs
from gateway.console.pages import redirect
from gateway.console.placed import placed
from gateway.console.visits import Guest
from gateway.console.why import Whys
from gateway.fold import namespace_of
from gateway.ledgers import Ledgers, Opened
from gateway.people import require_name
from gateway.records import Records
from gateway.state import SavedQuery
from trust.ledger import entries
from trust.ledger.rows import row
from trust.reasons import Reason, Unverifiable, visible

HERE: Final = "/ledger"
FACETS: Final = ("decision", "agent", "tool", "reason", "owner", "node", "kind")
MAX_SAVED: Final = 200
MAX_QUERY: Final = 2_000


class LedgerPages:
    """For whoever may read the record. That they read it is recorded."""

    def __init__(self, ledgers: Ledgers, records: Records, whys: Whys, clock: SystemClock) -> None:
        self._ledgers = ledgers
        self._records = records
        self._whys = whys
        self._clock = clock

    def add_to(self, door: Door) -> None:
        self._door = door
        door.section(HERE, "Ledger", "ledger.read")
        door.page(HERE, self._search, "ledger.read")
        door.page(f"{HERE}/news", self._news, "ledger.read")
        door.page(f"{HERE}/entry", self._entry, "ledger.read")
        door.page(f"{HERE}/proof", self._proof, "ledger.read")
        door.page(f"{HERE}/export", self._export, "ledger.export")
        door.form(f"{HERE}/saved", self._save, "ledger.read")
        door.form(f"{HERE}/forget", self._forget, "ledger.read")

    async def _search(self, incoming: Incoming, guest: Guest) -> Response:
        asked = Asked(pairs(incoming.query), self._clock.wall_us(), guest.person)
        page = await self._ledgers.find(asked.filter, guest.person.name)
        facets = await self._ledgers.index.facets(asked.filter, FACETS)
        return self._door.show(
            "ledger",
            incoming,
            guest,
            asked=asked,
            texts=TEXTS,
            forms=tuple(exporting.TYPES),
            rows=page.rows,
            next=page.next,
            facets=facets,
            logs=[] if guest.person.namespace else await self._ledgers.state(),
            saved=self._saved(guest),
            newest_us=max((one.wall_us for one in page.rows), default=self._clock.wall_us()),
        )

    def _saved(self, guest: Guest) -> list[SavedQuery]:
        """What people of the same namespace saved, for who is of one."""
        return [one for one in self._records.store.all(SavedQuery) if self._door.sees(guest, "person", one.by)]

    async def _news(self, incoming: Incoming, guest: Guest) -> Response:
        """How much is new; only a number, and so not recorded as reading."""
        fields = pairs(incoming.query)
        shown = fields.pop("shown_us", "")
        if not shown.isdecimal() or len(shown) > 17:
            raise Unverifiable(Reason.MALFORMED_REQUEST, "shown_us: expected the time of the newest entry shown")
        asked = Asked(fields, self._clock.wall_us(), guest.person)
        count = await self._ledgers.index.news(asked.filter, int(shown))
        return self._door.show("ledger_news", incoming, guest, count=count, asked=asked)

    async def _entry(self, incoming: Incoming, guest: Guest) -> Response:
        origin, index = place(incoming)
        data = await self._ledgers.read(origin, index, guest.person)
        line = entries.decode(data)
        return self._door.show(
            "entry",
            incoming,
            guest,
            row=row(line),
            line=line,
            proved=self._ledgers.proved(origin, index),
            why=await self._whys.of(line),
            opened=self._opened(line),
            placed=placed(line.entry),
            text=json.dumps(json.loads(data), indent=2, ensure_ascii=False).split("\n"),
        )

    def _opened(self, line: entries.Line) -> Opened | None:
        """What is personal of it, if anything is."""
        deed = getattr(line.entry, "deed", None)
        return self._ledgers.opened(deed) if deed is not None and deed.sealed is not None else None

    async def _proof(self, incoming: Incoming, guest: Guest) -> StreamResponse:
        """The proof as a file."""
        origin, index = place(incoming)
        await self._ledgers.require_seen(origin, index, guest.person)
        await self._records.note(entries.Query(guest.person.name, "proof", f"{origin}#{index}", 1))
        name = f"{origin.replace('/', '_')}-{index}.tlog-proof"
        headers = {
            "Content-Type": "text/plain; charset=utf-8",
            "Content-Disposition": f'attachment; filename="{name}"',
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
        }
        return Response(body=self._ledgers.sealed(origin).proof(index), headers=headers)

    async def _export(self, incoming: Incoming, guest: Guest) -> StreamResponse:
        fields = pairs(incoming.query)
        wanted = exporting.form(fields.pop("format", ""))
        asked = Asked(fields, self._clock.wall_us(), guest.person)
        return await export(self._ledgers, incoming, asked.filter, wanted, guest.person.name)

    async def _save(self, _incoming: Incoming, guest: Guest, fields: dict[str, str]) -> Response:
        """Keep a question under a name, for everybody who may ask."""
        name, asked = require_name(fields.get("name", "")), fields.get("asked", "")
        if len(asked) > MAX_QUERY:
            raise Unverifiable(Reason.MALFORMED_REQUEST, f"the query has {len(asked)} characters of {MAX_QUERY}")
        asked = Asked(pairs(asked), self._clock.wall_us(), guest.person).query()
        async with self._records.deciding:
            known = {one.name: one for one in self._records.store.all(SavedQuery)}
            if name in known and not self._door.sees(guest, "person", known[name].by):
                raise Unverifiable(Reason.NOT_YOURS, f'somebody else saved a query as "{visible(name)}"')
            own = guest.person.namespace
            saved = sum(namespace_of(self._records.store, one.by) == own for one in known.values())
            if name not in known and saved >= MAX_SAVED:
                raise Unverifiable(Reason.OVERLOADED, f"{MAX_SAVED} queries are saved; remove one first")
            await self._records.change(entries.SavedQuery("saved", name, guest.person.name, asked))
        return redirect(f"{ROOT}{HERE}?{asked}")

    async def _forget(self, _incoming: Incoming, guest: Guest, fields: dict[str, str]) -> Response:
        name = fields.get("name", "")
        async with self._records.deciding:
            if name not in {one.name for one in self._saved(guest)}:
                raise Unverifiable(Reason.NOT_FOUND, f'no query is saved as "{visible(name)}"')
            await self._records.change(entries.SavedQuery("removed", name, guest.person.name))
        return redirect(f"{ROOT}{HERE}")


def place(incoming: Incoming) -> tuple[str, int]:
    """Origin and index in a query, or :class:`Unverifiable`."""
    fields = pairs(incoming.query)
    index = fields.get("index", "")
    if not index.isdecimal() or len(index) > 12 or set(fields) != {"origin", "index"}:
        raise Unverifiable(Reason.MALFORMED_REQUEST, "expected origin=…&index=NUMBER")
    return fields["origin"], int(index)
