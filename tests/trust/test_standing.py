"""Standing: the properties of the score, whatever happens to an agent, and the figures that the rules must give."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from trust.ledger import entries
from trust.ledger.entries import Line, Stamp
from trust.standing import decay, fold, rules, score
from trust.standing.decay import DAY_S, FIRST_DAY
from trust.standing.score import Book, Standing

BEGIN = FIRST_DAY * DAY_S
SEVERITY = st.sampled_from(list(rules.SEVERITIES))
RISK = st.integers(0, 3)
DAY = st.integers(0, 900)


def at(day: float) -> int:
    return BEGIN + int(day * DAY_S)


def fresh(agent: str = "a", principal: str = "ada", day: float = 0) -> Book:
    return rules.opened(agent, principal, [], at(day))


def points(book: Book, day: float) -> int:
    return score.standing(book, at(day)).score


class Event:
    """One thing that happens, at a day."""

    strategy = st.one_of(
        st.tuples(st.just("outcome"), RISK),
        st.tuples(st.just("refusal"), SEVERITY, st.sampled_from("pq"), st.integers(1, 3000)),
    )

    @staticmethod
    def happen(book: Book, event: tuple[Any, ...], day: float) -> Book:
        if event[0] == "outcome":
            return rules.after_outcome(book, event[1], at(day))
        return rules.after_refusals(book, event[1], event[2], "server", event[3], at(day))


LIFE = st.lists(st.tuples(Event.strategy, st.integers(0, 40)), max_size=25)
"""Events with the days that pass before each."""


def lived(life: list[tuple[tuple[Any, ...], int]], book: Book | None = None) -> tuple[Book, int]:
    book, day = book or fresh(), 0
    for event, passing in life:
        day += passing
        book = Event.happen(book, event, day + 0.5)
    return book, day


# Decay


@pytest.mark.parametrize("half_life", [30, 90])
def test_weights_double_with_each_half_life_and_lie_within_one_of_the_real_power(half_life: int) -> None:
    for day in range(3 * half_life):
        weight = decay.weight(half_life, day)
        assert decay.weight(half_life, day + half_life) == 2 * weight
    assert decay.table(half_life)[0] == 1 << 32
    for place, known in enumerate(decay.table(half_life)):
        power = 1 << (32 * half_life + place)
        assert known**half_life <= power < (known + 1) ** half_life


@given(st.lists(st.tuples(st.integers(0, 5000), DAY), max_size=12), st.randoms())
def test_the_order_in_which_evidence_is_added_changes_nothing(parts: list[tuple[int, int]], chance: Any) -> None:
    def total(given_parts: list[tuple[int, int]]) -> str:
        made = decay.NOTHING
        for milli, day in given_parts:
            made = decay.add(made, milli, 30, day)
        return made

    shuffled = list(parts)
    chance.shuffle(shuffled)
    assert total(parts) == total(shuffled)


@given(st.integers(1, 10**6), DAY, st.integers(0, 10))
def test_evidence_halves_with_each_half_life(milli: int, day: int, times: int) -> None:
    total = decay.add(decay.NOTHING, milli, 30, day)
    assert decay.left(total, 30, day + 30 * times) == milli >> times


# Properties of the score


@given(LIFE, DAY)
def test_a_score_is_between_0_and_1000_and_in_a_tier(life: list[Any], later: int) -> None:
    book, day = lived(life)
    held = score.standing(book, at(day + later))
    assert 0 <= held.score <= 1000
    assert held.score >= score.TIERS[held.level].threshold, "a tier that its score does not reach"


@given(LIFE, RISK, st.integers(0, 400))
def test_a_good_outcome_never_lowers_a_score_now_or_ever(life: list[Any], risk: int, later: int) -> None:
    book, day = lived(life)
    after = rules.after_outcome(book, risk, at(day + 0.6))
    assert points(after, day + 0.6 + later) >= points(book, day + 0.6 + later)


@given(LIFE, SEVERITY, st.integers(1, 100), st.integers(0, 400))
def test_a_refusal_never_raises_a_score_now_or_ever(life: list[Any], severity: Any, count: int, later: int) -> None:
    book, day = lived(life)
    after = rules.after_refusals(book, severity, "p", "server", count, at(day + 0.6))
    assert points(after, day + 0.6 + later) <= points(book, day + 0.6 + later)


@given(LIFE, st.lists(DAY, max_size=5))
def test_how_often_one_reads_changes_nothing(life: list[Any], readings: list[int]) -> None:
    unread, _ = lived(life)
    book, day = fresh(), 0
    for event, passing in life:
        for reading in readings:
            score.standing(book, at(day + reading))
        day += passing
        book = Event.happen(book, event, day + 0.5)
    assert book == unread


@given(LIFE, st.integers(0, 300), st.integers(0, 300))
def test_a_tier_is_the_same_whether_one_looked_in_between_or_not(life: list[Any], first: int, second: int) -> None:
    book, day = lived(life)
    looked = score.climbed(book, at(day + 1 + first))
    assert (
        score.climbed(looked, at(day + 1 + first + second)).level
        == score.climbed(book, at(day + 1 + first + second)).level
    )


@given(st.lists(st.tuples(RISK, st.integers(0, 600)), min_size=1, max_size=60))
def test_nobody_earns_more_in_a_day_than_the_caps(outcomes: list[tuple[int, int]]) -> None:
    book = fresh()
    for risk, times in outcomes:
        for _ in range(min(times, 20)):
            book = rules.after_outcome(book, risk, at(0.5))
    assert score.earned(book, 0) <= rules.DAY_MILLI
    for risk, got in enumerate(book.today):
        assert got <= rules.OUTCOME_DAY_MILLI[risk]


def farmed(classes: tuple[int, ...], days: int, a_day: int = 12) -> Book:
    book = fresh()
    for day in range(days):
        for risk in classes:
            for _ in range(a_day):
                book = rules.after_outcome(book, risk, at(day + 0.5))
    return book


def test_farming_reads_never_passes_460_and_farming_what_is_low_never_passes_640() -> None:
    assert points(farmed((0,), 400), 399.9) == 459
    assert points(farmed((1,), 400), 399.9) == 612
    assert points(farmed((0, 1), 400), 399.9) == 637


def test_a_busy_honest_agent_becomes_trusted_within_a_month() -> None:
    days = {days: points(farmed((0, 1, 2, 3), days), days - 0.1) for days in (7, 14, 30, 62)}
    assert days == {7: 637, 14: 728, 30: 811, 62: 861}


def test_a_critical_event_leaves_299_until_a_person_clears_it() -> None:
    book = farmed((0, 1, 2, 3), 62)
    fallen = rules.after_refusals(book, "critical", "p", "server", 1, at(62))
    assert score.standing(fallen, at(62)) == Standing(299, 0)
    assert points(fallen, 62 + 700) == 299
    cleared = rules.cleared(fallen, at(63))
    assert points(cleared, 63) > 299


def test_ten_thousand_equal_denials_in_a_day_cost_21_points() -> None:
    book = rules.after_refusals(fresh(), "benign", "p", "server", 10_000, at(0.5))
    assert points(book, 0.5) == 379
    one_by_one = fresh()
    for _ in range(10_000):
        one_by_one = rules.after_refusals(one_by_one, "benign", "p", "server", 1, at(0.5))
    assert one_by_one.negative == book.negative


@given(st.lists(st.tuples(st.sampled_from("pqrs"), SEVERITY, st.integers(1, 50)), max_size=20))
def test_many_at_once_cost_what_they_cost_one_by_one(refusals: list[tuple[str, Any, int]]) -> None:
    together, apart = fresh(), fresh()
    for policy, severity, count in refusals:
        together = rules.after_refusals(together, severity, policy, "s", count, at(0.5))
        for _ in range(count):
            apart = rules.after_refusals(apart, severity, policy, "s", 1, at(0.5))
    assert together.negative == apart.negative


def test_pairs_of_policy_and_resource_are_bounded_and_the_rest_count_as_one() -> None:
    book = fresh()
    for number in range(rules.MAX_REPEATS + 500):
        book = rules.after_refusals(book, "benign", f"p{number}", "s", 1, at(0.5))
    assert len(book.repeats) == rules.MAX_REPEATS + 1


# Tiers


def test_going_up_needs_the_margin_for_a_day_and_going_down_is_immediate() -> None:
    book = farmed((0, 1, 2, 3), 3)
    assert points(book, 2.6) >= 500 + score.CLIMB_MARGIN
    assert score.standing(book, at(2.6)).tier == "probation"
    assert score.standing(book, book.rising_s + DAY_S - 1).tier == "probation"
    assert score.standing(book, book.rising_s + DAY_S).tier == "standard"
    risen = score.climbed(book, book.rising_s + DAY_S)
    fallen = rules.after_refusals(risen, "severe", "p", "s", 1, risen.at_s)
    assert score.standing(fallen, risen.at_s).tier in ("probation", "untrusted")


def test_within_the_margin_nobody_climbs() -> None:
    book = farmed((0, 1), 60)
    held = points(book, 60)
    assert 500 < held < 700
    without = Book("a", "ada", earned=decay.add("0", 4_200, 30, 0), at_s=at(0))
    assert score.score(without, 0) == 504
    assert score.standing(without, at(0.9)).tier == "probation"


def test_a_tier_falls_by_itself_when_evidence_grows_old() -> None:
    book = farmed((0, 1, 2, 3), 10)
    assert score.standing(book, at(11)).tier == "standard"
    assert score.standing(book, at(200)).tier == "probation"


@given(LIFE)
def test_nobody_is_verified_without_a_grant(life: list[Any]) -> None:
    book, day = lived(life, farmed((3,), 200))
    assert points(book, day) < 900


def test_with_a_grant_one_can_be() -> None:
    book = rules.granted(farmed((3,), 400), True, at(400))
    assert score.score(book, 400) > 800
    strong = Book("a", "ada", earned=decay.add("0", 500_000, 30, 0), granted=True, at_s=at(0))
    assert score.score(strong, 0) > 900
    assert points(rules.granted(strong, False, at(0)), 0) == 899


# Beginning anew


@given(LIFE)
def test_whitewashing_never_pays(life: list[Any]) -> None:
    """Another agent of the same principal never starts better than the one that it replaces stands."""
    old, day = lived(life)
    new = rules.opened("b", "ada", [old], at(day + 0.6))
    assert points(new, day + 0.6) <= points(old, day + 0.6)


def msg(book: Book, **changed: Any) -> Book:
    return msgspec.structs.replace(book, **changed)


@given(st.lists(LIFE, min_size=1, max_size=5))
def test_fresh_agents_never_outweigh_the_one_that_they_replace(lives: list[Any]) -> None:
    """However many are registered anew, none of them stands better than a newcomer, and none shakes off the worst."""
    books = [lived(life, fresh(f"a{n}"))[0] for n, life in enumerate(lives)]
    now = max(book.at_s for book in books)
    new = [rules.opened(f"n{n}", "ada", books, now) for n in range(10)]
    assert len({score.score(book, decay.day_of(now)) for book in new}) == 1
    worst = max(books, key=lambda book: int(book.negative, 16))
    assert int(new[0].negative, 16) >= int(worst.negative, 16)


@given(LIFE)
def test_another_principals_agents_are_not_burdened(life: list[Any]) -> None:
    old, day = lived(life)
    assert rules.opened("b", "bob", [old], at(day + 0.6)).negative == decay.NOTHING


def test_a_sponsor_bears_a_quarter_of_many() -> None:
    books = [rules.after_refusals(fresh(f"a{n}"), "moderate", "p", "s", 1, at(0)) for n in range(8)]
    new = rules.opened("b", "ada", books, at(0))
    assert decay.left(new.negative, 90, 0) == 8_000


@given(LIFE)
def test_a_key_brings_along_what_counts_against_it_and_nothing_that_was_earned(life: list[Any]) -> None:
    old, day = lived(life)
    now = at(day + 0.6)
    book = rules.inherited(fresh("b", "bob", day), old, now)
    assert score.score(book, decay.day_of(now)) <= min(score.NEWCOMER, points(old, day + 0.6))


# Vouching


def veteran(name: str = "v", principal: str = "vera") -> Book:
    return msg(farmed((0, 1, 2, 3), 30), agent=name, principal=principal)


def vouched(giver: Book, getter: Book, milli: int, now: int) -> tuple[Book, Book]:
    stake = rules.staked(giver, getter, milli, now)
    return rules.with_given(giver, stake, now), rules.with_received(getter, stake, now)


def test_vouching_moves_half_of_the_stake_and_at_most_100_points_for_30_days() -> None:
    giver, getter = vouched(veteran(), fresh("n", "nora", 30), 10_000, at(30))
    assert points(getter, 30) == 1000 * (5_000 + 8_000) // (5_000 + 20_000) - 20
    assert points(getter, 30) == 500, "never more than 100 points"
    assert points(giver, 30) < points(veteran(), 30)
    assert points(getter, 60) == 400
    assert points(giver, 60) == points(veteran(), 60), "the stake comes back"


@pytest.mark.parametrize(
    ("giver", "getter", "milli", "why"),
    [
        (veteran(principal="nora"), fresh("n", "nora", 30), 1000, "same principal"),
        (fresh("x", "xena", 30), fresh("n", "nora", 30), 1000, "vouching needs 700"),
        (veteran(), fresh("n", "nora", 30), 0, "from 1 to"),
        (veteran(), fresh("n", "nora", 30), 10**9, "from 1 to"),
    ],
)
def test_vouching_is_refused(giver: Book, getter: Book, milli: int, why: str) -> None:
    with pytest.raises(rules.Refused, match=why):
        rules.staked(giver, getter, milli, at(30))


def test_one_hop_only() -> None:
    """What one was lent is not earned: it can neither be staked nor make a voucher."""
    giver, getter = vouched(veteran(), farmed_as("n", "nora", 12), 20_000, at(30))
    assert giver.given
    assert score.earned(getter, 30) == score.earned(farmed_as("n", "nora", 12), 30)
    with pytest.raises(rules.Refused):
        rules.staked(getter, fresh("m", "mia", 30), score.earned(getter, 30) + 1, at(30))


def farmed_as(name: str, principal: str, days: int) -> Book:
    return msg(farmed((0, 1, 2, 3), days), agent=name, principal=principal)


def test_something_severe_burns_the_stake() -> None:
    giver, getter = vouched(veteran(), fresh("n", "nora", 30), 10_000, at(30))
    burned = rules.burned(giver, "n", at(31))
    assert points(burned, 61) < points(veteran(), 61)
    assert points(rules.unvouched(getter, at(31)), 31) == 400


@given(st.permutations(range(4)), st.integers(1, 5000))
def test_a_ring_without_earned_evidence_gains_exactly_nothing(order: list[int], milli: int) -> None:
    ring = [fresh(f"r{n}", f"p{n}") for n in range(4)]
    for here, there in zip(order, [*order[1:], order[0]], strict=True):
        with pytest.raises(rules.Refused):
            rules.staked(ring[here], ring[there], milli, at(0))
    assert [points(book, 0) for book in ring] == [400] * 4


@given(st.integers(1, 40_000), st.integers(1, 40_000))
def test_two_who_vouch_for_each_other_do_not_gain_together(first: int, second: int) -> None:
    one, other = veteran("v", "vera"), veteran("w", "walt")
    before = score.earned(one, 30) + score.earned(other, 30)
    one, other = vouched(one, other, first, at(30))
    with contextlib.suppress(rules.Refused):
        other, one = vouched(other, one, second, at(30))
    after = sum(score.earned(book, 30) + score.vouched(book, 30) for book in (one, other))
    assert after <= before


def test_the_standing_of_a_chain_is_its_minimum_and_of_nobody_the_lowest() -> None:
    assert score.lowest([Standing(700, 3), Standing(450, 1), Standing(900, 4)]) == Standing(450, 1)
    assert score.lowest([]) == Standing(0, 0)


# The fold


class Log:
    """A gateway's ledger in memory, written as the gateway writes it."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.replayed = fold.Replayed()
        self.live = _Shelf()

    def write(self, at_s: int, entry: Any) -> int:
        index = len(self.lines)
        self.lines.append(Line(Stamp("g", index, "b", at_s * 1_000_000, index), entry))
        return index

    def observe(self, at_s: int, entry: Any) -> None:
        index = self.write(at_s, entry)
        for due in fold.follows(self.live, index, at_s, entry):
            self.write(at_s + 1, due)
            fold.apply(self.live, due)


