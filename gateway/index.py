"""The index over all logs: rows in SQLite by which entries are found. It proves nothing, and can be made again.

Each log is read from where the index ends, so nothing is left out over restarts; rows and how far they go are written
together. Delete the file and the next start reads everything again, to the same content.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import msgspec

from trust.canonical import sha256_hex
from trust.ledger import entries, rows
from trust.ledger.rows import Row

_log = logging.getLogger("licet.gateway")
BATCH: Final = 2_000
MAX_ROWS: Final = 1_000
"""In one page."""
COUNTED: Final = 20_000
"""Facets are counted over so many of the newest entries: over a million they would hold up whoever asks next."""
_NOISE: Final = ("query", "witness")
"""Kinds that come from looking: who waits for news does not wait for these."""
_TEXTS: Final = (
    "kind", "decision", "reason", "agent", "principal", "owner", "run", "decision_id", "action_id", "approval",
    "server", "tool", "node", "by",
)  # fmt: skip
_COLUMNS: Final = ("place", "wall_us", "step", *_TEXTS, "policies", "words")
_FIND_BY: Final = 'CREATE INDEX IF NOT EXISTS "by_{0}" ON entry ("{0}", wall_us) WHERE "{0}" <> \'\';'
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS source (id INTEGER PRIMARY KEY, origin TEXT NOT NULL UNIQUE, next INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS entry (
  source INTEGER NOT NULL, place INTEGER NOT NULL, wall_us INTEGER NOT NULL, step INTEGER NOT NULL, {texts},
  policies TEXT NOT NULL, words TEXT NOT NULL, PRIMARY KEY (source, place)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_time ON entry (wall_us);
{indices}
CREATE INDEX IF NOT EXISTS by_agent_and_decision ON entry (agent, decision, wall_us) WHERE agent <> '';
CREATE TABLE IF NOT EXISTS policy (
  policy TEXT NOT NULL, wall_us INTEGER NOT NULL, source INTEGER NOT NULL, place INTEGER NOT NULL,
  PRIMARY KEY (policy, wall_us, source, place)
) WITHOUT ROWID;
""".format(
    texts=", ".join(f'"{name}" TEXT NOT NULL' for name in _TEXTS),
    indices="\n".join(_FIND_BY.format(name) for name in _TEXTS),
)
_Result = TypeVar("_Result")


class Source(Protocol):
    """One log as the index reads it."""

    @property
    def origin(self) -> str: ...

    @property
    def first(self) -> int:
        """The index of the first entry that was not pruned."""

    def entries(self, start: int) -> Iterator[bytes]:
        """Every entry that is there now, from index *start* on."""


class Filter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is asked for; what is empty is not asked. ``since_us`` and ``until_us``: Unix microseconds, the latter
    excluded. ``tool`` is a name, or ``server/tool``. ``after``: the ``next`` of the page before."""

    origin: str = ""
    kind: str = ""
    decision: str = ""
    reason: str = ""
    agent: str = ""
    principal: str = ""
    owner: str = ""
    run: str = ""
    decision_id: str = ""
    action_id: str = ""
    approval: str = ""
    server: str = ""
    tool: str = ""
    node: str = ""
    by: str = ""
    policy: str = ""
    since_us: int = 0
    until_us: int = 0
    limit: int = 50
    after: str = ""
    oldest_first: bool = False


class Page(msgspec.Struct, frozen=True):
    """``next`` continues; empty when there is no more."""

    rows: list[Row]
    next: str = ""


class RunSummary(msgspec.Struct, frozen=True):
    """One run in numbers; times are Unix microseconds."""

    run: str
    agent: str
    first_us: int
    last_us: int
    allowed: int
    refused: int
    held: int
    unknown: int


_RUNS: Final = """
SELECT run, max(agent), min(wall_us), max(wall_us), sum(kind = 'intent'), sum(kind = 'refusal'), sum(kind = 'hold'),
  count(DISTINCT CASE WHEN kind = 'outcome' AND decision = 'unknown' THEN action_id END)
