"""What an agent did, counted by Redis as by one process: every window, whatever comes in whatever order and time."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge import did
from edge.shared import Shared
from gateway.index import Index
from gateway.recall import QUESTIONS, OwnCounts
from loadtests.servers import Redis
from trust.facts import Rate, Run
from trust.reasons import Reason, Unverifiable
from trust.recalled import DENIED, MAX_RUNS, Call, Past, Recalled
from trust.window import BUCKETS, DAY, MINUTE, Window

KEEP_S: Final = 1000
calls = st.builds(
    Call,
    st.sampled_from(["a", "b"]),
    st.sampled_from(["r1", "r2"]),
    st.sampled_from(["fs/read", "fs/write"]),
    st.lists(st.sampled_from(["secret", "untrusted"]), max_size=2, unique=True).map(tuple),
    st.sampled_from([0, 250]),
)
steps = st.one_of(
    calls.map(lambda call: ("call", call)),
    calls.map(lambda call: ("call", call)),
    st.just(("take back", None)),
    st.sampled_from(["a", "b"]).map(lambda agent: ("deny", agent)),
    st.sampled_from([0.3, 1.0, 7.0, 60.0, 700.0, 3600.0, 86_400.0]).map(lambda seconds: ("wait", seconds)),
)


class Timed:
    """A Redis in which it is later than it is: the scripts read its clock, and a test says by how much it is ahead.
    (The library that lies to processes about the time does not go together with the memory that Redis allocates.)"""

    def __init__(self, home: Path, patch: pytest.MonkeyPatch) -> None:
        self._redis = Redis(home)
        self._redis.start()
        self.url = self._redis.url
        self.number = 0
        self._patch = patch
        self._plain = {name: getattr(did, name) for name in ("COUNT", "PUT", "FLY")}
        self.ahead = 0.0
        self.wait(0)

    def wait(self, seconds: float) -> None:
        self.ahead += seconds
        for name, script in self._plain.items():
            assert script.count("time[2] / 1000000") == 1
            self._patch.setattr(did, name, script.replace("time[2] / 1000000", f"time[2] / 1000000 + {self.ahead:.3f}"))

    def remove(self) -> None:
        self._redis.remove()


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Timed]:
    with pytest.MonkeyPatch.context() as patch:
        made = Timed(tmp_path_factory.mktemp("timed"), patch)
        yield made
        made.remove()


class Both:
    """The same told to both; ``count`` compares what they know."""

    def __init__(self, timed: Timed) -> None:
        timed.number += 1
        self.timed, self.nonces = timed, 0
        self.shared = Shared(timed.url, f"test-{timed.number}")
        self.own = OwnCounts()
        self.counted: list[tuple[object, object]] = []
        self.since: dict[str, float] = {}
        self.offset: float | None = None
        for agent in ("a", "b"):
            self.own.begin(agent, Past(), time.time() + timed.ahead)

    async def count(self, call: Call) -> Recalled:
        self.nonces += 1
        now = time.time()
        told = await self.shared.count(
            call, 1, KEEP_S, "log", nonce=str(self.nonces), created_at=int(now) + 10**9, expires_at=now + 60, now=now
        )
        self.since[call.agent] = told.since
        mine = self.own.count(call, 1, KEEP_S, told.at)
        assert told.before == mine.before
        assert not told.several
        self.counted.append((told, mine))
        return told.before

    async def step(self, step: tuple[str, object]) -> None:
        match step:
            case ("call", Call() as call):
                await self.count(call)
            case ("take back", _) if self.counted:
                told, mine = self.counted.pop()
                await self.shared.uncount(told)  # type: ignore[arg-type]
                self.own.uncount(mine)  # type: ignore[arg-type]
            case ("deny", str() as agent) if agent in self.since:  # of others the ledgers tell
                await self.shared.denied(agent, 3)
                self.own.denied(agent, 3, time.time() + self.timed.ahead)
            case ("wait", float() as seconds):
                self.timed.wait(seconds)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(told=st.lists(steps, min_size=1, max_size=30))
def test_redis_counts_as_one_process_does(timed: Timed, told: list[tuple[str, object]]) -> None:
    async def run() -> None:
        both = Both(timed)
        try:
            for step in told:
                await both.step(step)
            for agent in ("a", "b"):
                await both.count(Call(agent, "r1", "fs/read"))
        finally:
            await both.shared.close()

    asyncio.run(run())


@pytest.mark.slow
async def test_of_many_that_count_at_once_each_knows_of_those_before(timed: Timed) -> None:
    both = Both(timed)
    call = Call("a", "r", "t/t")

    async def one(number: int) -> int:
        now = time.time()
        told = await both.shared.count(
            call, 1, 1, "log", nonce=f"n{number}", created_at=int(now) + 10**9, expires_at=now + 9, now=now
        )
        return told.before.day

    assert sorted(await asyncio.gather(*(one(number) for number in range(50)))) == list(range(50))
    await both.shared.close()


@pytest.mark.slow
async def test_what_was_before_counts_once_and_fades(timed: Timed) -> None:
    both = Both(timed)
    call = Call("a", "r", "t/t")
    await both.count(call)
    now, past = time.time() + timed.ahead, Past()
    past.add("minute", MINUTE, int(now * BUCKETS / MINUTE) - 5, 7)
    past.add(DENIED, DAY, int(now * BUCKETS / DAY), 2)
    past.labels = [("secret", now + 500, "r"), ("old", now - 1, "r2")]
    for _ in range(2):
        await both.shared.seed("a", past, KEEP_S, both.since["a"])
    both.own.begin("a", past, now)
    both.own.count(call, 1, KEEP_S, now)
    assert (await both.count(call)).minute == 8
    assert (await both.count(Call("a", "r2", "t/t"))).labels == ("old", "secret")
    timed.wait(61)
    known = await both.count(Call("a", "r3", "t/t"))
    assert (known.minute, known.denied, known.labels) == (0, 2, ("secret",))
    await both.shared.close()


@pytest.mark.slow
async def test_a_nonce_that_was_used_counts_nothing(timed: Timed) -> None:
    both = Both(timed)
    now = time.time()
    once = {"nonce": "n", "created_at": int(now) + 10**9, "expires_at": now + 60, "now": now}
    await both.shared.count(Call("a", "r", "t/t"), 1, 1, "log", **once)  # type: ignore[arg-type]
    with pytest.raises(Unverifiable) as bad:
        await both.shared.count(Call("a", "r", "t/t"), 1, 1, "log", **once)  # type: ignore[arg-type]
    assert bad.value.reason is Reason.REPLAYED
    with pytest.raises(Unverifiable) as bad:
        await both.shared.count(Call("a", "r", "t/t"), 1, 1, "log", **{**once, "nonce": "m", "created_at": 1})  # type: ignore[arg-type]
    assert bad.value.reason is Reason.REPLAY_UNKNOWN
    both.nonces += 1
    told = await both.shared.count(Call("a", "r", "t/t"), 1, 1, "log", **{**once, "nonce": "o"})  # type: ignore[arg-type]
    assert told.before.day == 1
    await both.shared.close()


@pytest.mark.slow
async def test_what_is_in_flight_elsewhere_is_known_for_as_long_as_it_is_said(timed: Timed) -> None:
    one, other = Shared(timed.url, "flights", "a"), Shared(timed.url, "flights", "b")

    async def known(by: Shared, here: int) -> int:
        now = time.time()
        told = await by.count(
            Call("x", "r", "t/t"), here, 1, "log", nonce=os.urandom(8).hex(), created_at=int(now) + 10**9,
            expires_at=now + 9, now=now,
        )  # fmt: skip
        return told.before.in_flight

    assert await known(one, 1) == 0
    assert await known(one, 2) == 1
    assert await known(other, 1) == 2
    await one.flying({"x": 5, "y": 1})
    assert await known(other, 1) == 5
    timed.wait(11)
    assert await known(other, 1) == 0
    await one.close()
    await other.close()


@pytest.mark.slow
async def test_that_there_are_several_sidecars_is_known_from_the_first_call_of_the_second(timed: Timed) -> None:
    both = Both(timed)
    now = time.time()
    told = []
    for number, log in enumerate(["one", "one", "two", "one"]):
        once = {"nonce": f"n{number}", "created_at": int(now) + 10**9, "expires_at": now + 9, "now": now}
        told.append(await both.shared.count(Call("a", "r", "t/t"), 1, 1, log, **once))  # type: ignore[arg-type]
    assert [one.several for one in told] == [False, False, True, True]
    await both.count(Call("b", "r", "t/t"))
    await both.shared.seed("b", Past(several=True), 1, both.since["b"])
    once = {"nonce": "m", "created_at": int(now) + 10**9, "expires_at": now + 9, "now": now}
    assert (await both.shared.count(Call("b", "r", "t/t"), 1, 1, "one", **once)).several  # type: ignore[arg-type]
    await both.shared.close()


@pytest.mark.slow
async def test_a_key_has_one_action(timed: Timed) -> None:
    one = Shared(timed.url, "keys")
    now = time.time() + 100  # this Redis is as one that lost something before
    assert await one.claim("k", "act_1", 60, 30, now) == "act_1"
    assert await one.claim("k", "act_2", 60, 30, now) == "act_1"
    await one.release("k", "act_2")
    assert await one.claim("k", "act_2", 60, 30, now) == "act_1"
    await one.release("k", "act_1")
    assert await one.claim("k", "act_2", 60, 30, now) == "act_2"
    await one.close()


async def test_of_more_runs_than_are_kept_apart_labels_stay_with_the_agent() -> None:
    own = OwnCounts()
    own.begin("a", Past(), 0.0)
    for number in range(MAX_RUNS):
        own.count(Call("a", f"r{number}", "t/t"), 1, 1, 0.0)
        own.count(Call("a", f"r{number}", "t/t", ("seen",)), 1, 1, 0.0)
    assert own.count(Call("a", "other", "t/t"), 1, 1, 10.0).before.labels == ()
    own.count(Call("a", "one more", "t/t", ("seen",)), 1, 1, 10.0)
    assert own.count(Call("a", "other", "t/t"), 1, 1, DAY).before.labels == ("seen",)


@pytest.mark.slow
async def test_runs_that_are_over_make_room(timed: Timed) -> None:
    both = Both(timed)
    for number in range(MAX_RUNS):
        await both.count(Call("a", f"r{number}", "t/t", ("seen",)))
    timed.wait(DAY + KEEP_S + 120.0)
    await both.count(Call("a", "new", "t/t", ("seen",)))
    timed.wait(KEEP_S + 1.0)
    assert (await both.count(Call("a", "another", "t/t"))).labels == ()
    assert (await both.count(Call("a", "new", "t/t"))).labels == ("seen",)
    await both.shared.close()


@pytest.mark.slow
async def test_what_a_memory_that_is_lost_counted_is_not_taken_back(timed: Timed) -> None:
    both = Both(timed)
    await both.count(Call("a", "r", "t/t"))
    counted, _ = both.counted[0]
    lost = Shared(timed.url, "another-life")
    now = time.time()
    once = {"nonce": "n", "created_at": int(now) + 10**9, "expires_at": now + 9, "now": now}
    await lost.count(Call("a", "r", "t/t"), 1, 1, "log", **once)  # type: ignore[arg-type]
    await lost.uncount(counted)  # type: ignore[arg-type]
    assert (await lost.count(Call("a", "r", "t/t"), 1, 1, "log", **{**once, "nonce": "m"})).before.day == 1  # type: ignore[arg-type]
    for one in (both.shared, lost):
        await one.close()


def test_every_question_is_answered_by_an_index(tmp_path: Path) -> None:
    """Asked of the whole mesh's day, one call would hold up all."""
    index = Index(tmp_path / "index.sqlite", list)
    values = {"dispatched": 6, "denied": 7, "labelled": 5, "with key": 4}
    for name, question in QUESTIONS.items():
        asked = index._thread.submit(
            lambda question=question, count=values[name]: index._db.execute(  # type: ignore[misc]
                f"EXPLAIN QUERY PLAN {question}", ["[]"] * count
            ).fetchall()
        )
        plan = " ".join(str(row[-1]) for row in asked.result())
        assert re.search(
            r"USING INDEX (by_agent|by_agent_and_decision|metered_by_key) \((agent|idempotency_key)=\?", plan
        ), plan
    index.close()


