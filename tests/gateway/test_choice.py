"""The choice of a node: constraints are never relaxed, nothing falls through, and every trace replays."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.router import trace
from gateway.router.choice import ASAP, DRAWN, LOOK_AT_ALL, Objective, choose, drawn, draws
from gateway.router.cost import FIRST_PRIOR_US, Peak, Prior, Seen, cost, expected_us, learned, moved, predicted_us
from gateway.router.eligibility import Candidate, Eligible, Wanted, eligible
from gateway.router.homes import Belongs, Homes, rendezvous
from gateway.router.measured import IN_A_ROW, Measured, spared
from gateway.router.placement import Work
from gateway.state import NodeRecord
from trust.wire import Place

WORK = Work("s", "t", requires=frozenset({"gpu"}))
STATES = ["ready", "draining", "quarantined", "pending"]
NAMES = st.sets(st.sampled_from("abcdef"))


def candidate(
    name: str,
    state: str = "ready",
    alive: bool = True,
    admitted: bool = True,
    holds: tuple[str, ...] = ("gpu",),
    servers: tuple[str, ...] = ("s",),
    kind: str = "cloud",
) -> Candidate:
    return Candidate(NodeRecord(name, "", kind=kind, state=state, servers=servers), alive, admitted, frozenset(holds))  # type: ignore[arg-type]


candidates = st.lists(
    st.builds(
        candidate,
        st.sampled_from("abcdef"),
        state=st.sampled_from(STATES),
        alive=st.booleans(),
        admitted=st.booleans(),
        holds=st.sampled_from([(), ("gpu",), ("gpu", "region=eu"), ("gpu@signed",)]),
        servers=st.sampled_from([("s",), ("t",), ()]),
        kind=st.sampled_from(["cloud", "edge"]),
    ),
    max_size=8,
    unique_by=lambda one: one.node.name,
)
seen = st.builds(
    Seen,
    st.just(""),
    slots=st.integers(1, 64),
    weight_milli=st.integers(1, 100_000),
    outstanding=st.integers(0, 200),
    oldest_us=st.integers(0, 10**9),
    peak_us=st.integers(0, 10**9),
    age_us=st.integers(0, 10**12),
    prior_us=st.integers(1, 10**9),
)
seeds = st.integers(0, 2**64 - 1)


@given(candidates, st.none() | st.sampled_from("abcdef"), st.none() | st.sampled_from(["cloud", "edge"]), NAMES, NAMES)
def test_who_is_eligible_fulfils_every_constraint_and_everybody_else_is_counted(
    found: list[Candidate], pin: str | None, kind: str | None, as_admitted: set[str], permitted: set[str]
) -> None:
    wanted = Wanted(WORK, Place(pin=pin, kind=kind))  # type: ignore[arg-type]
    told = eligible(found, wanted, lambda c: c.node.name in as_admitted, lambda c: c.node.name in permitted)
    must = {
        c.node.name for c in found
        if c.node.state == "ready" and c.alive and c.admitted and "s" in c.node.servers and "gpu" in c.holds
        and c.node.name in permitted & as_admitted and pin in (None, c.node.name) and kind in (None, c.node.kind)
    }  # fmt: skip
    assert set(told.nodes) == must
    assert list(told.nodes) == sorted(told.nodes)
    assert sum(told.eliminated.values()) == len(found) - len(must)


@given(candidates, candidates, NAMES, NAMES)
def test_adding_nodes_never_makes_another_eligible(
    some: list[Candidate], more: list[Candidate], as_admitted: set[str], permitted: set[str]
) -> None:
    """Nor does losing some: each node is judged alone."""

    def who(found: list[Candidate]) -> set[str]:
        return set(
            eligible(
                found, Wanted(WORK), lambda c: c.node.name in as_admitted, lambda c: c.node.name in permitted
            ).nodes
        )

    names = {c.node.name for c in some}
    others = [c for c in more if c.node.name not in names]
    assert who([*some, *others]) & names == who(some)


@given(
    st.dictionaries(st.integers(0, 10**6).map(str), seen, min_size=1, max_size=80),
    seeds,
    st.booleans(),
    st.integers(0, 10**6),
)
def test_whatever_is_chosen_is_one_of_the_eligible_and_its_trace_replays(
    known: dict[str, Seen], seed: int, strict: bool, slo_ms: int
) -> None:
    names = sorted(known)
    objective = Objective(slo_ms * 1000, strict) if slo_ms else ASAP
    wanted = Wanted(WORK, Place(slo_ms=slo_ms or None, strict=strict and bool(slo_ms)))

    def see(name: str) -> Seen:
        return msgspec.structs.replace(known[name], node=name)

    choice = choose(names, see, seed, objective)
    if choice.chosen < 0:
        assert strict
        assert all(predicted_us(one) > slo_ms * 1000 for one in known.values()), "somebody would have met it"
        return
    assert choice.node in known
    assert not (strict and slo_ms) or predicted_us(known[choice.node]) <= slo_ms * 1000
    told = trace.told(wanted, Eligible(tuple(names), {"lost": 1}), names, choice, frozenset({"gpu"}), "", False, 1)
    again = trace.read(json.loads(msgspec.json.encode(told)))
    assert again == told
    assert trace.replay(again) == []
    assert told.node_id == choice.node
    assert 0 <= told.score <= 1


@given(st.lists(seen, min_size=2, max_size=40), seeds, st.data())
def test_a_trace_that_was_changed_does_not_replay(known: list[Seen], seed: int, data: st.DataObject) -> None:
    names = [f"n{at:02}" for at in range(len(known))]
    choice = choose(names, lambda n: msgspec.structs.replace(known[int(n[1:])], node=n), seed)
    told = trace.told(Wanted(WORK), Eligible(tuple(names), {}), names, choice, frozenset(), "", False, 1)
    other = data.draw(st.sampled_from([one.node for one in told.looked if one.node != told.node_id]))
    assert trace.replay(msgspec.structs.replace(told, node_id=other))
    at = data.draw(st.integers(0, len(told.looked) - 1))
    dearer = msgspec.structs.replace(
        told.looked[at], outstanding=told.looked[at].outstanding + 50, prior_us=told.looked[at].prior_us + 1000
    )
    changed = [*told.looked[:at], dearer, *told.looked[at + 1 :]]
    assert trace.replay(msgspec.structs.replace(told, looked=changed))


def test_a_trace_with_another_seed_does_not_replay() -> None:
    names = [f"n{at:03}" for at in range(200)]
    choice = choose(names, lambda n: Seen(n, 4, 1000, int(n[1:]), 0, 1, 1, 1), 7)
    told = trace.told(Wanted(WORK), Eligible(tuple(names), {}), names, choice, frozenset(), "", False, 1)
    assert trace.replay(told) == []
    assert "the seed draws" in trace.replay(msgspec.structs.replace(told, seed=f"{8:016x}"))[0]


@given(st.integers(1, 5000), seeds)
def test_all_of_a_few_and_five_different_of_many_are_looked_at(among: int, seed: int) -> None:
    places = drawn(among, draws(seed)[2:7])
    assert len(places) == len(set(places)) == (among if among <= LOOK_AT_ALL else DRAWN)
    assert all(0 <= at < among for at in places)


def test_each_of_many_is_drawn_equally_often() -> None:
    counts = [0] * 50
    for seed in range(20_000):
        for at in drawn(50, draws(seed)[2:7]):
            counts[at] += 1
    assert max(counts) < 1.15 * min(counts)


def of(node: str, **known: int) -> Seen:
    return Seen(
        **(
            {
                "node": node,
                "slots": 4,
                "weight_milli": 1000,
                "outstanding": 0,
                "oldest_us": 0,
                "peak_us": 100,
                "age_us": 0,
                "prior_us": 100,
            }
            | known
        )
    )  # type: ignore[arg-type]


def chosen(*known: Seen, seed: int = 1, **more: object) -> str:
    by_name = {one.node: one for one in known}
    return choose(sorted(by_name), by_name.__getitem__, seed, **more).node  # type: ignore[arg-type]


def test_the_least_busy_per_slot_and_weight_wins() -> None:
    assert chosen(of("a", outstanding=3), of("b", outstanding=1)) == "b"
    assert chosen(of("a", outstanding=3, slots=16), of("b", outstanding=1)) == "a"
    assert chosen(of("a", outstanding=3, weight_milli=4000), of("b", outstanding=1)) == "a"


def test_the_faster_wins_and_one_that_hangs_is_as_slow_as_it_hangs() -> None:
    assert chosen(of("a", peak_us=500), of("b")) == "b"
    assert chosen(of("a", outstanding=1), of("b", outstanding=1, oldest_us=90_000)) == "a"


def test_what_was_measured_long_ago_is_forgotten_towards_the_class() -> None:
    slow = of("a", peak_us=10_000, age_us=0)
    assert expected_us(slow) == 10_000
    assert 1000 < expected_us(msgspec.structs.replace(slow, age_us=30_000_000)) < 4000
    assert round(expected_us(msgspec.structs.replace(slow, age_us=600_000_000))) == 100


def test_equals_are_chosen_by_the_seed() -> None:
    assert {chosen(of("a"), of("b"), seed=seed) for seed in range(20)} == {"a", "b"}


def test_a_strict_objective_chooses_nobody_rather_than_somebody_too_slow() -> None:
    slow = of("a", peak_us=90_000)
    assert choose(["a"], lambda _: slow, 1, Objective(1000, strict=True)).chosen == -1
    assert choose(["a"], lambda _: slow, 1, Objective(1000)).node == "a"
    many = [f"n{at:03}" for at in range(500)]
    fast = choose(many, lambda n: of(n, peak_us=100 if n == "n321" else 90_000), 1, Objective(1000, strict=True))
    assert fast.node == "n321", "all are looked at before anybody is told no"


def test_of_those_who_violate_a_soft_objective_one_in_a_hundred_is_tried() -> None:
    known = (of("fast", outstanding=3), of("slow", peak_us=90_000))
    tried = [chosen(*known, seed=seed, objective=Objective(1000)) for seed in range(3000)]
    assert 10 <= tried.count("slow") <= 60


@given(seen, seen)
def test_a_cost_rises_with_what_waits_and_how_long_it_takes(one: Seen, other: Seen) -> None:
    assume(one.outstanding > other.outstanding)
    same = msgspec.structs.replace(one, outstanding=other.outstanding)
    assert cost(one) >= cost(same)
    assert cost(msgspec.structs.replace(one, oldest_us=max(one.oldest_us, other.oldest_us))) >= cost(one)


def test_a_peak_jumps_up_comes_down_slowly_and_a_failure_counts_as_slow() -> None:
    prior = Prior(1000, 256)
    first = moved(None, prior, 50_000, 0)
    assert first == Peak(50_000, 0)
    second = moved(first, prior, 1000, 100_000)
    assert 40_000 < second.us < 50_000
    assert moved(None, prior, 10, 0, failed=True).us == 10_000
    assert moved(second, prior, 10, 100_000, failed=True).us > 400_000


def test_the_prior_of_a_class_is_the_mean_of_its_answers() -> None:
    prior = Prior()
    assert prior.us == FIRST_PRIOR_US
    for _ in range(50):
        prior = learned(prior, 2000)
    assert prior.us == 2000


def test_a_node_nobody_tried_is_expected_to_be_as_fast_as_its_class() -> None:
    measured = Measured()
    for name in ("a", "b"):
        measured.know(name, "cloud", 4, 1.0)
    measured.started("a", "1", 0)
    measured.succeeded("a", "1", "s/t", 7000)
    assert expected_us(measured.see("b", "s/t", 8000)) == 7000
    assert expected_us(measured.see("b", "s/other", 8000)) == FIRST_PRIOR_US


# Ejection


def failing(measured: Measured, name: str, times: int, now_us: int = 0) -> None:
    for at in range(times):
        measured.started(name, f"{name}{at}", now_us)
        measured.failed(name, f"{name}{at}", "s/t", now_us)


def test_three_failures_in_a_row_eject_for_ten_seconds_then_for_twenty() -> None:
    measured = Measured()
    measured.know("a", "cloud", 4, 1.0)
    failing(measured, "a", IN_A_ROW - 1)
    measured.started("a", "ok", 0)
    measured.succeeded("a", "ok", "s/t", 0)
    failing(measured, "a", IN_A_ROW - 1)
    assert not measured.ejected(0), "not in a row"
    failing(measured, "a", 1)
    assert set(measured.ejected(9_999_999)) == {"a"}
    assert not measured.ejected(10_000_000)
    failing(measured, "a", 1, 10_000_000)
    assert set(measured.ejected(29_999_999)) == {"a"}
    assert not measured.ejected(30_000_000)
    measured.started("a", "ok", 30_000_000)
    measured.succeeded("a", "ok", "s/t", 30_000_000)
    failing(measured, "a", IN_A_ROW, 31_000_000)
    assert not measured.ejected(41_000_000), "a success forgives"


@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 12)), max_size=30),
    st.sets(st.sampled_from("abcdefgh"), min_size=1),
)
def test_at_most_half_of_the_eligible_are_passed_over_and_the_worst_first(
    failures: list[tuple[str, int]], names: set[str]
) -> None:
    measured = Measured()
    for name in "abcdefgh":
        measured.know(name, "cloud", 4, 1.0)
    for name, times in failures:
        failing(measured, name, times)
    ejected = measured.ejected(1)
    left_out = spared(sorted(names), ejected)
    assert left_out <= names & set(ejected)
    assert len(left_out) == min(len(names) // 2, len(names & set(ejected)))
    kept = (names & set(ejected)) - left_out
    assert (
        not kept
        or not left_out
        or max(ejected[n].ejections for n in kept) <= min(ejected[n].ejections for n in left_out)
    )


# Homes


def test_what_belongs_together_stays_together_and_leaves_a_node_that_is_not_eligible() -> None:
    homes, belongs = Homes(), Belongs("browser", "demo", "run r")
    nodes = [f"n{at}" for at in range(10)]
    first, there = homes.home(belongs, nodes)
    assert not there
    assert first == rendezvous(belongs, nodes)
    homes.settle(belongs, "n3")
    assert homes.home(belongs, nodes) == ("n3", True)
    without = [node for node in nodes if node != "n3"]
    assert homes.home(belongs, without) == (rendezvous(belongs, without), False)


@given(st.sets(st.text(min_size=1, max_size=8), min_size=2, max_size=30), st.text(max_size=8), st.data())
def test_when_a_node_goes_only_what_was_on_it_moves(nodes: set[str], to: str, data: st.DataObject) -> None:
    belongs = Belongs("s", "a", to)
    gone = data.draw(st.sampled_from(sorted(nodes)))
    before = rendezvous(belongs, sorted(nodes))
    assert gone == before or rendezvous(belongs, sorted(nodes - {gone})) == before


def test_a_home_twice_as_dear_is_not_begun_but_what_is_there_stays() -> None:
    idle, busy = of("a"), of("b", outstanding=8)
    assert chosen(idle, busy, home="b") == "a"
    assert chosen(idle, busy, home="b", stays=True) == "b"
    assert chosen(idle, of("b", outstanding=1), home="b") == "b"


@pytest.mark.parametrize("gone", [{}, {"looked": []}, {"node_id": 7}, {"seed": "x" * 16, "more": 1}])
def test_what_is_no_trace_is_said_to_be_none(gone: dict[str, object]) -> None:
    from trust.reasons import Unverifiable

    with pytest.raises(Unverifiable, match="not a routing trace"):
        trace.read({"tool_name": "s/t", **gone})
