"""The rules of standing: what an event is worth, and the book after it. Plain, pure, and in whole numbers.

Good evidence comes from confirmed outcomes only and is capped by the day; bad evidence comes from refusals of what the
agent itself asked, and equal ones weigh less and less. Every function takes the moment of the event and returns the
book after it; an event that is worth nothing returns the book as it was.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from trust.reasons import Reason
from trust.standing import decay
from trust.standing.decay import day_of
from trust.standing.score import (
    EARNED_HALF_LIFE,
    NEGATIVE_HALF_LIFE,
    Book,
    Stake,
    active,
    climbed,
    earned,
    level_of,
    score,
)

OUTCOME_MILLI: Final = (10, 50, 300, 1_000)
"""What a confirmed outcome earns, by the risk class of its tool."""
OUTCOME_DAY_MILLI: Final = (50, 250, 1_000, 2_000)
DAY_MILLI: Final = 2_000
"""Of all classes together."""

Severity = Literal["benign", "minor", "moderate", "severe", "critical"]
SEVERITIES: Final[dict[Severity, int]] = {
    "benign": 200,
    "minor": 500,
    "moderate": 4_000,
    "severe": 20_000,
    "critical": 60_000,
}
"""What a refusal costs, mildest first."""
REPEATED: Final = frozenset({"benign", "minor", "moderate"})
"""Divided by how often the same policy and resource refused that day."""
MAX_REPEATS: Final = 1_000
"""Pairs counted apart in a day. Further ones count as one: who finds so many is looking for them."""
THE_REST: Final = "*"

COUNTED: Final[dict[str, str]] = {
    Reason.POLICY_FORBIDS: "",
    Reason.NO_POLICY_PERMITS: "benign",
    Reason.ARGUMENTS_INVALID: "benign",
    Reason.UNKNOWN_SERVER: "benign",
    Reason.UNKNOWN_TOOL: "benign",
    Reason.APPROVAL_DENIED: "benign",
    Reason.AUTHORITY_EXCEEDED: "minor",
    Reason.DELEGATION_INVALID: "minor",
    Reason.APPROVAL_MISMATCH: "minor",
    Reason.NOT_YOURS: "minor",
}
"""Refusals that say something of whoever asked, and how much; for a ``forbid`` its ``@severity`` says it.
What is the fault of others (an outage, a bad policy, a full queue) is not here."""

VOUCHER_SCORE: Final = 700
VOUCH_DAYS: Final = 30
SPONSOR_SHARE: Final = 4
"""A principal bears a quarter of its agents' negative evidence."""


def sponsor(owner: str, namespace: str) -> str:
    """The principal that answers for an agent: its *owner*, or its *namespace*, in which whoever registers agents says
    who owns them."""
    return f"{namespace}/everybody" if namespace else owner


def opened(agent: str, principal: str, siblings: list[Book], now_s: int) -> Book:
    """The book of a new agent. What its principal's other agents did counts at the start: a quarter of everything,
    or all of the worst one's if that is more, so that nobody gains by beginning anew."""
    day = day_of(now_s)
    others = [book.negative for book in siblings if book.principal == principal and book.agent != agent]
    together = decay.NOTHING
    for negative in others:
        together = decay.plus(together, negative)
    share = f"{int(together, 16) // SPONSOR_SHARE:x}"
    burden = max([share, *others], key=lambda total: int(total, 16))
    critical = any(book.critical for book in siblings if book.principal == principal)
    book = Book(agent, principal, negative=burden, critical=critical, day=day, at_s=now_s)
    return msgspec.structs.replace(book, level=level_of(score(book, day)))


def _on(book: Book, now_s: int) -> Book:
    """*book* at the moment of an event: its tier brought up to date, and a new day begun if it is one."""
    book = climbed(book, max(now_s, book.at_s))
    day = max(day_of(now_s), book.day)
    if day == book.day:
        return book
    return msgspec.structs.replace(
        book,
        day=day,
        today=(0, 0, 0, 0),
        repeats={},
        given=tuple(active(book.given, day)),
        received=tuple(active(book.received, day)),
    )


def _after(book: Book) -> Book:
    """Going down is immediate."""
    return climbed(book, book.at_s)


def worth_of_outcome(book: Book, risk: int, now_s: int) -> int:
    """Thousandths that a confirmed outcome of a tool of class *risk* would earn now."""
    today = book.today if day_of(now_s) <= book.day else (0, 0, 0, 0)
    return max(0, min(OUTCOME_MILLI[risk], OUTCOME_DAY_MILLI[risk] - today[risk], DAY_MILLI - sum(today)))


