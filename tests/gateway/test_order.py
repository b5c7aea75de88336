"""The order of changes with a real PostgreSQL: who has the turn, what is lost, and what is not believed."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from edge.blobs import Blobs
from edge.clock import SystemClock
from edge.durable import DurableLedger
from gateway import fold, postgres, replica
from gateway.bundles import BundleFiles
from gateway.order import PAGE, Change, OrderDamaged, OrderUnavailable
from gateway.postgres import MIGRATIONS, Postgres, examine
from gateway.records import Records
from gateway.replica import Replica
from gateway.state import Killed, Person
from gateway.store import Store
from gateway.subjects import SubjectFile
from loadtests import servers
from trust.identity.keys import SecretKey
from trust.ledger import entries
from trust.ledger.entries import Kill
from trust.ledger.log import LedgerDamaged
from trust.ledger.writer import LedgerUnavailable
from trust.personal import SubjectKey
from trust.reasons import Reason, Unverifiable

pytestmark = pytest.mark.slow
SECRET = b"s" * 32


def change(turn: int, seq: int = 0, origin: str = "here/gateway/a", body: bytes = b"{}") -> Change:
    return Change(turn, origin, seq, body)


@asynccontextmanager
async def opened(database: str, secret: bytes = SECRET) -> AsyncIterator[Postgres]:
    made = Postgres(database, secret)
    await made.open(lambda: None)
    yield made
    await made.close()


async def broken(database: str, sql: str) -> None:
    """What somebody with the database's password does."""
    other = await asyncpg.connect(database)
    await other.execute(sql)
    await other.close()


# The order itself


async def test_who_has_the_turn_is_alone(database: str) -> None:
    async with opened(database) as one, opened(database) as other:
        inside = 0

        async def decide(order: Postgres, lock: asyncio.Lock) -> None:
            nonlocal inside
            async with lock:
                await order.take(0)
                inside += 1
                assert inside == 1
                head = await order.head()
                await asyncio.sleep(0)
                await order.publish(change(head + 1, head))
                inside -= 1
                await order.give()

        locks = asyncio.Lock(), asyncio.Lock()
        await asyncio.gather(*(decide(one, locks[0]) if n % 2 else decide(other, locks[1]) for n in range(60)))
        assert [c.turn for c in await one.news(0)] == list(range(1, 61))


async def test_everything_is_told_from_where_one_is(database: str) -> None:
    async with opened(database) as one:
        assert await one.found([change(n, n) for n in range(1, PAGE + 51)])
        assert not await one.found([change(1)])
        first = await one.news(0)
        assert [c.turn for c in first] == list(range(1, PAGE + 1))
        assert [c.turn for c in await one.news(PAGE)] == list(range(PAGE, PAGE + 51))
        assert [c.turn for c in await one.take(PAGE + 50)] == [PAGE + 50]
        await one.give()
        assert (await one.head(), await one.published("here/gateway/a")) == (PAGE + 50, PAGE + 50)
        assert await one.published("here/gateway/b") == -1


async def test_who_publishes_is_heard(database: str) -> None:
    woken = asyncio.Event()
    other = Postgres(database, SECRET)
    await other.open(woken.set)
    async with opened(database) as one:
        await one.take(0)
        await one.publish(change(1))
        await one.give()
        await asyncio.wait_for(woken.wait(), 5)
    await other.close()


async def test_a_turn_that_was_lost_publishes_nothing(database: str) -> None:
    """A gateway that was frozen with the turn, and goes on when another has it."""
    async with opened(database) as frozen, opened(database) as other:
        await frozen.take(0)
        others = asyncio.create_task(other.take(0))  # the server ends the session that says nothing
        await asyncio.wait_for(others, postgres.SILENT_S * 2)
        await other.publish(change(1, origin="here/gateway/b"))
        await other.give()
        with pytest.raises(OrderUnavailable):
            await frozen.publish(change(1))
        await frozen.give()
        assert [c.origin for c in await other.news(0)] == ["here/gateway/b"]


async def test_without_the_turn_nobody_publishes(database: str) -> None:
    async with opened(database) as one:
        with pytest.raises(OrderUnavailable, match="lost before"):
            await one.publish(change(1))