class _Shelf:
    def __init__(self) -> None:
        self.kept: dict[str, Book] = {}

    def book(self, agent: str) -> Book | None:
        return self.kept.get(agent)

    def books(self) -> list[Book]:
        return [self.kept[name] for name in sorted(self.kept)]

    def of(self, principal: str) -> list[Book]:
        return [book for book in self.kept.values() if book.principal == principal]

    def keep(self, book: Book) -> None:
        self.kept[book.agent] = book


def outcome(agent: str, risk: int, status: str = "done") -> entries.Outcome:
    return entries.Outcome("a", "d", "r", status, step=8, agent=agent, risk=risk)  # type: ignore[arg-type]


def reported(agent: str, severity: str, count: int, policy: str = "p") -> entries.Reported:
    refusals = [entries.Refusals("policy_forbids", "server", count, severity, [policy])]
    return entries.Reported(agent, "o", 0, 0, refusals)


class Mesh(RuleBasedStateMachine):
    """Whatever happens, in whatever order: a replay of the ledger gives the same books, and every change cites."""

    def __init__(self) -> None:
        super().__init__()
        self.log, self.now = Log(), at(1)
        for name, owner in (("a", "ada"), ("b", "bob"), ("c", "ada")):
            self.log.write(self.now, entries.Agent("registered", name, "op", owner=owner))
            fold.registered(self.log.live, 0, name, owner, self.now)

    agents = st.sampled_from("abc")

    @rule(agent=agents, risk=RISK, times=st.integers(1, 8), passing=st.integers(0, 3 * DAY_S))
    def does_well(self, agent: str, risk: int, times: int, passing: int) -> None:
        self.now += passing
        for _ in range(times):
            self.log.observe(self.now, outcome(agent, risk))

    @rule(agent=agents, risk=RISK, status=st.sampled_from(["failed", "unknown", "tool_error", "refused"]))
    def does_not_end_well(self, agent: str, risk: int, status: str) -> None:
        before = self.log.live.book(agent)
        self.log.observe(self.now, outcome(agent, risk, status))
        assert self.log.live.book(agent) == before, "only confirmed outcomes are evidence"

    @rule(agent=agents, severity=SEVERITY, count=st.integers(1, 40), passing=st.integers(0, DAY_S))
    def is_refused(self, agent: str, severity: str, count: int, passing: int) -> None:
        self.now += passing
        self.log.observe(self.now, reported(agent, severity, count))

    @rule(giver=agents, getter=agents, milli=st.integers(1, 3000))
    def vouches(self, giver: str, getter: str, milli: int) -> None:
        one, other = self.log.live.kept[giver], self.log.live.kept[getter]
        try:
            rules.staked(one, other, milli, self.now)
        except rules.Refused:
            return
        self._by_a_person("vouched", other, other=giver, milli=milli)

    @rule(agent=agents)
    def is_cleared(self, agent: str) -> None:
        if self.log.live.kept[agent].critical:
            self._by_a_person("cleared", self.log.live.kept[agent])

    def _by_a_person(self, how: str, book: Book, **details: Any) -> None:
        before = score.score(book, decay.day_of(self.now))
        entry = entries.Standing(how, book.agent, -1, self.now, before, 0, **details)  # type: ignore[arg-type]
        self.log.write(self.now, entry)
        fold.apply(self.log.live, entry)

    @invariant()
    def replay_gives_the_same(self) -> None:
        replayed = fold.Replayed()
        for index, line in enumerate(self.log.lines):
            replayed.read(index, line)
        assert replayed.books() == self.log.live.books()
        assert not replayed.wrong
        assert not replayed.missing

    @invariant()
    def each_change_cites_an_entry_that_stands_before_it(self) -> None:
        for index, line in enumerate(self.log.lines):
            if isinstance(line.entry, entries.Standing) and line.entry.cause >= 0:
                assert line.entry.cause < index
                assert isinstance(self.log.lines[line.entry.cause].entry, entries.Outcome | entries.Reported)


TestMesh = pytest.mark.slow(Mesh.TestCase)


def test_a_ledger_whose_standing_was_edited_is_noticed() -> None:
    log = Log()
    log.write(at(0), entries.Agent("registered", "a", "op", owner="ada"))
    fold.registered(log.live, 0, "a", "ada", at(0))
    log.observe(at(0.5), outcome("a", 3))
    entry = log.lines[-1].entry
    assert isinstance(entry, entries.Standing)
    for forged in (
        msg(entry, risk=2),
        msg(entry, after=entry.after + 1),
        msg(entry, agent="b"),
        msg(entry, cause=0),
    ):
        replayed = fold.Replayed()
        for index, line in enumerate([*log.lines[:-1], msg(log.lines[-1], entry=forged)]):
            replayed.read(index, line)
        assert replayed.wrong
    replayed = fold.Replayed()
    for index, line in enumerate(log.lines[:-1]):
        replayed.read(index, line)
    assert len(replayed.missing) == 1
