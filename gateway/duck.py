"""DuckDB in a process of its own: nothing that somebody asks there can reach a file, a network, a secret or us.

As a program: the table's columns and its rows come in over stdin; then questions are answered, as JSON. The database
is in memory; external access is off and the configuration locked before the first row is there; one statement that only
reads is accepted at a time; the operating system lets this process write no file. Whoever started it ends it when a
question takes too long. With ``--parquet FILE BYTES`` it writes the rows that come in to a Parquet file of at most so
many bytes, and keeps them in another such file until then, so that memory has its limit too. It is started by its path,
isolated (``python -I``), so that no directory of somebody else's is looked into for modules.
"""

from __future__ import annotations

import json
import resource
import struct
import sys
from typing import Any, BinaryIO, Final

import duckdb

LENGTH: Final = struct.Struct(">I")
_LOCKED: Final = (
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET python_enable_replacements = false",
    "SET python_scan_all_frames = false",
    "SET threads = 1",
    "SET memory_limit = '1GB'",
    "SET temp_directory = ''",
    "SET max_temp_directory_size = '0KB'",
    "SET enable_external_access = false",
    "SET lock_configuration = true",
)
_WRITING: Final = ("SET threads = 1", "SET memory_limit = '512MB'")
MAX_CELL: Final = 10_000
MAX_TOLD: Final = 8 << 20
"""Characters in one answer."""
MAX_COLUMNS: Final = 200
FETCH: Final = 50
"""Rows that are Python's at a time: what DuckDB's own limit of memory does not count."""
MAX_ADDRESSES: Final = 4 << 30


class NotAsked(Exception):
    """A statement that does not only read."""


def opened(columns: dict[str, str], settings: tuple[str, ...], path: str = ":memory:") -> duckdb.DuckDBPyConnection:
    """A database at *path* with the empty table ``entries``, whose *columns* are names with their types."""
    found = duckdb.connect(path)
    named = ", ".join(f'"{name}" {kind}' for name, kind in columns.items())
    found.execute(f"CREATE TABLE entries ({named})")
    for setting in settings:
        found.execute(setting)
    return found


def insert(database: duckdb.DuckDBPyConnection, columns: dict[str, str], rows: str) -> None:
    """*rows*: a JSON array of objects with the names of *columns*; moments as RFC 3339."""
    named = ", ".join(f'r."{name}"::{kind}' for name, kind in columns.items())
    plain = {name: ["VARCHAR"] if kind.endswith("[]") else "VARCHAR" for name, kind in columns.items()}
    form = json.dumps([plain])
    database.execute(
        f"INSERT INTO entries SELECT {named} FROM (SELECT unnest(from_json(?::JSON, '{form}')) AS r)",  # noqa: S608
        [rows],
    )


def ask(database: duckdb.DuckDBPyConnection, sql: str, most: int) -> dict[str, Any]:
    """``{columns, rows, more}``: at most *most* rows, every cell a string, a number, true, false or null."""
    statements = database.extract_statements(sql)
    if len(statements) != 1:
        raise NotAsked(f"{len(statements)} statements; expected exactly one")
    kind = statements[0].type
    if kind is not duckdb.StatementType.SELECT:  # not EXPLAIN either: with ANALYZE it runs what it explains
        raise NotAsked(f"a statement of the type {kind.name}; expected one that only reads (SELECT)")
    database.execute("BEGIN TRANSACTION READ ONLY")
    try:
        return _told(database.execute(statements[0]), most)
    finally:
        database.execute("ROLLBACK")


def _told(answer: duckdb.DuckDBPyConnection, most: int) -> dict[str, Any]:
    names = [column[0] for column in answer.description or []]
    if len(names) > MAX_COLUMNS:
        raise NotAsked(f"{len(names)} columns; expected at most {MAX_COLUMNS}")
    rows: list[list[Any]] = []
    told = 0
    while found := answer.fetchmany(FETCH):
        for row in found:
            cells = [_cell(value) for value in row]
            told += sum(len(str(cell)) + 4 for cell in cells)
            if told > MAX_TOLD or len(rows) >= most:
                return {"columns": names, "rows": rows, "more": True}
            rows.append(cells)
    return {"columns": names, "rows": rows, "more": False}


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, bool | int):
        return value if not isinstance(value, int) or abs(value) < 1 << 53 else str(value)
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else str(value)
    return str(value)[:MAX_CELL]


def read(source: BinaryIO) -> Any:
    """The next message, or None when there is no more."""
    head = source.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    return json.loads(source.read(length))


def write(target: BinaryIO, message: Any) -> None:
    data = json.dumps(message).encode()
    target.write(LENGTH.pack(len(data)) + data)
    target.flush()


def serve() -> None:
    """Answer what comes in until the other side ends."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESSES, MAX_ADDRESSES))
    columns = read(sys.stdin.buffer)["columns"]
    database = opened(columns, _LOCKED)
    while (message := read(sys.stdin.buffer)) is not None:
        if "rows" in message:
            insert(database, columns, json.dumps(message["rows"]))
            continue
        try:
            told = ask(database, message["sql"], message["most"])
        except Exception as bad:  # whatever a question brings about, it is an answer
            told = {"error": str(bad).partition("\n\n")[0][:2000] or type(bad).__name__}
        write(sys.stdout.buffer, told)


def parquet(path: str, most: int) -> None:
    """Write the rows that come in to *path*, if that takes at most so many bytes; else the process fails."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    columns = read(sys.stdin.buffer)["columns"]
    database = opened(columns, _WRITING, f"{path}.duckdb")
    while (message := read(sys.stdin.buffer)) is not None:
        insert(database, columns, json.dumps(message["rows"]))
    database.execute("COPY entries TO ? (FORMAT parquet, COMPRESSION zstd)", [path])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--parquet"]:
        parquet(sys.argv[2], int(sys.argv[3]))
    else:
        serve()