async def test_whoever_waits_too_long_is_told(postgres: servers.Postgres, database: str) -> None:
    async with opened(database) as one:
        other = await asyncpg.connect(database)
        await other.execute("SELECT pg_advisory_lock($1)", 119199894959105)
        with pytest.raises(OrderUnavailable, match="lock timeout"):
            await one.take(0)
        await other.close()
        await one.take(0)


async def test_what_the_database_made_up_is_not_believed(database: str) -> None:
    async with opened(database) as one:
        await one.take(0)
        await one.publish(change(1))
        await one.give()
        for forged in (
            "UPDATE licet_change SET body = '[]'",
            "UPDATE licet_change SET body = '{}', seq = 7",
            "UPDATE licet_change SET seq = 0, origin = 'here/gateway/b'",
            "UPDATE licet_change SET origin = 'here/gateway/a', turn = 2",
        ):
            await broken(database, forged)
            with pytest.raises(OrderDamaged, match="was not written by a gateway"):
                await one.news(0)
    async with opened(database, b"x" * 32) as stranger:
        with pytest.raises(OrderDamaged):
            await stranger.news(0)


async def test_what_entries_name_is_kept(database: str) -> None:
    async with opened(database) as one:
        assert await one.fetch("blob", "x") is None
        await one.keep("blob", "x", b"1")
        await one.keep("blob", "x", b"2")
        await one.keep("subject", "x", b"3")
        assert await one.fetch("blob", "x") == b"1"
        await one.drop("subject", "x")
        assert (await one.fetch("subject", "x"), await one.fetch("blob", "x")) == (None, b"1")


@pytest.mark.parametrize("version", range(len(MIGRATIONS)))
async def test_tables_of_every_earlier_version_are_brought_forward(database: str, version: int) -> None:
    old = await asyncpg.connect(database)
    await old.execute("CREATE TABLE licet_schema (version int NOT NULL)")
    for number in range(version):
        await old.execute(MIGRATIONS[number])
        await old.execute("INSERT INTO licet_schema VALUES ($1)", number + 1)
    await old.close()
    async with opened(database) as one:
        await one.take(0)
        await one.publish(change(1))
        await one.give()
    async with opened(database) as again:
        assert len(await again.news(0)) == 1


async def test_many_start_at_once_on_an_empty_database(database: str) -> None:
    made = [Postgres(database, SECRET) for _ in range(8)]
    await asyncio.gather(*(one.open(lambda: None) for one in made))
    assert len({one.name for one in made}) == 1
    for one in made:
        await one.close()


async def test_newer_tables_are_left_alone(database: str) -> None:
    async with opened(database):
        await broken(database, "INSERT INTO licet_schema VALUES (99)")
        with pytest.raises(OrderUnavailable, match="version 99"):
            await Postgres(database, SECRET).open(lambda: None)


async def test_a_server_that_could_lose_decisions_is_refused() -> None:
    server = servers.Postgres()
    server.start("full_page_writes=off")
    try:
        with pytest.raises(OrderUnavailable, match="full_page_writes off; expected on"):
            await Postgres(server.database("x"), SECRET).open(lambda: None)
    finally:
        server.remove()


async def test_a_server_that_is_not_there() -> None:
    with pytest.raises(OrderUnavailable, match="cannot be reached"):
        await Postgres(f"postgresql://licet@127.0.0.1:{servers.free_port()}/x", SECRET).open(lambda: None)


async def test_behind_a_pooler_of_sessions_who_falls_silent_loses_the_turn_too(
    postgres: servers.Postgres, database: str
) -> None:
    """A real PgBouncer, which takes few settings from whoever connects."""
    with tempfile.TemporaryDirectory() as home:  # which a user of its own can read
        pooler = servers.Pooler(postgres, Path(home))
        try:
            pooled = database.replace(f":{postgres.port}/", f":{pooler.port}/")
            assert all(one.fine for one in await examine(pooled))
            async with opened(pooled) as one, opened(database) as other:
                await one.take(0)
                async with asyncio.timeout(30):
                    await other.take(0)
                await other.publish(change(1))
                await other.give()
                with pytest.raises(OrderUnavailable):
                    await one.publish(change(1))
                assert [told.turn for told in await one.take(0)] == [1], "and it goes on with another session"
                await one.give()
        finally:
            pooler.stop()


