"""The projection: the gateway's state as documents in SQLite, folded from its ledger.

The ledger is the record; this file is a convenience. Every change is a ledger entry first and is then applied
here by the one function :func:`gateway.fold.apply`. Delete the file and the next start folds the same state
again, bit for bit.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TypeVar

import msgspec

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS document (kind TEXT, key TEXT, body BLOB NOT NULL, PRIMARY KEY (kind, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS progress (
    one INTEGER PRIMARY KEY CHECK (one = 1), boot_origin TEXT, next INTEGER, mark TEXT
);
"""
FORM: Final = 3
"""How documents are written here. It rises when that changes, and everything is folded again."""
Document = TypeVar("Document", bound=msgspec.Struct)
MAX_READ: Final = 50_000
"""Documents, and names of which there is none, that are remembered between changes."""


class Store:
    """Documents by kind and key. One process, one thread."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        if self._db.execute("PRAGMA user_version").fetchone()[0] != FORM:
            self._db.executescript("DROP TABLE IF EXISTS document; DROP TABLE IF EXISTS progress")
        self._db.executescript(f"{_SCHEMA} PRAGMA user_version = {FORM}")
        self._versions: Counter[str] = Counter()
        self._read: dict[tuple[str, str], object] = {}
        self.mark = ""
        """Which change was applied last, where others may have another in its place."""
        self.place = 0
        """Of the change that is applied, among all changes."""

    def version(self, kind: type[msgspec.Struct]) -> int:
        """Rises with each change of a document of *kind*; for whoever keeps what it read."""
        return self._versions[kind.__name__]

    def get(self, kind: type[Document], key: str) -> Document | None:
        name = (kind.__name__, key)
        if name not in self._read:
            if len(self._read) >= MAX_READ:
                self._read.clear()
            row = self._db.execute("SELECT body FROM document WHERE kind = ? AND key = ?", name).fetchone()
            self._read[name] = None if row is None else msgspec.json.decode(row[0], type=kind)
        known = self._read[name]
        return known if isinstance(known, kind) else None

    def all(self, kind: type[Document]) -> Iterator[Document]:
        """In order of their keys."""
        rows = self._db.execute("SELECT body FROM document WHERE kind = ? ORDER BY key", (kind.__name__,))
        for (body,) in rows.fetchall():
            yield msgspec.json.decode(body, type=kind)

    def within(self, kind: type[Document], prefix: str) -> Iterator[Document]:
        """Those whose key begins with *prefix*, in order of their keys."""
        asked = (kind.__name__, prefix, prefix + "\U0010ffff")
        rows = self._db.execute("SELECT body FROM document WHERE kind = ? AND key >= ? AND key < ? ORDER BY key", asked)
        for (body,) in rows.fetchall():
            yield msgspec.json.decode(body, type=kind)

    def newest(self, kind: type[Document], prefix: str, most: int) -> list[Document]:
        """At most *most* of those whose key begins with *prefix*, from the end of their keys."""
        asked = (kind.__name__, prefix, prefix + "\U0010ffff", most)
        sql = "SELECT body FROM document WHERE kind = ? AND key >= ? AND key < ? ORDER BY key DESC LIMIT ?"
        return [msgspec.json.decode(body, type=kind) for (body,) in self._db.execute(sql, asked).fetchall()]

    def put(self, key: str, document: msgspec.Struct) -> None:
        self._changed(type(document), key)
        self._db.execute(
            "INSERT INTO document VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET body = excluded.body",
            (type(document).__name__, key, msgspec.json.encode(document)),
        )

    def delete(self, kind: type[msgspec.Struct], key: str) -> None:
        self._changed(kind, key)
        self._db.execute("DELETE FROM document WHERE kind = ? AND key = ?", (kind.__name__, key))

    def _changed(self, kind: type[msgspec.Struct], key: str) -> None:
        """What was read may be old now."""
        self._versions[kind.__name__] += 1
        self._read.pop((kind.__name__, key), None)

    def progress(self, origin: str) -> int:
        """The index of the first ledger entry that is not applied yet; 0 for another ledger."""
        row = self._db.execute("SELECT boot_origin, next, mark FROM progress").fetchone()
        if row is not None and row[0] == origin:
            self.mark = row[2]
            return int(row[1])
        self._read.clear()
        self.mark = ""
        with self._db:
            # Together: whoever comes back to what this was a projection of must not find it half there.
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("DELETE FROM document")
            self._db.execute("DELETE FROM progress")
        return 0

    def begin(self) -> None:
        """Everything until :meth:`commit` is one step; set :attr:`place` before each change is applied."""
        self._db.execute("BEGIN IMMEDIATE")

    def commit(self, origin: str, following: int, mark: str = "") -> None:
        """Everything since :meth:`begin`, and how far the ledger is applied, in one step."""
        self._db.execute(
            "INSERT INTO progress VALUES (1, ?, ?, ?) ON CONFLICT DO UPDATE SET boot_origin = excluded.boot_origin, "
            "next = excluded.next, mark = excluded.mark",
            (origin, following, mark),
        )
        self._db.execute("COMMIT")
        self.mark = mark

    def dump(self) -> list[tuple[str, str, bytes]]:
        """Everything, in order, to compare two projections."""
        return self._db.execute("SELECT kind, key, body FROM document ORDER BY kind, key").fetchall()

    def close(self) -> None:
        self._db.close()