counts = st.integers(0, 9)
known = st.builds(
    Recalled, *([counts] * 9), st.lists(st.sampled_from("xyz"), unique=True).map(lambda some: tuple(sorted(some)))
)
facts = st.builds(
    lambda rate, denied, labels, spent: {
        "run": {"id": "r", "calls": rate.day, "denied": denied, "labels": list(labels), "spent_cents": spent, "seconds": 3},
        "rate": {name: getattr(rate, name) for name in Rate.__struct_fields__},
        "risk": 3,
    },
    st.builds(Rate, *([counts] * 7)),
    counts,
    st.lists(st.sampled_from("xyz"), unique=True).map(sorted),
    counts,
)  # fmt: skip


@given(known=known, said=facts)
def test_whoever_knows_more_is_believed(known: Recalled, said: dict[str, object]) -> None:
    both = known.within(said)  # type: ignore[arg-type]
    run, before = both["run"], said["run"]
    assert run["calls"] == max(known.day, before["calls"])  # type: ignore[index,call-overload]
    assert set(run["labels"]) == set(known.labels) | set(before["labels"])  # type: ignore[index,call-overload]
    for name in ("minute", "tool_day", "in_flight"):
        assert both["rate"][name] == max(getattr(known, name), said["rate"][name])  # type: ignore[index,call-overload]
    assert (run["id"], run["seconds"], both["risk"]) == ("r", 3, 3)  # type: ignore[index,call-overload]
    assert known.within(both) is both
    assert set(run) == set(Run.__struct_fields__)  # type: ignore[arg-type]


@pytest.mark.parametrize("said", [{}, {"run": 1, "rate": 2}, {"run": {"id": "r", "calls": "many"}, "rate": {}}])
def test_facts_that_cannot_be_compared_are_refused(said: dict[str, object]) -> None:
    with pytest.raises(Unverifiable) as bad:
        Recalled().within(said)  # type: ignore[arg-type]
    assert bad.value.reason is Reason.PERMIT_INVALID


def test_a_part_that_is_over_is_not_put() -> None:
    window = Window(MINUTE)
    assert window.count(1000.0) == 0
    window.put(900, 1)
    window.put(941, 2)
    assert window.count(1000.0) == 2
