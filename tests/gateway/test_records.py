"""The gateway's state, whatever holds its changes: alone with SQLite, or as one of several over PostgreSQL."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edge.blobs import Blobs
from edge.clock import SystemClock
from edge.durable import DurableLedger
from gateway.bundles import BundleFiles
from gateway.postgres import Postgres
from gateway.records import Records
from gateway.replica import Replica
from gateway.state import Killed
from gateway.store import Store
from gateway.subjects import SubjectFile
from trust.identity.keys import SecretKey
from trust.ledger.entries import Kill, Query
from trust.ledger.log import LedgerDamaged

pytestmark = pytest.mark.slow


class House:
    """Where one gateway's records are, which are opened again and again, as after restarts."""

    def __init__(self, home: Path, database: str) -> None:
        self.home = home
        self._database = database
        self._open: list[Replica | Records] = []

    async def open(self) -> Records:
        await self.close()
        home, key = self.home, SecretKey.load_or_create(self.home / "ledger.key")
        ledger = DurableLedger(home / "ledger", origin="here/gateway/main", key=key, clock=SystemClock())
        store = Store(home / "state.sqlite")
        self._subjects = SubjectFile(home / "subjects.sqlite", b"k" * 32)
        records = Records(ledger, store)
        if self._database:
            shelves = {"blob": Blobs(home / "b"), "bundle": BundleFiles(home / "c"), "subject": self._subjects}
            records = Replica(ledger, store, Postgres(self._database, b"s" * 32), shelves)
        self._open.append(records)
        await records.open()
        return records

    async def close(self) -> None:
        for records in self._open:
            await records.close()
            await records.ledger.close()
            records.store.close()
            self._subjects.close()
        self._open.clear()


@pytest.fixture(params=["sqlite", "postgresql"])
async def house(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[House]:
    made = House(tmp_path, request.getfixturevalue("database") if request.param == "postgresql" else "")
    yield made
    await made.close()


async def kill(records: Records, target: str) -> None:
    async with records.deciding:
        await records.change(Kill("killed", target, "ada", "test"))


async def test_a_change_is_recorded_applied_and_told_in_this_order(house: House) -> None:
    records = await house.open()
    told: list[tuple[str, bool, int]] = []

    def listener(entry: object) -> None:
        assert isinstance(entry, Kill)
        told.append((entry.target, records.store.get(Killed, entry.target) is not None, records.ledger.size))

    records.listen(listener)
    version = records.version
    await kill(records, "x")
    await kill(records, "y")
    assert [(name, there) for name, there, _ in told] == [("x", True), ("y", True)]
    assert records.version > version + 1
    assert [line.entry.target for _, line in records.ledger.lines() if isinstance(line.entry, Kill)] == ["x", "y"]


async def test_of_many_who_look_first_one_changes(house: House) -> None:
    records = await house.open()

    async def decide() -> bool:
        async with records.deciding:
            if records.store.get(Killed, "x") is not None:
                return False
            await records.change(Kill("killed", "x", "ada", "first"))
            return True

    assert sum(await asyncio.gather(*(decide() for _ in range(100)))) == 1


async def test_what_only_reports_changes_nothing(house: House) -> None:
    records = await house.open()
    version, before = records.version, records.store.dump()
    await records.note(Query("ada", "find", "", 1))
    assert (records.version, records.store.dump()) == (version, before)


async def test_the_state_comes_back_with_and_without_its_projection(house: House) -> None:
    records = await house.open()
    for name in "abc":
        await kill(records, name)
    async with records.deciding:
        await records.change(Kill("lifted", "b", "ada", "test"))
    version, before = records.version, records.store.dump()
    again = await house.open()
    assert (again.version, again.store.dump()) == (version, before)
    await house.close()
    for file in house.home.glob("state.sqlite*"):
        file.unlink()
    folded = await house.open()
    assert (folded.version, folded.store.dump()) == (version, before)


async def test_a_projection_of_an_earlier_form_is_made_anew(house: House) -> None:
    records = await house.open()
    await kill(records, "x")
    before = records.store.dump()
    await house.close()
    with sqlite3.connect(house.home / "state.sqlite") as db:
        db.executescript(
            "DROP TABLE progress; CREATE TABLE progress (one INTEGER PRIMARY KEY, boot_origin TEXT, next INTEGER);"
            "INSERT INTO progress VALUES (1, 'here/gateway/main', 1); UPDATE document SET body = '{}';"
            "PRAGMA user_version = 0;"
        )
    db.close()
    assert (await house.open()).store.dump() == before


async def test_an_older_ledger_in_its_place_is_noticed(house: House) -> None:
    """Somebody put back a backup of the log, and not of the state."""
    records = await house.open()
    await kill(records, "x")
    await house.close()
    shutil.copytree(house.home / "ledger", house.home / "backup")
    records = await house.open()
    for n in range(3):
        await kill(records, f"y{n}")
    await house.close()
    shutil.rmtree(house.home / "ledger")
    shutil.copytree(house.home / "backup", house.home / "ledger")
    with pytest.raises(LedgerDamaged, match="an older ledger was put in its place"):
        await house.open()
