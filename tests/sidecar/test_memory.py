"""What a sidecar remembers of its agent: never less than happened."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from sidecar.memory import Memory
from trust.facts import Rate
from trust.recalled import Recalled
from trust.window import BUCKETS, DAY, HOUR, MINUTE, Window


@given(st.lists(st.floats(0, 200), max_size=60), st.sampled_from([MINUTE, HOUR, DAY]))
def test_a_window_never_counts_less_than_happened_and_little_more(gaps: list[float], span: int) -> None:
    window, seen, now = Window(span), deque[float](), 1_000_000.0
    for gap in gaps:
        now += gap
        window.add(now)
        seen.append(now)
        exact = sum(t > now - span for t in seen)
        generous = sum(t > now - span * (1 + 2 / BUCKETS) for t in seen)
        assert exact <= window.count(now) <= generous


def test_a_window_empties() -> None:
    window = Window(MINUTE)
    window.add(0.0)
    assert window.count(1000.0) == 0


def test_labels_stay_with_the_agent_for_their_time_and_with_their_run_for_good() -> None:
    memory = Memory(labels_keep_s=100)
    memory.permitted("r1", "s/t", ["private"], 1000.0)
    assert memory.run("r2", 1001.0).labels == ("private",)
    assert memory.run("r2", 1200.0).labels == ()
    assert memory.run("r1", 1200.0).labels == ("private",)


def test_a_new_run_sheds_neither_calls_nor_denials() -> None:
    memory = Memory(labels_keep_s=100)
    memory.permitted("r1", "s/t", [], 1000.0)
    memory.denied("r1", 1000.0)
    fresh = memory.run("r2", 1001.0)
    assert (fresh.calls, fresh.denied) == (1, 1)


def test_rates_are_of_the_agent_and_of_the_tool() -> None:
    memory = Memory(labels_keep_s=100)
    for tool in ("a", "a", "b"):
        memory.permitted("r", tool, [], 1000.0)
    rate = memory.rate("a", 1001.0)
    assert (rate.minute, rate.tool_minute) == (3, 2)
    assert memory.rate("c", 1001.0).tool_day == 0


def test_what_the_gateway_counted_holds_for_a_moment_and_what_was_seen_stays() -> None:
    memory = Memory(labels_keep_s=100)
    memory.permitted("r", "a", [], 1000.0)
    told = Recalled(
        minute=9, hour=9, day=9, tool_minute=4, tool_day=5, spent_cents=70, denied=3, in_flight=2, labels=("x",)
    )
    memory.told("r", "a", told, 1000.0, 1005.0)
    assert memory.rate("a", 1000.01) == Rate(9, 9, 9, 4, 1, 5, 2)
    assert memory.rate("b", 1000.5) == Rate(9, 9, 9, 0, 0, 0, 0)
    run = memory.run("r", 1000.5)
    assert (run.calls, run.denied, run.spent_cents, run.labels) == (9, 3, 70, ("x",))
    assert memory.rate("a", 1002.0) == Rate(9, 9, 9, 4, 1, 5, 0)
    assert memory.rate("a", 1006.0) == Rate(1, 1, 1, 1, 1, 1, 0)
    assert memory.run("r2", 1006.0).labels == ("x",)
    memory.told("r", "b", Recalled(minute=3, tool_minute=2), 1000.2, 1005.0)
    assert memory.rate("a", 1000.5) == Rate(9, 9, 9, 4, 1, 5, 0), "what was told for one tool hides nothing of another"
    assert memory.rate("b", 1000.5).tool_minute == 2
    memory.permitted("r", "a", [], 1000.6)
    assert memory.rate("a", 1000.7).minute == 9, "it is what the agent did, not what others did beside it"


def test_what_was_never_sent_is_taken_back() -> None:
    memory = Memory(labels_keep_s=100)
    for at in (1000.0, 1001.0):
        memory.permitted("r", "a", ["x"], at, 40)
    memory.took_back("a", 1000.0, 40)
    assert memory.rate("a", 1001.0) == Rate(1, 1, 1, 1, 1, 1)
    assert (memory.run("r", 1001.0).spent_cents, memory.run("r", 1001.0).labels) == (40, ("x",))
