"""The index: every entry once, found by what it says, page by page, and the same again when it is made anew."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.index import Index
from gateway.questions import Filter
from gateway.usage import Usage
from trust.ledger import entries
from trust.ledger.entries import Deed, Intent, Judgement, Kill, Outcome, Refusal, Stamp, decode, encode, stamped
from trust.ledger.rows import row


@dataclass
class Log:
    """A log in memory, whose clock may stand still."""

    origin: str
    data: list[bytes] = field(default_factory=list)
    first: int = 0

    def add(self, entry: entries.AnyEntry, wall_us: int) -> None:
        stamp = Stamp(self.origin, len(self.data), "b", wall_us, 1)
        self.data.append(stamped(stamp, encode(entry)))

    def entries(self, start: int) -> Iterator[bytes]:
        yield from self.data[start:]


def deed(number: int, agent: str = "demo", run: str = "r1", tool: str = "read") -> Deed:
    return Deed(
        f"act_{number}", f"dec_{number}", run, agent, "ada", "bound", "native", "fs", tool, "a" * 64, "b" * 64, "c" * 64
    )


def some(number: int) -> entries.AnyEntry:
    """One of a few kinds."""
    asked = deed(number, f"a{number % 3}", f"r{number % 5}", ("read", "write")[number % 2])
    match number % 4:
        case 0:
            return Intent(asked, Judgement("d", "allow", {}, ["p1"]))
        case 1:
            judgement = Judgement("d", "deny", {}, ["p1", "p2"])
            return Refusal(5, "policy_forbids", "no", asked.decision_id, asked, judgement)
        case 2:
            return Outcome(asked.action_id, asked.decision_id, asked.run, "done", node="n1")
    return Kill("killed", "a1", "operator", "a drill")


def filled(count: int, logs: int = 2, step_us: int = 1) -> list[Log]:
    made = [Log(f"t/sidecar/s{number}") for number in range(logs)]
    for number in range(count):
        made[number % logs].add(some(number), 1_000 + number * step_us)
    return made


@pytest.fixture
async def index(tmp_path: Path) -> Any:
    logs = filled(400)
    made = Index(tmp_path / "index.sqlite", lambda: logs)
    await made.follow()
    yield made
    made.close()


async def every(index: Index, **asked: Any) -> list[tuple[str, int]]:
    """All rows, page by page."""
    found: list[tuple[str, int]] = []
    after = ""
    while True:
        page = await index.find(Filter(**asked, after=after))
        found += [(one.origin, one.index) for one in page.rows]
        after = page.next
        if not after:
            return found


@pytest.mark.parametrize("step_us", [0, 1])
@pytest.mark.parametrize("oldest_first", [True, False])
async def test_pages_hold_every_entry_once_and_in_order(tmp_path: Path, step_us: int, oldest_first: bool) -> None:
    """Also when all have the same time."""
    logs = filled(237, 3, step_us)
    index = Index(tmp_path / "index.sqlite", lambda: logs)
    assert await index.follow() == 237
    found = await every(index, limit=10, oldest_first=oldest_first)
    assert len(found) == len(set(found)) == 237
    by_log = {log.origin: [place for origin, place in found if origin == log.origin] for log in logs}
    for places in by_log.values():
        assert places == sorted(places, reverse=not oldest_first)
    index.close()


MEANS: list[tuple[dict[str, Any], Any]] = [
    ({"agent": "a1"}, lambda r: r.agent == "a1"),
    ({"decision": "deny"}, lambda r: r.decision == "deny"),
    ({"agent": "a1", "decision": "deny"}, lambda r: r.agent == "a1" and r.decision == "deny"),
    ({"policy": "p2"}, lambda r: "p2" in r.policies),
    ({"reason": "policy_forbids", "run": "r1"}, lambda r: r.reason == "policy_forbids" and r.run == "r1"),
    ({"tool": "fs/write"}, lambda r: (r.server, r.tool) == ("fs", "write")),
    ({"tool": "write"}, lambda r: r.tool == "write"),
    ({"kind": "kill", "by": "operator"}, lambda r: r.kind == "kill"),
    ({"node": "n1"}, lambda r: r.node == "n1"),
    ({"origin": "t/sidecar/s1"}, lambda r: r.origin == "t/sidecar/s1"),
    ({"since_us": 1_100, "until_us": 1_200}, lambda r: 1_100 <= r.wall_us < 1_200),
    ({"decision_id": "dec_6"}, lambda r: r.decision_id == "dec_6"),
    ({"agent": "' OR 1=1 --"}, lambda r: False),
]


@pytest.mark.parametrize(("asked", "means"), MEANS, ids=lambda v: str(v) if isinstance(v, dict) else "")
async def test_a_filter_finds_exactly_what_says_so(index: Index, asked: dict[str, Any], means: Any) -> None:
    rows = [row(decode(data)) for log in filled(400) for data in log.data]
    expected = {(one.origin, one.index) for one in rows if means(one)}
    assert set(await every(index, limit=7, **asked)) == expected
    assert asked.get("agent", "").startswith("'") or expected


@pytest.mark.parametrize("after", ["x", "1.2", "1.2.3.4", "1.2.x", "-1.2.3", "1.2.3; DROP TABLE entry"])
async def test_a_cursor_that_is_none_is_said(index: Index, after: str) -> None:
    with pytest.raises(ValueError, match="the page before"):
        await index.find(Filter(after=after))


async def test_facets_count_what_is_asked_for(index: Index) -> None:
    told = await index.facets(Filter(agent="a1"), ("decision", "kind"))
    assert sum(count for _, count in told["kind"]) == len(await every(index, agent="a1"))
    with pytest.raises(ValueError, match="expected one of"):
        await index.facets(Filter(), ("decision; DROP TABLE entry",))


@pytest.mark.slow
@given(st.lists(st.integers(0, 60), min_size=1, max_size=6))
async def test_it_goes_on_where_it_was_and_comes_out_the_same_when_made_anew(
    tmp_path_factory: pytest.TempPathFactory, grown: list[int]
) -> None:
    home = tmp_path_factory.mktemp("index")
    logs = filled(0)
    number = 0
    for more in grown:
        for _ in range(more):
            logs[number % 2].add(some(number), 1_000 + number)
            number += 1
        index = Index(home / "index.sqlite", lambda: logs)
        assert await index.follow() == more
        assert await index.follow() == 0
        followed = await index.dump()
        index.close()
    anew = Index(home / "anew.sqlite", lambda: reversed(logs))
    await anew.follow()
    assert await anew.dump() == followed
    assert len(followed) == number
    anew.close()


async def test_what_only_runs_so_far_is_an_attempt_that_has_not_ended(tmp_path: Path) -> None:
    log = Log("t/gateway/a")
    told = ("act_1", "dec_1", "r1", "demo", "ada", "fs", "read", "n1", "a" * 64, "b" * 64, "c" * 64, "t" * 64)
    log.add(entries.Dispatch(*told), 1_000)
    index = Index(tmp_path / "index.sqlite", lambda: [log])
    await index.follow()
    [one] = await Usage(index, "t").sums(("agent",), 0, 2_000, {})
    assert (one.attempts, one.done, one.lost, one.refused, one.took_us) == (1, 0, 0, 0, None)
    index.close()


async def test_a_log_that_began_anew_is_read_anew(tmp_path: Path) -> None:
    logs = filled(40)
    index = Index(tmp_path / "index.sqlite", lambda: logs)
    await index.follow()
    logs[0] = Log(logs[0].origin)
    logs[0].add(some(3), 5)
    await index.forget(logs[0].origin)
    await index.follow()
    assert await every(index, origin=logs[0].origin) == [(logs[0].origin, 0)]
    assert len(await every(index, origin=logs[1].origin)) == 20
    assert await every(index, policy="p2", origin=logs[0].origin) == []
    index.close()