def after_outcome(book: Book, risk: int, now_s: int) -> Book:
    """A call of a tool of class *risk* (0 to 3) came to its confirmed end."""
    milli = worth_of_outcome(book, risk, now_s)
    if not milli:
        return book
    book = _on(book, now_s)
    today = tuple(got + milli * (place == risk) for place, got in enumerate(book.today))
    return _after(
        msgspec.structs.replace(book, earned=decay.add(book.earned, milli, EARNED_HALF_LIFE, book.day), today=today)
    )


def after_refusals(book: Book, severity: Severity, policy: str, resource: str, count: int, now_s: int) -> Book:
    """*policy* refused *count* calls of *resource* that the agent itself made."""
    book = _on(book, now_s)
    pair = f"{policy}|{resource}"
    if pair not in book.repeats and len(book.repeats) >= MAX_REPEATS:
        pair = THE_REST
    before = book.repeats.get(pair, 0)
    milli = _cost(severity, before, count)
    counted = {**book.repeats, pair: before + count}
    return _after(
        msgspec.structs.replace(
            book,
            negative=decay.add(book.negative, milli, NEGATIVE_HALF_LIFE, book.day),
            repeats=counted,
            critical=book.critical or severity == "critical",
        )
    )


def _cost(severity: Severity, before: int, count: int) -> int:
    """The n-th repeat costs an n-th part, rounded down; what is severe costs the same each time."""
    each = SEVERITIES[severity]
    if severity not in REPEATED:
        return each * count
    return sum(each // n for n in range(before + 1, min(before + count, each) + 1))


def worst(severities: list[Severity]) -> Severity:
    """The most severe of several; of none, the mildest."""
    order = list(SEVERITIES)
    return max(severities, key=order.index, default="benign")


class Refused(ValueError):
    """A vouch that is not accepted; the text says why."""


def staked(voucher: Book, target: Book, points: int, now_s: int) -> Stake:
    """The stake of *points* thousandths that *voucher* puts on *target*, or :class:`Refused`."""
    day = day_of(now_s)
    has = score(voucher, day)
    if voucher.principal == target.principal:
        raise Refused(f"{voucher.agent} and {target.agent} act for the same principal, {voucher.principal}")
    if has < VOUCHER_SCORE:
        raise Refused(f"{voucher.agent} has a score of {has}; vouching needs {VOUCHER_SCORE}")
    if any(stake.target == target.agent for stake in active(voucher.given, day)):
        raise Refused(f"{voucher.agent} vouches for {target.agent} already")
    if not 0 < points <= earned(voucher, day):
        raise Refused(f"a stake is earned evidence: from 1 to {earned(voucher, day)} thousandths, not {points}")
    return Stake(
        voucher.agent, target.agent, decay.weighed(points, EARNED_HALF_LIFE, day), max(day, voucher.day) + VOUCH_DAYS
    )


def with_given(voucher: Book, stake: Stake, now_s: int) -> Book:
    book = _on(voucher, now_s)
    return _after(msgspec.structs.replace(book, given=(*book.given, stake)))


def with_received(target: Book, stake: Stake, now_s: int) -> Book:
    book = _on(target, now_s)
    return _after(msgspec.structs.replace(book, received=(*book.received, stake)))


def burned(voucher: Book, target: str, now_s: int) -> Book:
    """*target* did something severe: what *voucher* staked for it is gone for good."""
    book = _on(voucher, now_s)
    lost = [stake for stake in active(book.given, book.day) if stake.target == target]
    total = book.earned
    for stake in lost:
        total = decay.minus(total, stake.total)
    kept = tuple(stake for stake in book.given if stake.target != target)
    return _after(msgspec.structs.replace(book, earned=total, given=kept))


def unvouched(target: Book, now_s: int) -> Book:
    """After something severe nobody vouches for *target* any more."""
    return _after(msgspec.structs.replace(_on(target, now_s), received=()))


def cleared(book: Book, now_s: int) -> Book:
    """A person looked at what was critical and lifts the cap; the evidence stays."""
    return _after(msgspec.structs.replace(_on(book, now_s), critical=False))


def granted(book: Book, allowed: bool, now_s: int) -> Book:
    """A person grants (or takes back) that an attested agent may be verified."""
    return _after(msgspec.structs.replace(_on(book, now_s), granted=allowed))


def inherited(book: Book, former: Book, now_s: int) -> Book:
    """*book* of a workload whose key was another registration's: what counts against that one counts against it.
    What was earned stays where it was earned, or one piece of evidence could be spent under two names."""
    book = _on(book, now_s)
    return _after(
        msgspec.structs.replace(
            book,
            negative=decay.plus(book.negative, former.negative),
            critical=book.critical or former.critical,
        )
    )
