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

from gateway import questions
from gateway.questions import COLUMNS, MAX_ROWS, TEXTS, AgentsOf, Filter, Page
from trust.canonical import sha256_hex
from trust.ledger import entries, metering, rows
from trust.ledger.entries import Line
from trust.ledger.rows import Row

_log = logging.getLogger("licet.gateway")
BATCH: Final = 2_000
COUNTED: Final = 20_000
"""Facets are counted over so many of the newest entries: over a million they would hold up whoever asks next."""
_NOISE: Final = ("query", "witness")
"""Kinds that come from looking: who waits for news does not wait for these."""
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
CREATE TABLE IF NOT EXISTS metered (
  source INTEGER NOT NULL, {amounts}, idempotency_key TEXT NOT NULL, PRIMARY KEY (source, action_id, attempt)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS metered_by_time ON metered (wall_us);
CREATE INDEX IF NOT EXISTS metered_by_run ON metered (run);
CREATE INDEX IF NOT EXISTS metered_by_key ON metered (idempotency_key) WHERE idempotency_key <> '';
""".format(
    amounts=", ".join(f'"{name}"' for name in metering.COLUMNS),
    texts=", ".join(f'"{name}" TEXT NOT NULL' for name in TEXTS),
    indices="\n".join(_FIND_BY.format(name) for name in TEXTS),
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
  AND (?4 = '' OR agent IN (SELECT value FROM json_each(iif(?4 = '', '[]', ?4))))
GROUP BY run HAVING ?2 = '' OR max(agent) = ?2 ORDER BY 4 DESC LIMIT ?3
"""


class Index:
    """Of one gateway; works in a thread of its own. ``stuck``: logs that it cannot follow, and why. ``generation``
    rises when a log is read from its beginning."""

    def __init__(self, path: Path, sources: Callable[[], Iterable[Source]]) -> None:
        self._sources = sources
        self.agents_of: AgentsOf = lambda _namespace: []
        self.stuck: dict[str, str] = {}
        self.generation = 0
        self._firsts: dict[str, int] = {}
        """Below which index nothing is here of each log."""
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
        first = source.first
        if first > self._firsts.get(source.origin, 0):
            self._forget(number, first)  # by whoever it was pruned
            self.generation += 1
            self._firsts[source.origin] = first
        start = max(start, first)
        lines = [entries.decode(data) for data in islice(source.entries(start), BATCH)]
        found = [rows.row(line) for line in lines]
        if found:
            with self._transaction():
                self._add(number, found)
                for line in lines:
                    self._meter(number, line)
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
        marks = ", ".join("?" for _ in range(len(COLUMNS) + 1))
        self._db.executemany(
            f"INSERT OR REPLACE INTO entry VALUES ({marks})",  # noqa: S608 (nothing in it comes from outside)
            [
                (number, one.index, one.wall_us, one.step, *(getattr(one, name) for name in TEXTS),
                 "\n".join(one.policies), one.words)
                for one in found
            ],
        )  # fmt: skip
        self._db.executemany(
            "INSERT OR IGNORE INTO policy VALUES (?, ?, ?, ?)",
            [(policy, one.wall_us, number, one.index) for one in found for policy in one.policies],
        )

    def _meter(self, number: int, line: Line) -> None:
        """Dispatch and outcome of an attempt make one row."""
        begun, ended = metering.begun(line), metering.ended(line)
        if begun is not None:
            names = ", ".join(f'"{name}"' for name in begun)
            marks = ", ".join("?" for _ in begun)
            sql = f"INSERT OR IGNORE INTO metered (source, {names}) VALUES (?, {marks})"  # noqa: S608
            self._db.execute(sql, (number, *begun.values()))
        elif ended is not None and isinstance(line.entry, entries.Outcome):
            changes = ", ".join(f'"{name}" = ?' for name in ended)
            sql = f"UPDATE metered SET {changes} WHERE source = ? AND action_id = ? AND attempt = ?"  # noqa: S608
            self._db.execute(sql, (*ended.values(), number, line.entry.action_id, line.entry.attempt))

    async def prune(self, origin: str, first: int) -> None:
        """The entries of a log below *first* are gone."""

        def work() -> None:
            known = self._db.execute("SELECT id FROM source WHERE origin = ?", (origin,)).fetchone()
            if known is not None:
                self._forget(known[0], first)

        self.generation += 1
        await self._in_thread(work)

    def _forget(self, source: int, first: int) -> None:
        with self._transaction():
            for table in ("entry", "policy"):
                self._db.execute(f"DELETE FROM {table} WHERE source = ? AND place < ?", (source, first))  # noqa: S608
            self._db.execute('DELETE FROM metered WHERE source = ? AND "index" < ?', (source, first))

    async def forget(self, origin: str) -> None:
        """A log that began anew is read from its beginning."""

        def work() -> None:
            known = self._db.execute("SELECT id FROM source WHERE origin = ?", (origin,)).fetchone()
            if known is not None:
                with self._transaction():
                    for table in ("entry", "policy", "metered"):
                        self._db.execute(f"DELETE FROM {table} WHERE source = ?", known)  # noqa: S608
                    self._db.execute("DELETE FROM source WHERE id = ?", known)
            self._firsts.pop(origin, None)

        self.generation += 1
        await self._in_thread(work)

    # Asking

    async def find(self, asked: Filter) -> Page:
        """The newest first, unless asked otherwise; :class:`ValueError` for a cursor that is none."""
        return await self._in_thread(lambda: self._find(asked))

    def _find(self, asked: Filter) -> Page:
        limit = max(1, min(asked.limit, MAX_ROWS))
        where, values = questions.conditions(asked, self.agents_of)
        order = "ASC" if asked.oldest_first else "DESC"
        if asked.after:
            where.append(f"(e.wall_us, e.source, e.place) {'>' if asked.oldest_first else '<'} (?, ?, ?)")
            values += questions.cursor(asked.after)
        columns = ", ".join(f'e."{name}"' for name in COLUMNS)
        sql = (
            f"SELECT s.origin, e.source, {columns} FROM entry e JOIN source s ON s.id = e.source "  # noqa: S608
            f"{questions.where(where)} "
            f"ORDER BY e.wall_us {order}, e.source {order}, e.place {order} LIMIT ?"
        )
        found = self._db.execute(sql, (*values, limit + 1)).fetchall()
        return questions.page(found, limit)

    async def run(self, run: str, after: str = "", namespace: str = "") -> Page:
        """Everything of one run, the oldest first, with what names only its actions or approvals; page by page. With a
        *namespace*: of its agents, whoever else calls a run so."""
        own = questions.among(namespace, self.agents_of) if namespace else ""
        return await self._in_thread(lambda: self._run(run, after, own))

    def _run(self, run: str, after: str, own: str) -> Page:
        columns = ", ".join(f'e."{name}"' for name in COLUMNS)
        within = "(?6 = '' OR {0}agent IN (SELECT value FROM json_each(iif(?6 = '', '[]', ?6))))"
        named = "SELECT {0} FROM entry WHERE run = ?1 AND run <> '' AND {0} <> '' AND "
        named += within.format("")
        joined = f"(e.agent = '' OR {within.format('e.')})"  # whoever names another's action gets nothing of it
        sql = (
            f"SELECT s.origin, e.source, {columns} FROM entry e JOIN source s ON s.id = e.source "  # noqa: S608
            f"WHERE ((e.run = ?1 AND e.run <> '' AND {within.format('e.')}) "
            f"OR ({joined} AND e.action_id <> '' AND e.action_id IN ({named.format('action_id')})) "
            f"OR ({joined} AND e.approval <> '' AND e.approval IN ({named.format('approval')}))) "
            f"AND (e.wall_us, e.source, e.place) > (?2, ?3, ?4) "
            f"ORDER BY e.wall_us, e.source, e.place LIMIT ?5"
        )
        start = questions.cursor(after) if after else [-1, -1, -1]
        return questions.page(self._db.execute(sql, (run, *start, MAX_ROWS + 1, own)).fetchall(), MAX_ROWS)

    async def is_of(self, origin: str, place: int, namespace: str) -> bool:
        """Whether an entry is of an agent of *namespace*, or of an action of one."""
        own = questions.among(namespace, self.agents_of)
        sql = (
            "SELECT 1 FROM entry e JOIN source s ON s.id = e.source WHERE s.origin = ?1 AND e.place = ?2 AND ("
            "e.agent IN (SELECT value FROM json_each(?3)) OR (e.agent = '' AND e.action_id <> '' AND EXISTS ("
            "SELECT 1 FROM entry o WHERE o.action_id = e.action_id AND o.agent IN (SELECT value FROM json_each(?3)))))"
        )
        return bool(await self.ask(sql, (origin, place, own)))

    async def facets(self, asked: Filter, names: tuple[str, ...], most: int = 12) -> dict[str, list[tuple[str, int]]]:
        """For each of *names* the values that occur most among the newest of what is asked for, with how often."""
        return await self._in_thread(lambda: self._facets(asked, names, most))

    def _facets(self, asked: Filter, names: tuple[str, ...], most: int) -> dict[str, list[tuple[str, int]]]:
        for name in names:
            if name not in TEXTS:
                raise ValueError(f"{name}: expected one of {', '.join(TEXTS)}")
        where, values = questions.conditions(asked, self.agents_of)
        columns = ", ".join(f'e."{name}"' for name in names)
        sql = (
            f"SELECT {columns} FROM entry e JOIN source s ON s.id = e.source "  # noqa: S608
            f"{questions.where(where)} ORDER BY e.wall_us DESC LIMIT ?"
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
        where, values = questions.conditions(asked, self.agents_of)
        where += ["e.wall_us > ?", f"e.kind NOT IN ({', '.join('?' for _ in _NOISE)})"]
        values.append(after_us)
        sql = f"SELECT 1 FROM entry e JOIN source s ON s.id = e.source {questions.where(where)} LIMIT ?"  # noqa: S608
        return len(self._db.execute(sql, (*values, *_NOISE, MAX_ROWS)).fetchall())

    async def count(self, asked: Filter) -> int:
        """How many entries answer *asked*."""

        def work() -> int:
            where, values = questions.conditions(asked, self.agents_of)
            sql = f"SELECT count(*) FROM entry e JOIN source s ON s.id = e.source {questions.where(where)}"  # noqa: S608
            return int(self._db.execute(sql, values).fetchone()[0])

        return await self._in_thread(work)

    async def rows(self, origin: str, start: int, end: int, most: int) -> AsyncIterator[list[Row]]:
        """The rows of one log from index *start* to *end* (excluded), at most *most* at a time."""
        columns = ", ".join(f'e."{name}"' for name in COLUMNS)
        sql = (
            f"SELECT s.origin, e.source, {columns} FROM entry e JOIN source s ON s.id = e.source "  # noqa: S608
            "WHERE s.origin = ? AND e.place >= ? AND e.place < ? ORDER BY e.place LIMIT ?"
        )
        while start < end:
            found = [questions.row_of(one) for one in await self.ask(sql, (origin, start, end, most))]
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

    async def runs(self, since_us: int, agent: str, namespace: str = "") -> list[RunSummary]:
        """The runs that did something since then (Unix microseconds), the newest first; of a *namespace*, if named."""
        own = questions.among(namespace, self.agents_of) if namespace else ""
        found = await self.ask(_RUNS, (since_us, agent, MAX_ROWS, own))
        return [RunSummary(*one) for one in found]

    async def ask(self, sql: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        """What one of our own questions finds; *sql* is never made from what somebody sent."""
        return await self._in_thread(lambda: self._db.execute(sql, values).fetchall())

    async def reach(self) -> dict[str, int]:
        """How many entries of each log are in the index."""
        return await self._in_thread(
            lambda: dict(self._db.execute("SELECT origin, next FROM source ORDER BY origin").fetchall())
        )

    async def ended(self) -> set[str]:
        """The logs of which the last entry says that it is the last."""
        last = "JOIN entry e ON e.source = s.id AND e.place = s.next - 1"
        return {origin for (origin,) in await self.ask(f"SELECT s.origin FROM source s {last} WHERE e.kind = 'end'")}  # noqa: S608

    async def dump(self) -> list[tuple[Any, ...]]:
        """Everything, in an order that does not depend on when it was read; to compare two indices."""
        columns = ", ".join(f'e."{name}"' for name in COLUMNS)
        sql = f"SELECT s.origin, {columns} FROM entry e JOIN source s ON s.id = e.source ORDER BY 1, e.place"  # noqa: S608
        return await self._in_thread(lambda: self._db.execute(sql).fetchall())

    def close(self) -> None:
        self._thread.submit(self._db.close).result()
        self._thread.shutdown()


def _most(counter: Counter[str], most: int) -> list[tuple[str, int]]:
    """The values that occur most; equally often: in their own order."""
    counter.pop("", None)
    return sorted(counter.items(), key=lambda item: (-item[1], item[0]))[:most]
