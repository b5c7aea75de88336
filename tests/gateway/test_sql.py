"""The SQL console: it answers what only reads, and cannot read or write a file, load anything, or go on for ever."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from gateway import sql
from gateway.index import Index
from gateway.sql import Room
from tests.gateway.test_index import Log, filled, some
from trust.reasons import Unverifiable

pytestmark = pytest.mark.slow


async def ask(room: Room, text: str, by: str = "ada") -> sql.Answer:
    return await room.ask(text, by)


COUNT = "SELECT count(*) FROM entries"


@pytest.fixture
async def logs() -> list[Log]:
    return filled(400)


@pytest.fixture
async def room(tmp_path: Path, logs: list[Log]) -> AsyncIterator[Room]:
    index = Index(tmp_path / "index.sqlite", lambda: logs)
    await index.follow()
    made = Room(index)
    yield made
    await made.close()
    index.close()


async def test_it_answers_over_all_rows_and_over_those_that_came_since(room: Room, logs: list[Log]) -> None:
    told = await ask(
        room,
        "SELECT kind, count(*) AS n, list(DISTINCT agent ORDER BY agent) AS agents, max(time) AS last FROM entries "
        "WHERE 'p1' IN policies GROUP BY ALL ORDER BY kind",
    )
    assert told.columns == ["kind", "n", "agents", "last"]
    assert [row[:3] for row in told.rows] == [
        ["intent", 100, "['a0', 'a1', 'a2']"],
        ["refusal", 100, "['a0', 'a1', 'a2']"],
    ]
    assert told.rows[0][3].startswith("1970-01-01 00:00:00.00")
    logs[0].add(some(0), 5_000)
    await room._index.follow()
    assert (await ask(room, COUNT)).rows == [[401]]


REFUSED = [
    "SELECT * FROM read_csv('{file}')",
    "SELECT * FROM '{file}'",
    "SELECT * FROM read_text('{file}')",
    "SELECT * FROM read_blob('/proc/self/environ')",
    "SELECT * FROM read_json('{file}')",
    "SELECT * FROM read_parquet('{file}')",
    "SELECT * FROM parquet_metadata('{file}')",
    "SELECT * FROM sniff_csv('{file}')",
    "SELECT * FROM glob('/*')",
    "SELECT * FROM 'http://127.0.0.1:1/x.csv'",
    "SELECT * FROM read_csv('http://127.0.0.1:1/x.csv')",
    "SELECT getenv('HOME')",
    "FROM query('COPY entries TO ''{out}''')",
    "COPY entries TO '{out}'",
    "COPY (SELECT 1) TO '{out}' (FORMAT parquet)",
    "EXPORT DATABASE '{out}'",
    "ATTACH '{out}'",
    "ATTACH '{out}' AS other (TYPE sqlite)",
    "INSTALL httpfs",
    "LOAD httpfs",
    "LOAD '{file}'",
    "SET enable_external_access = true",
    "SET lock_configuration = false",
    "RESET memory_limit",
    "PRAGMA enable_profiling",
    "PRAGMA database_list",
    "CALL pragma_version()",
    "CHECKPOINT",
    "CREATE TABLE mine (a INT)",
    "CREATE SECRET s (TYPE http)",
    "CREATE OR REPLACE VIEW entries AS SELECT 1",
    "INSERT INTO entries SELECT * FROM entries",
    "UPDATE entries SET agent = 'nobody'",
    "DELETE FROM entries",
    "DROP TABLE entries",
    "ALTER TABLE entries DROP agent",
    "BEGIN",
    "PREPARE x AS SELECT 1",
    "VACUUM",
    "EXPLAIN SELECT 1",
    "EXPLAIN ANALYZE DELETE FROM entries",
    "EXPLAIN ANALYZE CREATE TEMP VIEW entries AS SELECT 1",
    "EXPLAIN ANALYZE CREATE TEMP MACRO lower(x) AS 'hidden'",
    "SELECT 1; DROP TABLE entries",
    "DROP TABLE entries; SELECT 1",
    "SELECT * FROM database",
    "SELECT * FROM message",
    "",
    ";",
    "no sql at all",
]


@pytest.mark.parametrize("text", REFUSED)
async def test_what_does_more_than_read_the_table_is_refused_and_changes_nothing(
    room: Room, tmp_path: Path, text: str
) -> None:
    file, out = tmp_path / "secret.csv", tmp_path / "out"
    file.write_text("secret\n1\n")
    with pytest.raises(Unverifiable) as caught:
        await ask(room, text.format(file=file, out=out))
    assert "secret\n" not in caught.value.detail
    assert not out.exists()
    assert (await ask(room, COUNT)).rows == [[400]]


async def test_the_operating_system_lets_the_process_write_no_file_and_gives_it_no_secret(room: Room) -> None:
    await ask(room, COUNT)
    assert room._process is not None
    limits = Path(f"/proc/{room._process.pid}/limits").read_text()
    assert [line.split()[3:5] for line in limits.splitlines() if line.startswith("Max file size")] == [["0", "0"]]
    environment = Path(f"/proc/{room._process.pid}/environ").read_bytes()
    assert b"LICET" not in environment
    assert b"PATH" not in environment


async def test_a_question_that_takes_too_long_is_ended_and_the_next_is_answered(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ask(room, COUNT)
    monkeypatch.setattr(sql, "SECONDS", 0.5)
    endless = "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT count(*) FROM t"
    for question in (endless, "SELECT count(*) FROM entries a, entries b, entries c, entries d, entries e"):
        process = room._process
        with pytest.raises(Unverifiable, match="no answer within"):
            await ask(room, question)
        assert process is None or process.returncode is not None
        monkeypatch.setattr(sql, "SECONDS", 10.0)
        assert (await ask(room, COUNT)).rows == [[400]]
        monkeypatch.setattr(sql, "SECONDS", 0.5)


async def test_a_question_cannot_take_all_memory_or_tell_without_end(room: Room) -> None:
    with pytest.raises(Unverifiable):
        await ask(room, "SELECT list(a.words || b.words || c.words) FROM entries a, entries b, entries c")
    told = await ask(room, "SELECT range FROM range(1000000)")
    assert (len(told.rows), told.more) == (sql.MAX_ROWS, True)
    told = await ask(room, "SELECT repeat('x', 1000000) FROM range(100)")
    assert {len(row[0]) for row in told.rows} == {10_000}
    told = await ask(room, "SELECT repeat('x', 10000) FROM range(10000)")
    assert told.more
    with contextlib.suppress(Unverifiable):  # told as far as there is room, or refused by DuckDB's own limit
        await ask(room, "SELECT repeat(chr(128512), 200000) FROM range(10001)")
    if room._process is not None:  # it may have been ended for that
        assert psutil.Process(room._process.pid).memory_info().rss < 2.5e9
    with pytest.raises(Unverifiable):
        await ask(room, "SELECT INTERVAL 100000000 YEAR")
    with pytest.raises(Unverifiable, match="at most 200"):
        await ask(room, "SELECT " + ", ".join("1" for _ in range(201)))


async def test_a_process_that_died_is_started_again(room: Room) -> None:
    await ask(room, COUNT)
    assert room._process is not None
    os.kill(room._process.pid, signal.SIGKILL)
    await room._process.wait()
    assert (await ask(room, COUNT)).rows == [[400]]


async def test_a_log_that_began_anew_is_read_anew(room: Room, logs: list[Log]) -> None:
    await ask(room, COUNT)
    await room._index.forget(logs[0].origin)
    logs[0].data = logs[0].data[:20]
    await room._index.follow()
    assert (await ask(room, COUNT)).rows == [[220]]


async def test_only_the_newest_are_loaded_where_there_are_too_many(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "MAX_LOADED", 100)
    told = await ask(room, "SELECT min(time) > '1970-01-01 00:00:00.0012'::TIMESTAMP, count(*) FROM entries")
    assert told.rows == [[True, 100]]
    assert (told.loaded, told.entries) == (100, 400)


async def test_many_who_ask_at_once_are_all_answered(room: Room) -> None:
    told = await asyncio.gather(*(ask(room, f"SELECT {number}", f"p{number}") for number in range(sql.MAX_WAITING)))
    assert [one.rows for one in told] == [[[number]] for number in range(sql.MAX_WAITING)]


async def test_nobody_asks_everybody_else_out_of_the_room(room: Room) -> None:
    first = asyncio.create_task(ask(room, COUNT, "eve"))
    await asyncio.sleep(0)
    with pytest.raises(Unverifiable, match="still being answered"):
        await ask(room, COUNT, "eve")
    others = [asyncio.create_task(ask(room, COUNT, f"p{number}")) for number in range(sql.MAX_WAITING - 1)]
    await asyncio.sleep(0)
    with pytest.raises(Unverifiable, match="asking already"):
        await ask(room, COUNT, "late")
    assert [task.rows for task in await asyncio.gather(first, *others)] == [[[400]]] * sql.MAX_WAITING
    assert (await ask(room, COUNT, "late")).rows == [[400]]


async def test_cells_keep_their_meaning(room: Room) -> None:
    told = await ask(
        room,
        "SELECT NULL, true, 9007199254740993, -1, 0.5::DOUBLE, 'nan'::DOUBLE, 1.10::DECIMAL(5,2), 'é', "
        "'a' || chr(0) || 'b', {'x': 1}, '\\x00'::BLOB, DATE '2026-11-21'",
    )
    assert told.rows == [
        [None, True, "9007199254740993", -1, 0.5, "nan", "1.10", "é", "a\0b", "{'x': 1}", "b'\\x00'", "2026-11-21"]
    ]
