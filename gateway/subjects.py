"""The keys of subjects: made when something personal is first recorded of one, and destroyed to erase all of it.

They lie in one file of their own, and nowhere else for longer than minutes: what is destroyed here is gone. That a key
was made or destroyed is in the ledger, so a file that comes back from a backup loses the same keys again.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from edge.judging import KeyOf, no_keys
from gateway.records import Records
from gateway.state import SubjectRecord
from trust.ledger import entries
from trust.ledger.entries import AnyEntry
from trust.personal import SubjectKey
from trust.reasons import Reason, Unverifiable

FILE: Final = "subjects.sqlite"
PREFIX: Final = "sub_"
SECRET_BYTES: Final = 32
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS subject (id TEXT PRIMARY KEY, subject TEXT NOT NULL UNIQUE, secret BLOB NOT NULL)
"""
_OF: Final = "SELECT id, secret FROM subject WHERE {} = ?"


class SubjectFile:
    """Where the keys lie. *subject* is always a :func:`trust.personal.subject_id`. *shared*: 32 bytes under which they
    are sealed for the other gateways, where there are some."""

    def __init__(self, path: Path, shared: bytes = b"") -> None:
        self._db = _open(path)
        self._shared = SubjectKey("shared", shared)

    def one(self, column: str, value: str) -> SubjectKey | None:
        """The key whose ``id`` or ``subject`` is *value*."""
        row = self._db.execute(_OF.format(column), (value,)).fetchone()
        return None if row is None else SubjectKey(*row)

    def ids(self) -> set[str]:
        return {key for (key,) in self._db.execute("SELECT id FROM subject")}

    def add(self, key: SubjectKey, subject: str) -> None:
        with self._db:
            self._db.execute("INSERT INTO subject VALUES (?, ?, ?)", (key.id, subject, key.secret))

    def destroy(self, keys: Iterable[str]) -> None:
        with self._db:
            self._db.executemany("DELETE FROM subject WHERE id = ?", [(key,) for key in keys])

    # As it is kept between gateways: sealed, so that a database and its backups know none

    def holds(self, key: str) -> bool:
        return self.one("id", key) is not None

    def get(self, key: str) -> bytes | None:
        row = self._db.execute("SELECT subject, secret FROM subject WHERE id = ?", (key,)).fetchone()
        return None if row is None else self._shared.seal(msgspec.json.encode(row), f"subject {key}")

    async def put(self, key: str, data: bytes) -> None:
        subject, secret = msgspec.json.decode(self._shared.unseal(data, f"subject {key}"), type=tuple[str, bytes])
        with self._db:
            # Another one may be here that was made and never became the subject's.
            self._db.execute("DELETE FROM subject WHERE subject = ?", (subject,))
            self._db.execute("INSERT INTO subject VALUES (?, ?, ?)", (key, subject, secret))

    def close(self) -> None:
        self._db.close()


class Subjects:
    """Of one gateway. *subject* is always a :func:`trust.personal.subject_id`. ``erasures``: how many keys were
    destroyed so far; whoever keeps keys forgets them when that rises."""

    def __init__(self, file: SubjectFile, records: Records) -> None:
        self._records = records
        self._file = file
        known = {one.key: one.erased for one in records.store.all(SubjectRecord)}
        there = file.ids()
        self.erasures = sum(known.values())
        # A key is made before that is recorded; nothing can have been sealed with one that no record names.
        file.destroy(key for key in there if known.get(key, True))
        self._lost = [key for key, erased in known.items() if not erased and key not in there]
        records.listen(self._on_change)

    async def settle(self) -> None:
        """Record which keys are gone although nobody destroyed them: what they had sealed is lost."""
        for key in self._lost:
            detail = f"{key} is not in {FILE}, and nobody erased it: what it had sealed cannot be read"
            await self._records.note(entries.Gap("subject_key_lost", detail))

    def _on_change(self, entry: AnyEntry) -> None:
        if isinstance(entry, entries.Subject) and entry.event == "erased":
            self._file.destroy([entry.key])
            self.erasures += 1

    def known(self, subject: str) -> SubjectKey | None:
        """The subject's own key, if there is one."""
        found = self._file.one("subject", subject)
        return found if found is not None and self._records.store.get(SubjectRecord, found.id) is not None else None

    def key_of(self, key: str, agent: str) -> SubjectKey | None:
        """The key of this id, for what *agent* did."""
        found = self._file.one("id", key)
        return None if found is None else found.of(agent)

    async def obtain(self, subject: str, agent: str) -> SubjectKey:
        """The key for what *agent* does about *subject*; made if there is none."""
        found = self.known(subject)
        if found is None:
            async with self._records.deciding:
                found = self.known(subject) or await self._make(subject, agent)
        return found.of(agent)

    async def _make(self, subject: str, agent: str) -> SubjectKey:
        kept = self._file.one("subject", subject)
        if kept is not None:
            self._file.destroy([kept.id])  # made, and never recorded
        made = SubjectKey(f"{PREFIX}{secrets.token_hex(13)}", secrets.token_bytes(SECRET_BYTES))
        self._file.add(made, subject)
        await self._records.change(entries.Subject("made", made.id, agent))
        return made

    async def erase(self, subject: str, by: str, reason: str) -> str:
        """Destroy the key of *subject*; its id. Recorded first: a crash in between is made up for at the start."""
        async with self._records.deciding:
            found = self.known(subject)
            if found is None:
                raise Unverifiable(Reason.NOT_FOUND, "nothing personal is kept of this subject")
            await self._records.change(entries.Subject("erased", found.id, by, reason))
        return found.id


def _open(path: Path) -> sqlite3.Connection:
    """Rows that are deleted are overwritten, and no journal of them stays."""
    path.touch(mode=0o600)
    db = sqlite3.connect(path, check_same_thread=False)
    db.execute("PRAGMA journal_mode=DELETE")
    db.execute("PRAGMA synchronous=FULL")
    db.execute("PRAGMA secure_delete=ON")
    db.execute(_SCHEMA)
    return db


def keys_below(home: Path) -> KeyOf:
    """The keys in a gateway's home, to be read only; none, where no gateway was."""
    path = home / FILE
    if not path.exists():
        return no_keys
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False)

    def key_of(key: str, agent: str) -> SubjectKey | None:
        row = db.execute(_OF.format("id"), (key,)).fetchone()
        return None if row is None else SubjectKey(*row).of(agent)

    return key_of
