"""What the pages say of those who decide and of what is degraded, from plain facts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.approvals.oversight import oversight
from gateway.candidate import compared
from gateway.condition import Seen, troubles
from gateway.console.charts import HEIGHT, WIDTH, Chart, Series, slots, spark
from gateway.fleet import Shown
from gateway.gaps import LogState
from gateway.state import ApprovalRecord, Killed, LogRecord, Tripped, Vote
from trust.policy.bundle import Sources

S = 1_000_000
MOMENTS = st.integers(1, 10_000 * S)
VOTES = st.builds(
    Vote, by=st.sampled_from("abc"), decision=st.sampled_from(["approve", "deny"]), reason=st.just(""),
    at_us=MOMENTS, seat=st.just("a"),
)  # fmt: skip
RECORDS = st.builds(
    ApprovalRecord, id=st.just("apr_1"),
    state=st.sampled_from(["pending", "approved", "denied", "expired", "consumed", "cancelled"]),
    agent=st.just("demo"), run=st.just("r"), action_digest=st.just(""), terms=st.just({}), request=st.just({}),
    requested_at_us=MOMENTS, expires_at_us=MOMENTS, policies=st.just(("p",)), votes=st.lists(VOTES, max_size=3).map(tuple),
    editors=st.sampled_from([(), ("e",)]), under=st.sampled_from(["", "apr_0"]), viewed_at_us=st.just(0) | MOMENTS,
    decided_at_us=st.just(0) | MOMENTS,
)  # fmt: skip


def record(state: str = "consumed", **more: Any) -> ApprovalRecord:
    plain = {
        "id": "apr_1", "agent": "demo", "run": "r", "action_digest": "", "terms": {}, "request": {}, "policies": ("p",),
        "requested_at_us": 100 * S, "viewed_at_us": 110 * S, "decided_at_us": 130 * S, "expires_at_us": 900 * S,
    }  # fmt: skip
    return ApprovalRecord(state=state, **{**plain, **more})  # type: ignore[arg-type]


@given(st.lists(RECORDS, max_size=12))
def test_every_request_is_counted_once(records: list[ApprovalRecord]) -> None:
    told = oversight(records)
    ended = told.waiting + told.approved + told.denied + told.abandoned + told.cancelled
    assert ended <= told.asked == len(records) - told.covered
    assert told.unseen <= told.abandoned
    assert 0 <= told.deny_share <= 1
    assert 0 <= told.abandoned_share <= 1
    assert sum(one.votes for one in told.deciders) == sum(len(one.votes) for one in records if not one.under)
    assert all(0 <= one.glances + one.denied <= one.votes for one in told.deciders)


def test_who_says_yes_at_a_glance_is_seen() -> None:
    quick = Vote("fay", "approve", "", 111 * S, "fay")
    slow = msgspec.structs.replace(quick, by="flo", at_us=150 * S)
    no = msgspec.structs.replace(quick, decision="deny", by="flo")
    told = oversight([record(votes=(quick,)), record(votes=(slow,)), record("denied", votes=(no,)), record("expired")])
    assert [(one.person, one.votes, one.denied, one.glances) for one in told.deciders] == [
        ("flo", 2, 1, 0),
        ("fay", 1, 0, 1),
    ]
    assert (told.to_decision.median_s, told.to_look.median_s) == (30.0, 10.0)
    assert (told.abandoned, told.unseen) == (1, 0)
    assert told.askers[0].asked == 4


def node(state: str = "ready", ejected_ms: int = 0, suspended: tuple[str, ...] = ()) -> Shown:
    return Shown(
        "n1", "cloud", "default", state, "", "http://x", 1, 5000, ["s"], [], list(suspended), 1.0, 4, 0, ejected_ms, []
    )


FINE = Seen(
    now_us=1_000 * S, policies="", active=True, broken="", anchors="", late=0, nodes=[node()], killed=(), tripped=(),
    logs=[LogState("x/gateway/main", 1, 1, 1), LogState("x/sidecar/a", 1, 1, 1, LogRecord("x", "k"), 999 * S)],
)  # fmt: skip


def test_nothing_is_said_where_nothing_is_wrong() -> None:
    assert troubles(FINE) == []


@pytest.mark.parametrize(
    ("changed", "says", "grave"),
    [
        ({"active": False}, "No policies are active", True),
        ({"policies": "the bundle could not follow"}, "The bundle could not follow", False),
        ({"broken": "ENOSPC"}, "takes no entries any more", True),
        ({"anchors": "gone"}, "not held fast outside: gone", False),
        ({"logs": [LogState("x", 1, 1, 1, LogRecord("x", "k", wrong="forked"), 999 * S)]}, "contradicts", True),
        ({"logs": [LogState("x", 1, 1, 1, LogRecord("x", "k"), 300 * S)]}, "not heard of for 11 min", False),
        ({"logs": [LogState("x", 1, 1, 1, stuck="bad tile")]}, "cannot be searched: bad tile", False),
        ({"nodes": [node(), node("draining")]}, "is draining", False),
        ({"nodes": [node(), node("lost")]}, "is not heard of", False),
        ({"nodes": [node("lost")]}, "nothing can run", True),
        ({"nodes": [node(ejected_ms=900)]}, "rests", False),
        ({"nodes": [node(), node("not admitted")]}, "not admitted by policy", False),
        ({"nodes": [node(suspended=("gpu",))]}, "gpu of node n1 does not count", False),
        ({"killed": [Killed("all", "ada", "drill")]}, "Every agent is stopped by ada: drill", True),
        ({"killed": [Killed("team:x", "ada", "drill")]}, "team:x is stopped", False),
        ({"tripped": [Tripped("agent:demo", "loop", 300, 1_001 * S)]}, "open for agent demo (loop, 300)", False),
        ({"late": 2}, "2 requests end within five minutes", False),
    ],
)
def test_each_trouble_is_said_in_words(changed: dict[str, Any], says: str, grave: bool) -> None:
    found = troubles(msgspec.structs.replace(FINE, **changed))
    assert says in " ".join(one.words for one in found)
    assert found[0].grave == grave


def test_what_is_over_is_no_trouble() -> None:
    assert troubles(msgspec.structs.replace(FINE, tripped=[Tripped("agent:demo", "loop", 3, 999 * S)])) == []


@given(st.lists(st.tuples(st.integers(0, 40), st.sampled_from(["intent", "hold"]), st.integers(1, 9)), max_size=20))
def test_slots_hold_what_falls_into_them(found: list[tuple[int, str, int]]) -> None:
    unique = {(slot, name): number for slot, name, number in found}
    values = slots([(slot, name, number) for (slot, name), number in unique.items()], 600, 60, 20)
    assert sum(map(sum, values.values())) == sum(n for (slot, _), n in unique.items() if 10 <= slot < 30)


@given(st.lists(st.integers(0, 1000), max_size=30))
def test_a_small_line_stays_in_its_box(values: list[int]) -> None:
    points = [tuple(map(float, pair.split(","))) for pair in spark(values, 1000).split()]
    assert len(points) == (len(values) if len(values) > 1 else 0)
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)


def test_the_table_says_what_the_chart_draws() -> None:
    chart = Chart("T", [0, 60, 120], [Series("a", "good", (), [1, 0, 2]), Series("b", "bad", (1,), [0, 0, 3])])
    assert chart.rows == [("1970-01-01 00:00", [1, 0]), ("1970-01-01 00:02", [2, 3])]
    assert chart.said == "T. a: 3; b: 3"


def test_what_differs_is_told_by_file(tmp_path: Path) -> None:
    active = Sources("s", {"a.cedar": "one\ntwo\n", "b.cedar": "gone\n"}, {})
    (tmp_path / "schema.cedarschema").write_text("s")
    (tmp_path / "a.cedar").write_text("one\nthree\n")
    found = {one.file: one.lines[1:] for one in compared(tmp_path, active).differences}
    assert found == {"a.cedar": [" one", "-two", "+three"], "b.cedar": ["-gone"]}
    (tmp_path / "a.cedar").write_text("one\n" * 100_000)
    assert compared(tmp_path, active).differences[0].lines == ["it is too large to be compared here"]
    (tmp_path / "schema.cedarschema").unlink()
    assert "schema.cedarschema" in compared(tmp_path, active).missing
    assert "is not a directory" in compared(tmp_path / "nowhere", active).missing
