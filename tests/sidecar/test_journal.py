"""Several workers of one sidecar decide as one: whatever they do, and however one of them dies, all know the same."""

from __future__ import annotations

import asyncio
import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar import journal as journals
from sidecar.journal import OwnJournal, Recall, SharedJournal
from sidecar.memories import AnyEvent, Denied, Ended, Gone, Memories, Permitted, Snapshot, Spent
from trust.reasons import Reason, Unverifiable

WORKERS = 3
AGENTS = st.sampled_from(["demo", "guest"])
TIMES = st.floats(1_000_000, 1_000_200)


def memories() -> Memories:
    return Memories(labels_keep_s=100)


def known(journal: SharedJournal | OwnJournal) -> Snapshot:
    with journal:
        return msgspec.msgpack.decode(msgspec.msgpack.encode(journal.memories.snapshot()), type=Snapshot)


def events(worker: int) -> st.SearchStrategy[AnyEvent]:
    labels = st.lists(st.sampled_from(["private", "untrusted"]), max_size=2).map(tuple)
    tools = st.sampled_from(["s/a", "s/b"])
    runs = st.sampled_from(["r1", "r2"])
    return st.one_of(
        st.builds(Permitted, st.just(worker), AGENTS, runs, tools, labels, TIMES, st.integers(0, 9)),
        st.builds(Denied, AGENTS, runs, TIMES),
        st.builds(Spent, st.uuids().map(str), TIMES),
        st.just("ended"),  # type: ignore[arg-type]
        st.just("again"),  # type: ignore[arg-type]
    )


DEEDS = st.integers(1, WORKERS).flatmap(lambda worker: st.tuples(st.just(worker), events(worker)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(DEEDS, max_size=60))
def test_all_know_what_one_alone_would(tmp_path_factory: pytest.TempPathFactory, deeds: list[tuple[int, Any]]) -> None:
    """Small files, so that the journal goes on in another one again and again; workers start again in between."""
    directory, alone = tmp_path_factory.mktemp("family"), OwnJournal(memories())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journals, "MAX_BYTES", 300)
        workers = {1: SharedJournal(directory, 1, memories())}
        workers |= {number: SharedJournal(directory, number) for number in range(2, WORKERS + 1)}
        in_flight: list[tuple[int, str]] = []
        for number, deed in deeds:
            if deed == "again":
                workers[number].close()
                workers[number] = SharedJournal(directory, number)
                event: AnyEvent = Gone(number)
                in_flight = [one for one in in_flight if one[0] != number]
            elif deed == "ended":
                own = next((one for one in in_flight if one[0] == number), None)
                if own is None:
                    continue
                in_flight.remove(own)
                event = Ended(*own)
            else:
                event = deed
                if isinstance(event, Permitted):
                    in_flight.append((event.worker, event.agent))
            workers[number].tell(event)
            alone.tell(event)
        assert [known(one) for one in workers.values()] == [known(alone)] * WORKERS
        for one in workers.values():
            one.close()


def _calls(directory: Path, worker: int, tries: int, limit: int, permitted: Any) -> None:
    journal = SharedJournal(directory, worker)
    recall = Recall("demo", journal)
    for _ in range(tries):
        with recall.turn:
            if recall.rate("s/a", 1_000_000.0).tool_minute < limit:
                recall.permitted("r", "s/a", (), 1_000_000.0, 0)
                with permitted.get_lock():
                    permitted.value += 1


def test_no_two_are_the_last_that_a_limit_lets_through(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    SharedJournal(tmp_path, 1, memories()).close()
    permitted = fork.Value("i", 0)
    processes = [
        fork.Process(target=_calls, args=(tmp_path, number, 400, 500, permitted)) for number in range(1, WORKERS + 1)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert permitted.value == 500


def _holds(directory: Path, has: Any) -> None:
    with SharedJournal(directory, 2):
        has.set()
        time.sleep(60)


async def test_who_dies_in_its_turn_keeps_nobody_waiting_and_who_hangs_is_named(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    first, has = SharedJournal(tmp_path, 1, memories()), fork.Event()
    holder = fork.Process(target=_holds, args=(tmp_path, has))
    holder.start()
    assert has.wait(10)
    assert holder.pid is not None
    with pytest.raises(Unverifiable, match="another worker") as refused, first:
        pytest.fail("two have the turn")
    assert refused.value.reason is Reason.OVERLOADED
    first.tell_later(Denied("demo", "r", 1_000_000.0))
    await asyncio.sleep(0.01)  # nobody can be told now, and nothing is lost: it is told with the next turn
    os.kill(holder.pid, signal.SIGKILL)
    holder.join(10)
    with first:
        assert first.memories.of("demo").run("r", 1_000_001.0).denied == 1


def test_half_a_record_is_of_nobody(tmp_path: Path) -> None:
    """Whoever died in the middle of writing did nothing after it."""
    first, second = SharedJournal(tmp_path, 1, memories()), SharedJournal(tmp_path, 2)
    first.tell(Denied("demo", "r", 1_000_000.0))
    with (tmp_path / "journal-0").open("ab") as file:
        file.write(b"\0\0\0\x20half")
    second.tell(Denied("demo", "r", 1_000_000.0))
    assert known(first) == known(second)
    with first:
        assert first.memories.of("demo").run("r", 1_000_001.0).denied == 2


def test_who_dies_while_the_file_is_replaced_leaves_that_to_the_next(tmp_path: Path) -> None:
    first, second = SharedJournal(tmp_path, 1, memories()), SharedJournal(tmp_path, 2)
    first.tell(Denied("demo", "r", 1_000_000.0))
    with (tmp_path / "journal-0").open("ab") as file:
        file.write(bytes(journals.LENGTH))
    late = SharedJournal(tmp_path, 3)
    assert [path.name for path in tmp_path.glob("journal-*")] == ["journal-1"]
    late.tell(Denied("demo", "r", 1_000_000.0))
    assert known(first) == known(second) == known(late)
    with second:
        assert second.memories.of("demo").run("r", 1_000_001.0).denied == 2


async def test_what_cannot_be_written_is_not_permitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = SharedJournal(tmp_path, 1, memories()), SharedJournal(tmp_path, 2)
    before = known(second)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(Unverifiable, match="No space left") as refused:
        first.tell(Permitted(1, "demo", "r", "s/a", (), 1_000_000.0, 0))
    assert refused.value.reason is Reason.LEDGER_UNAVAILABLE
    first.tell_later(Denied("demo", "r", 1_000_000.0))
    await asyncio.sleep(0.01)
    monkeypatch.undo()
    assert before == known(second)
    first.tell_later(Denied("demo", "r", 1_000_000.0))
    await asyncio.sleep(0.01)
    with second:
        assert second.memories.of("demo").run("r", 1_000_001.0).denied == 2


def test_a_family_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unverifiable, match="no journal"):
        SharedJournal(tmp_path, 2)