async def test_the_doctor_says_what_is_wrong_with_it(postgres: servers.Postgres, database: str) -> None:
    async def wrong(url: str) -> dict[str, str]:
        return {one.what: one.found for one in await examine(url) if not one.fine}

    assert await wrong(database) == {}
    async with opened(database) as one:
        await one.take(0)
        await one.publish(change(1))
        await one.give()
    told = {one.what: one.found for one in await examine(database)}
    assert told["changes"].startswith("1, in tables of version")
    assert "brings the changes in its own ledger" in told["if it were lost"]
    await broken(database, "CREATE ROLE reader LOGIN; REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    try:
        poor = database.replace("licet@", "reader@")
        assert set(await wrong(poor)) == {"permissions", "tables"}
        with pytest.raises(OrderUnavailable, match="permission denied"):
            await Postgres(poor, SECRET).open(lambda: None)
    finally:
        await broken(database, "DROP ROLE reader")
    assert set(await wrong(database + "x")) == {"reached"}


# Gateways that share it


@dataclass
class Party:
    """The record of one gateway, without the rest of it."""

    home: Path
    database: str
    name: str

    async def start(self) -> Party:
        home = self.home / self.name
        self.ledger = DurableLedger(
            home / "ledger",
            origin=f"here/gateway/{self.name}",
            key=SecretKey.load_or_create(home / "ledger.key"),
            clock=SystemClock(),
        )
        self.store = Store(home / "state.sqlite")
        self.subjects = SubjectFile(home / "subjects.sqlite", b"k" * 32)
        self.blobs = Blobs(home / "blobs")
        shelves = {"blob": self.blobs, "bundle": BundleFiles(home / "bundles"), "subject": self.subjects}
        self.order = Postgres(self.database, SECRET)
        self.records = Replica(self.ledger, self.store, self.order, shelves)
        try:
            await self.records.open()
        except BaseException:
            await self.stop()
            raise
        self.work = asyncio.create_task(self.records.work())
        return self

    async def kill(self, target: str) -> None:
        async with self.records.deciding:
            await self.records.change(Kill("killed", target, self.name, "test"))

    def killed(self) -> set[str]:
        return {one.target for one in self.store.all(Killed)}

    async def stop(self) -> None:
        if hasattr(self, "work"):
            self.work.cancel()
            await asyncio.wait([self.work])
        await self.records.close()
        await self.ledger.close()
        self.store.close()
        self.subjects.close()

    def forget(self) -> None:
        for file in (self.home / self.name).glob("state.sqlite*"):
            file.unlink()

    def void(self) -> list[int]:
        return [line.entry.seq for _, line in self.ledger.lines() if isinstance(line.entry, entries.Void)]


@asynccontextmanager
async def parties(home: Path, database: str, *names: str) -> AsyncIterator[list[Party]]:
    made = [await Party(home, database, name).start() for name in names]
    try:
        yield made
    finally:
        for one in made:
            await one.stop()


async def eventually(holds: object, within_s: float = 30.0) -> None:
    async with asyncio.timeout(within_s):
        while not holds():  # type: ignore[operator]
            await asyncio.sleep(0.01)


async def test_all_have_the_same_state_and_each_its_own_log(tmp_path: Path, database: str) -> None:
    async with parties(tmp_path, database, "a", "b", "c") as three:
        await asyncio.gather(*(three[n % 3].kill(f"agent-{n}") for n in range(90)))
        await eventually(lambda: len({one.records.version for one in three}) == 1)
        dumps = [one.store.dump() for one in three]
        assert dumps[0] == dumps[1] == dumps[2]
        assert len(three[0].killed()) == 90
        for one in three:
            own = [line for _, line in one.ledger.lines() if isinstance(line.entry, Kill)]
            assert len(own) == 30
            assert {line.entry.by for line in own} == {one.name}
        turns = [line.stamp.turn for one in three for _, line in one.ledger.lines() if line.stamp.turn]
        assert sorted(turns) == list(range(1, 91))


async def test_of_two_hundred_who_decide_the_same_one_does(tmp_path: Path, database: str) -> None:
    async with parties(tmp_path, database, "a", "b") as two:
        did: Counter[str] = Counter()

        async def decide(one: Party) -> None:
            async with one.records.deciding:
                if one.store.get(Killed, "x") is None:
                    await one.records.change(Kill("killed", "x", one.name, "first"))
                    did[one.name] += 1

        await asyncio.gather(*(decide(two[n % 2]) for n in range(200)))
        assert did.total() == 1
        assert await two[0].order.head() == 1


async def test_the_state_is_folded_again_to_the_same(tmp_path: Path, database: str) -> None:
    async with parties(tmp_path, database, "a", "b") as (a, b):
        for n in range(20):
            await (a if n % 2 else b).kill(f"agent-{n}")
        await a.kill("late")
        before = a.store.dump()
    b.forget()
    async with parties(tmp_path, database, "b", "c") as (b, c):
        assert b.store.dump() == c.store.dump() == before


async def test_a_gateway_brings_its_changes_along(tmp_path: Path, database: str) -> None:
    alone = DurableLedger(
        tmp_path / "a" / "ledger",
        origin="here/gateway/a",
        key=SecretKey.load_or_create(tmp_path / "a" / "ledger.key"),
        clock=SystemClock(),
    )
    store = Store(tmp_path / "a" / "state.sqlite")
    records = Records(alone, store)
    await records.open()
    await records.note(entries.Start("1", 0))
    blob = await Blobs(tmp_path / "a" / "blobs").add(b"an inventory")
    await records.change(entries.Person("registered", "ada", "gateway", ["operator"], [], "0" * 64))
    await records.change(entries.Server("admitted", "files", "node-1", blob, node="node-1"))
    await alone.close()
    store.close()
    async with parties(tmp_path, database, "a", "b") as (a, b):
        assert a.store.dump() == b.store.dump()
        assert [one.name for one in b.store.all(Person)] == ["ada"]
        assert b.blobs.get(blob) == b"an inventory"
        await b.kill("x")
    # It is not brought along twice, and alone it would not know what others did.
    async with parties(tmp_path, database, "a", "b") as (a, b):
        assert await a.order.head() == 3
        assert a.killed() == {"x"}
        await a.kill("y")
    ledger = DurableLedger(
        tmp_path / "a" / "ledger",
        origin="here/gateway/a",
        key=SecretKey.load(tmp_path / "a" / "ledger.key"),
        clock=SystemClock(),
    )
    store = Store(tmp_path / "a" / "state.sqlite")
    with pytest.raises(LedgerDamaged, match="shared with other gateways"):
        await Records(ledger, store).open()
    await ledger.close()
    store.close()


async def test_a_second_past_is_refused(tmp_path: Path, database: str) -> None:
    async with parties(tmp_path, database, "a") as (a,):
        await a.kill("x")
    own = DurableLedger(
        tmp_path / "b" / "ledger",
        origin="here/gateway/b",
        key=SecretKey.load_or_create(tmp_path / "b" / "ledger.key"),
        clock=SystemClock(),
    )
    await own.append(Kill("killed", "y", "b", "alone"))
    await own.close()
    with pytest.raises(LedgerDamaged, match="another gateway began the order"):
        await Party(tmp_path, database, "b").start()


async def test_what_entries_name_is_on_every_disk_before_it_counts(tmp_path: Path, database: str) -> None:
    async with parties(tmp_path, database, "a", "b") as (a, b):
        digest = await a.blobs.add(b"large")
        async with a.records.deciding:
            await a.records.change(entries.Server("admitted", "files", "node-1", digest, node="node-1"))
        seen: list[bytes | None] = []
        b.records.listen(lambda _entry: seen.append(b.blobs.get(digest)))
        await eventually(lambda: b.records.version == a.records.version)
        assert b.blobs.get(digest) == b"large"
        assert seen in ([b"large"], [])


async def test_keys_of_subjects_are_on_every_disk_and_in_no_database(tmp_path: Path, database: str) -> None:
    async with parties(tmp_path, database, "a", "b") as (a, b):
        made = SubjectKey("sub_1", b"\x07" * 32)
        a.subjects.add(made, "somebody")
        async with a.records.deciding:
            await a.records.change(entries.Subject("made", made.id, "a"))
        await eventually(lambda: b.subjects.one("subject", "somebody") == made)
        kept = await a.order.fetch("subject", made.id)
        assert kept is not None
        assert made.secret not in kept
        assert b"somebody" not in kept
        async with b.records.deciding:
            await b.records.change(entries.Subject("erased", made.id, "b", "asked"))
        assert await a.order.fetch("subject", made.id) is None


async def test_a_key_that_was_made_in_vain_gives_way(tmp_path: Path, database: str) -> None:
    async with parties(tmp_path, database, "a", "b") as (a, b):
        a.subjects.add(SubjectKey("sub_vain", b"\x01" * 32), "somebody")
        b.subjects.add(SubjectKey("sub_b", b"\x02" * 32), "somebody")
        async with b.records.deciding:
            await b.records.change(entries.Subject("made", "sub_b", "b"))
        await eventually(lambda: (found := a.subjects.one("subject", "somebody")) is not None and found.id == "sub_b")


async def says_in_vain(party: Party, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it decides is in its own log, and nobody else hears of it."""

    async def lost(_change: Change) -> None:
        raise OrderUnavailable("gone")

    monkeypatch.setattr(party.order, "publish", lost)
    with pytest.raises(LedgerUnavailable):
        await party.kill("never")
    monkeypatch.undo()


async def test_who_cannot_use_its_turn_holds_up_nobody(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its disk is broken, or it does not believe what it is told."""
    async with parties(tmp_path, database, "a", "b") as (a, b):
        await says_in_vain(a, monkeypatch)

        async def broken_disk(*_: object) -> None:
            raise LedgerUnavailable("the disk is broken")

        monkeypatch.setattr(a.records, "_void", broken_disk)
        for _ in range(3):
            with pytest.raises(LedgerUnavailable, match="broken"):
                await a.kill("x")
        await asyncio.wait_for(b.kill("y"), 2)
        monkeypatch.undo()
        await broken(database, "UPDATE licet_change SET body = '{}' WHERE turn = 1")
        with pytest.raises(OrderDamaged):
            await a.kill("z")
        other = Postgres(database, SECRET)
        await other.open(lambda: None)
        with pytest.raises(OrderDamaged):
            await asyncio.wait_for(other.take(0), 2)
        assert not other._holds
        await other.close()


async def test_a_start_that_failed_leaves_nothing_half_done(tmp_path: Path, database: str) -> None:
    """A gateway that was alone is pointed at a database that others began, and back again."""
    async with parties(tmp_path, database, "b") as (b,):
        await b.kill("x")
    home = tmp_path / "a"

    async def alone(target: str) -> list[str]:
        key = SecretKey.load_or_create(home / "ledger.key")
        ledger = DurableLedger(home / "ledger", origin="here/gateway/a", key=key, clock=SystemClock())
        store = Store(home / "state.sqlite")
        records = Records(ledger, store)
        await records.open()
        if target:
            await records.change(Kill("killed", target, "a", "alone"))
        found = [one.target for one in store.all(Killed)]
        await ledger.close()
        store.close()
        return found

    assert await alone("y") == ["y"]
    with pytest.raises(LedgerDamaged):
        await Party(tmp_path, database, "a").start()
    assert await alone("") == ["y"], "who was stopped is stopped"


async def test_what_sidecars_are_told_only_rises(tmp_path: Path, database: str) -> None:
    async with parties(tmp_path, database, "a") as (a,):
        before = a.records.told_version
        await a.kill("x")
        assert a.records.told_version > before > 10**9, "beyond what it told while it was alone"


async def test_listeners_hear_what_others_did_and_who_tells_people_does_not(tmp_path: Path, database: str) -> None:
    async with parties(tmp_path, database, "a", "b") as (a, b):
        every: list[str] = []
        own: list[str] = []
        b.records.listen(lambda entry: every.append(entry.target))  # type: ignore[union-attr]
        b.records.listen(lambda entry: own.append(entry.target), own=True)  # type: ignore[union-attr]
        await a.kill("x")
        await b.kill("y")
        await eventually(lambda: len(every) == 2)
        assert (every, own) == (["x", "y"], ["y"])


# What goes wrong


async def test_an_entry_that_others_never_saw_is_void(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with parties(tmp_path, database, "a", "b") as (a, b):
        await says_in_vain(a, monkeypatch)
        await b.kill("x")
        await a.kill("y")
        assert a.killed() == {"x", "y"}
        assert len(a.void()) == 1
        never = [line for _, line in a.ledger.lines() if line.stamp.seq == a.void()[0]]
        assert never[0].entry.target == "never"  # type: ignore[union-attr]
        await eventually(lambda: b.killed() == {"x", "y"})


async def test_an_answer_that_was_lost_is_found(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The change was made, and whoever made it did not hear so."""
    async with parties(tmp_path, database, "a", "b") as (a, b):
        told: list[str] = []
        a.records.listen(lambda entry: told.append(entry.target), own=True)  # type: ignore[union-attr]
        publish = a.order.publish

        async def lost(made: Change) -> None:
            await publish(made)
            raise OrderUnavailable("the answer was lost")

        monkeypatch.setattr(a.order, "publish", lost)
        with pytest.raises(LedgerUnavailable):
            await a.kill("x")
        monkeypatch.undo()
        await eventually(lambda: a.killed() == {"x"})
        await a.kill("y")
        await eventually(lambda: b.killed() == {"x", "y"})
        assert (a.void(), told) == ([], ["x", "y"])


async def _fallen(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """a records a change and falls before others know of it."""
    a = await Party(tmp_path, database, "a").start()

    async def falls(_change: Change) -> None:
        raise OrderUnavailable("fell")

    monkeypatch.setattr(a.order, "publish", falls)
    with pytest.raises(LedgerUnavailable):
        await a.kill("last words")
    monkeypatch.undo()
    await a.stop()


async def test_who_fell_says_its_last_words_if_nobody_spoke_since(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _fallen(tmp_path, database, monkeypatch)
    async with parties(tmp_path, database, "a", "b") as (a, b):
        assert (a.killed(), b.killed(), a.void()) == ({"last words"}, {"last words"}, [])


async def test_who_fell_is_not_heard_after_others(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with parties(tmp_path, database, "b") as (b,):
        await b.kill("x")
        await _fallen(tmp_path, database, monkeypatch)
        await b.kill("y")
        for _ in range(2):
            async with parties(tmp_path, database, "a") as (a,):
                assert a.killed() == {"x", "y"}
                assert len(a.void()) == 1


async def test_who_fell_after_it_heard_the_others_starts_again(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last words were not published, and it has applied what another said in their place."""
    async with parties(tmp_path, database, "a", "b") as (a, b):
        await says_in_vain(a, monkeypatch)
        await b.kill("x")
        await eventually(lambda: a.killed() == {"x"})
    async with parties(tmp_path, database, "a") as (a,):
        assert (a.killed(), len(a.void())) == ({"x"}, 1)
        await a.kill("y")


async def test_a_database_that_lost_changes_is_noticed(tmp_path: Path, database: str) -> None:
    async with parties(tmp_path, database, "a", "b") as (a, b):
        for n in range(4):
            await (a if n % 2 else b).kill(f"agent-{n}")
        await eventually(lambda: a.records.version == b.records.version)
        await broken(database, "DELETE FROM licet_change WHERE turn > 2")
        with pytest.raises(OrderDamaged, match="the database has lost changes: turn 4"):
            await a.kill("x")
        await eventually(lambda: "lost changes" in b.records.lost)
        assert b.records.damaged, "so its process is started again, which brings back what it has"


async def test_another_past_is_noticed(tmp_path: Path, database: str) -> None:
    async with parties(tmp_path, database, "a", "b") as (a, b):
        await a.kill("x")
        await eventually(lambda: b.killed() == {"x"})
        await broken(database, "DELETE FROM licet_change")
        fresh = Postgres(database, SECRET)
        await fresh.open(lambda: None)
        line = entries.decode(
            entries.stamped(
                entries.Stamp("here/gateway/c", 0, "boot", 1, 1, 1), entries.encode(Kill("killed", "z", "c", "r"))
            )
        )
        body = entries.stamped(line.stamp, entries.encode(line.entry))
        await fresh.take(0)
        await fresh.publish(Change(1, "here/gateway/c", 0, body))
        await fresh.close()
        with pytest.raises(OrderDamaged, match="turn 1 was here/gateway/a#0, and is here/gateway/c#0 now"):
            await b.kill("y")


async def test_what_the_database_lost_comes_back_from_the_ledgers(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with parties(tmp_path, database, "a", "b") as (a, b):
        for n in range(6):
            await (a if n % 3 else b).kill(f"agent-{n}")
        await a.kill("last")
        before = a.store.dump()
    await broken(database, "TRUNCATE licet_change, licet_kept")
    # One alone waits for the other, and says for what; both together bring it all.
    monkeypatch.setattr(replica, "START_S", 0.5)
    with pytest.raises(OrderDamaged, match="in the ledger of another gateway"):
        await Party(tmp_path, database, "a").start()
    monkeypatch.setattr(replica, "START_S", 20.0)
    for one in await asyncio.gather(*(Party(tmp_path, database, name).start() for name in ("a", "b"))):
        await one.stop()
    async with parties(tmp_path, database, "a", "b") as (a, b):
        assert a.store.dump() == b.store.dump() == before
        assert a.void() == b.void() == []


async def test_what_was_taken_out_of_the_middle_is_noticed(tmp_path: Path, database: str) -> None:
    async with parties(tmp_path, database, "a") as (a,):
        for n in range(4):
            await a.kill(f"agent-{n}")
        await broken(database, "DELETE FROM licet_change WHERE turn = 2")
    with pytest.raises(OrderDamaged, match="turn 2 was taken out"):
        await Party(tmp_path, database, "b").start()


async def test_another_database_is_noticed(
    tmp_path: Path, postgres: servers.Postgres, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica, "START_S", 2.0)  # for whoever else starts
    async with parties(tmp_path, database, "a", "b") as (a, b):
        await a.kill("x")
        await b.kill("y")
    other = postgres.database("t_other")
    try:
        with pytest.raises(OrderDamaged, match="lost changes"):
            await Party(tmp_path, other, "b").start()
    finally:
        postgres.drop("t_other")


async def test_who_does_not_hear_the_others_relies_on_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = servers.Postgres()
    server.start()
    monkeypatch.setattr(replica, "STALE_S", 1.0)
    try:
        database = server.database("x")
        async with parties(tmp_path, database, "a", "b") as (a, b):
            await a.kill("x")
            a.records.require_heard()
            server.kill()
            with pytest.raises(LedgerUnavailable):
                await a.kill("y")
            await asyncio.sleep(1.2)
            heard = a.records.heard()
            with pytest.raises(Unverifiable, match="cannot be reached") as no:
                a.records.require_heard()
            assert no.value.reason is Reason.STALE_FACTS
            assert a.records.heard() == heard
            server.start()
            await eventually(lambda: a.records.heard() > heard and not a.records.lost)
            a.records.require_heard()
            await b.kill("z")
            await eventually(lambda: a.killed() == {"x", "z"})
            assert b.killed() == {"x", "z"}
            await a.kill("w")
            assert len(a.void()) <= 1
    finally:
        server.remove()


async def test_a_database_that_hangs_holds_up_for_some_seconds_only(tmp_path: Path) -> None:
    server = servers.Postgres()
    server.start()
    try:
        async with parties(tmp_path, server.database("x"), "a") as (a,):
            await a.kill("x")
            server.pause()
            with pytest.raises(LedgerUnavailable):
                await asyncio.wait_for(a.kill("y"), postgres.ANSWER_S + postgres.CONNECT_S + 5)
            server.resume()
            async with asyncio.timeout(30):
                while True:
                    try:
                        await a.kill("z")
                        break
                    except LedgerUnavailable:
                        await asyncio.sleep(0.1)
            assert "z" in a.killed()
            assert not ("y" in a.killed() and a.void())
    finally:
        server.resume()
        server.remove()


def test_the_kinds_that_change_the_state_are_those_that_are_applied() -> None:
    """What a gateway brings along is chosen by this list."""
    source = Path(fold.__file__).read_text()
    begin = source.index("    match entry:")
    applied = {
        line.strip().removeprefix("case entries.").removesuffix("():")
        for line in source[begin:].split("\n\n\n")[0].splitlines()
        if line.startswith("        case entries.")
    }
    assert applied == {kind.__name__ for kind in fold.CHANGES}