FROM entry WHERE wall_us >= ?1 AND run <> '' AND (?2 = '' OR agent = ?2 OR agent = '')
GROUP BY run HAVING ?2 = '' OR max(agent) = ?2 ORDER BY 4 DESC LIMIT ?3
"""


class Index:
    """Of one gateway; works in a thread of its own. ``stuck``: logs that it cannot follow, and why. ``generation``
    rises when a log is read from its beginning."""

    def __init__(self, path: Path, sources: Callable[[], Iterable[Source]]) -> None:
        self._sources = sources
        self.stuck: dict[str, str] = {}
        self.generation = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="index")
        self._db: sqlite3.Connection = self._thread.submit(self._open, path).result()

    @staticmethod
    def _open(path: Path) -> sqlite3.Connection:
        path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(path, isolation_level=None)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")  # what a power failure takes is read again from the logs
        form = int(sha256_hex(_SCHEMA.encode())[:7], 16)
        if db.execute("PRAGMA user_version").fetchone() != (form,):
            for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                db.execute(f'DROP TABLE "{table}"')
            db.executescript(_SCHEMA)
            db.execute(f"PRAGMA user_version = {form}")
        return db

    async def _in_thread(self, work: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    # Following the logs

    async def follow(self) -> int:
        """Read what the logs have beyond the index; how many entries that were."""
        total = 0
        for source in list(self._sources()):
            try:
                while count := await self._in_thread(lambda source=source: self._read(source)):  # type: ignore[misc]
                    total += count
                    if count < BATCH:
                        break
                self.stuck.pop(source.origin, None)
            except Exception as bad:
                # One log that cannot be read must not hide the others; the page of gaps says that it stands still.
                if source.origin not in self.stuck:
                    _log.exception("the index cannot follow %s", source.origin)
                self.stuck[source.origin] = f"{type(bad).__name__}: {bad}"
        return total

    def _read(self, source: Source) -> int:
        """One batch, in one transaction."""
        self._db.execute("INSERT OR IGNORE INTO source (origin, next) VALUES (?, 0)", (source.origin,))
        number, start = self._db.execute("SELECT id, next FROM source WHERE origin = ?", (source.origin,)).fetchone()
        start = max(start, source.first)
        found = [rows.row(entries.decode(data)) for data in islice(source.entries(start), BATCH)]
        if found:
            with self._transaction():
                self._add(number, found)
                self._db.execute("UPDATE source SET next = ? WHERE id = ?", (start + len(found), number))
        return len(found)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _add(self, number: int, found: list[Row]) -> None:
        marks = ", ".join("?" for _ in range(len(_COLUMNS) + 1))
        self._db.executemany(
            f"INSERT OR REPLACE INTO entry VALUES ({marks})",  # noqa: S608 (nothing in it comes from outside)
            [
                (number, one.index, one.wall_us, one.step, *(getattr(one, name) for name in _TEXTS),
                 "\n".join(one.policies), one.words)
                for one in found
            ],
        )  # fmt: skip
        self._db.executemany(
            "INSERT OR IGNORE INTO policy VALUES (?, ?, ?, ?)",
            [(policy, one.wall_us, number, one.index) for one in found for policy in one.policies],
        )

    async def prune(self, origin: str, first: int) -> None:
        """The entries of a log below *first* are gone."""

        def work() -> None:
            known = self._db.execute("SELECT id FROM source WHERE origin = ?", (origin,)).fetchone()
            if known is not None:
                with self._transaction():
                    for table in ("entry", "policy"):
                        self._db.execute(f"DELETE FROM {table} WHERE source = ? AND place < ?", (*known, first))  # noqa: S608

        self.generation += 1
        await self._in_thread(work)

    async def forget(self, origin: str) -> None:
        """A log that began anew is read from its beginning."""

        def work() -> None:
            known = self._db.execute("SELECT id FROM source WHERE origin = ?", (origin,)).fetchone()
            if known is not None:
                with self._transaction():
                    for table in ("entry", "policy"):
                        self._db.execute(f"DELETE FROM {table} WHERE source = ?", known)  # noqa: S608
                    self._db.execute("DELETE FROM source WHERE id = ?", known)

        self.generation += 1
        await self._in_thread(work)

    # Asking

    async def find(self, asked: Filter) -> Page:
        """The newest first, unless asked otherwise; :class:`ValueError` for a cursor that is none."""
        return await self._in_thread(lambda: self._find(asked))

    def _find(self, asked: Filter) -> Page:
        limit = max(1, min(asked.limit, MAX_ROWS))
        where, values = _conditions(asked)
        order = "ASC" if asked.oldest_first else "DESC"
        if asked.after:
            where.append(f"(e.wall_us, e.source, e.place) {'>' if asked.oldest_first else '<'} (?, ?, ?)")
            values += _cursor(asked.after)
        columns = ", ".join(f'e."{name}"' for name in _COLUMNS)
        sql = (
            f"SELECT s.origin, e.source, {columns} FROM entry e JOIN source s ON s.id = e.source "  # noqa: S608
            f"{_where(where)} "
            f"ORDER BY e.wall_us {order}, e.source {order}, e.place {order} LIMIT ?"
        )
        found = self._db.execute(sql, (*values, limit + 1)).fetchall()
        return _page(found, limit)

    async def run(self, run: str, after: str = "") -> Page:
        """Everything of one run, the oldest first, with what names only its actions or approvals; page by page."""
        return await self._in_thread(lambda: self._run(run, after))

    def _run(self, run: str, after: str) -> Page:
        columns = ", ".join(f'e."{name}"' for name in _COLUMNS)
        named = "SELECT {0} FROM entry WHERE run = ?1 AND run <> '' AND {0} <> ''"
        sql = (
            f"SELECT s.origin, e.source, {columns} FROM entry e JOIN source s ON s.id = e.source "  # noqa: S608
            f"WHERE ((e.run = ?1 AND e.run <> '') "
            f"OR (e.action_id <> '' AND e.action_id IN ({named.format('action_id')})) "
            f"OR (e.approval <> '' AND e.approval IN ({named.format('approval')}))) "
            f"AND (e.wall_us, e.source, e.place) > (?2, ?3, ?4) "
            f"ORDER BY e.wall_us, e.source, e.place LIMIT ?5"
        )
        start = _cursor(after) if after else [-1, -1, -1]
        return _page(self._db.execute(sql, (run, *start, MAX_ROWS + 1)).fetchall(), MAX_ROWS)

    async def facets(self, asked: Filter, names: tuple[str, ...], most: int = 12) -> dict[str, list[tuple[str, int]]]:
        """For each of *names* the values that occur most among the newest of what is asked for, with how often."""
        return await self._in_thread(lambda: self._facets(asked, names, most))

    def _facets(self, asked: Filter, names: tuple[str, ...], most: int) -> dict[str, list[tuple[str, int]]]:
        for name in names:
            if name not in _TEXTS:
                raise ValueError(f"{name}: expected one of {', '.join(_TEXTS)}")
        where, values = _conditions(asked)
        columns = ", ".join(f'e."{name}"' for name in names)
        sql = (
            f"SELECT {columns} FROM entry e JOIN source s ON s.id = e.source "  # noqa: S608
            f"{_where(where)} ORDER BY e.wall_us DESC LIMIT ?"
        )
        counted: list[Counter[str]] = [Counter() for _ in names]
        for found in self._db.execute(sql, (*values, COUNTED)):
            for counter, value in zip(counted, found, strict=True):
                counter[value] += 1
        return {name: _most(counter, most) for name, counter in zip(names, counted, strict=True)}

    async def news(self, asked: Filter, after_us: int) -> int:
        """How many entries that answer *asked* are newer than *after_us* (Unix microseconds), without those that only
        say that somebody looked; counted up to a page."""
        return await self._in_thread(lambda: self._news(asked, after_us))

    def _news(self, asked: Filter, after_us: int) -> int:
        where, values = _conditions(asked)
        where += ["e.wall_us > ?", f"e.kind NOT IN ({', '.join('?' for _ in _NOISE)})"]
        values.append(after_us)
        sql = f"SELECT 1 FROM entry e JOIN source s ON s.id = e.source {_where(where)} LIMIT ?"  # noqa: S608
        return len(self._db.execute(sql, (*values, *_NOISE, MAX_ROWS)).fetchall())

    async def count(self, asked: Filter) -> int:
        """How many entries answer *asked*."""

        def work() -> int:
            where, values = _conditions(asked)
            sql = f"SELECT count(*) FROM entry e JOIN source s ON s.id = e.source {_where(where)}"  # noqa: S608
            return int(self._db.execute(sql, values).fetchone()[0])

        return await self._in_thread(work)

    async def rows(self, origin: str, start: int, end: int, most: int) -> AsyncIterator[list[Row]]:
        """The rows of one log from index *start* to *end* (excluded), at most *most* at a time."""
        columns = ", ".join(f'e."{name}"' for name in _COLUMNS)
        sql = (
            f"SELECT s.origin, e.source, {columns} FROM entry e JOIN source s ON s.id = e.source "  # noqa: S608
            "WHERE s.origin = ? AND e.place >= ? AND e.place < ? ORDER BY e.place LIMIT ?"
        )
        while start < end:
            found = [_row(one) for one in await self.ask(sql, (origin, start, end, most))]
            if not found:
                return
            yield found
            start = found[-1].index + 1

    async def from_the_newest(self, most: int) -> dict[str, int]:
        """Where to begin in each log, so that about the newest *most* entries of all are read."""
        reach = await self.reach()
        if sum(reach.values()) <= most:
            return dict.fromkeys(reach, 0)
        found = await self.ask("SELECT wall_us FROM entry ORDER BY wall_us DESC LIMIT 1 OFFSET ?", (most,))
        sql = (
            "SELECT s.origin, min(e.place) FROM source s JOIN entry e ON e.source = s.id WHERE e.wall_us > ? GROUP BY 1"
        )
        begin = dict(await self.ask(sql, found[0]))
        return {origin: begin.get(origin, end) for origin, end in reach.items()}

    async def runs(self, since_us: int, agent: str) -> list[RunSummary]:
        """The runs that did something since then (Unix microseconds), the newest first."""
        found = await self.ask(_RUNS, (since_us, agent, MAX_ROWS))
        return [RunSummary(*one) for one in found]

    async def ask(self, sql: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        """What one of our own questions finds; *sql* is never made from what somebody sent."""
        return await self._in_thread(lambda: self._db.execute(sql, values).fetchall())

    async def reach(self) -> dict[str, int]:
        """How many entries of each log are in the index."""
        return await self._in_thread(
            lambda: dict(self._db.execute("SELECT origin, next FROM source ORDER BY origin").fetchall())
        )

    async def dump(self) -> list[tuple[Any, ...]]:
        """Everything, in an order that does not depend on when it was read; to compare two indices."""
        columns = ", ".join(f'e."{name}"' for name in _COLUMNS)
        sql = f"SELECT s.origin, {columns} FROM entry e JOIN source s ON s.id = e.source ORDER BY 1, e.place"  # noqa: S608
        return await self._in_thread(lambda: self._db.execute(sql).fetchall())

    def close(self) -> None:
        self._thread.submit(self._db.close).result()
        self._thread.shutdown()


def _conditions(asked: Filter) -> tuple[list[str], list[Any]]:
    """What SQL says of *asked*; every value is a parameter."""
    where: list[str] = []
    values: list[Any] = []
    server, slash, tool = asked.tool.partition("/")
    texts = {name: getattr(asked, name) for name in _TEXTS}
    if slash:
        texts |= {"server": server, "tool": tool}
    for name, value in texts.items():
        if value:
            where.append(f'e."{name}" = ? AND e."{name}" <> \'\'')  # the indices hold nothing that is empty
            values.append(value)
    for column, sign, value in (("s.origin", "=", asked.origin), ("e.wall_us", ">=", asked.since_us)):
        if value:
            where.append(f"{column} {sign} ?")
            values.append(value)
    if asked.until_us:
        where.append("e.wall_us < ?")
        values.append(asked.until_us)
    if asked.policy:
        where.append("(e.source, e.place) IN (SELECT source, place FROM policy WHERE policy = ?)")
        values.append(asked.policy)
    return where, values


def _page(found: list[tuple[Any, ...]], limit: int) -> Page:
    """At most *limit* of what was found, and where it goes on if there is more."""
    more = found[limit - 1] if len(found) > limit else None
    return Page([_row(one) for one in found[:limit]], f"{more[3]}.{more[1]}.{more[2]}" if more is not None else "")


def _where(conditions: list[str]) -> str:
    return "WHERE " + " AND ".join(conditions) if conditions else ""


def _most(counter: Counter[str], most: int) -> list[tuple[str, int]]:
    """The values that occur most; equally often: in their own order."""
    counter.pop("", None)
    return sorted(counter.items(), key=lambda item: (-item[1], item[0]))[:most]


def _cursor(text: str) -> list[int]:
    parts = text.split(".")
    if len(parts) != 3 or not all(part.isdecimal() and len(part) < 19 for part in parts):
        raise ValueError('after: expected the "next" of the page before')
    return [int(part) for part in parts]


def _row(found: tuple[Any, ...]) -> Row:
    origin, _, place, wall_us, step, *texts = found
    *plain, policies, told = texts
    named = dict(zip(_TEXTS, plain, strict=True))
    return Row(
        origin=origin,
        index=place,
        wall_us=wall_us,
        step=step,
        policies=tuple(policies.split("\n")) if policies else (),
        words=told,
        **named,
    )
