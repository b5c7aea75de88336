"""Standing as a fold over the gateway's ledger: what follows from each entry, and the books after it.

The gateway writes down what it observed (outcomes, refusals), then what follows from it (``standing`` entries), and
only the latter change books. So the same two functions serve it while it runs, after a crash, and in a replay that
starts from nothing and must arrive at the same books and the same entries.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from trust.ledger import entries
from trust.ledger.entries import AnyEntry
from trust.standing import rules
from trust.standing.decay import day_of
from trust.standing.rules import SEVERITIES, Severity
from trust.standing.score import Book, active, score

BY_A_PERSON = -1
SEVERE = frozenset({"severe", "critical"})


class Shelf(Protocol):
    """Books by agent."""

    def book(self, agent: str) -> Book | None: ...

    def of(self, principal: str) -> list[Book]: ...

    def keep(self, book: Book) -> None: ...


def follows(shelf: Shelf, index: int, at_s: int, entry: AnyEntry) -> Iterator[entries.Standing]:
    """What has to be written because *entry* stands at *index*; each item is applied before the next is asked for."""
    match entry:
        case entries.Outcome(step=8, status="done", agent=str(agent), at_home=False) if agent:
            book = shelf.book(agent)
            if book is not None and rules.worth_of_outcome(book, entry.risk, at_s):
                yield _moved("outcome", book, rules.after_outcome(book, entry.risk, at_s), index, at_s, risk=entry.risk)
        case entries.Reported():
            for refused in entry.refusals:
                yield from _refused(shelf, index, at_s, entry.agent, refused)


def _refused(shelf: Shelf, index: int, at_s: int, agent: str, refused: entries.Refusals) -> Iterator[entries.Standing]:
    book = shelf.book(agent)
    if book is None:
        return
    policy, severity = ", ".join(refused.policies) or refused.reason, _severity(refused.severity)
    after = rules.after_refusals(book, severity, policy, refused.resource, refused.count, at_s)
    yield _moved(
        "refusal", book, after, index, at_s,
        severity=severity, policy=policy, resource=refused.resource, count=refused.count,
    )  # fmt: skip
    if severity not in SEVERE:
        return
    yield from _unbacked(shelf, index, at_s, agent)


def _unbacked(shelf: Shelf, index: int, at_s: int, agent: str) -> Iterator[entries.Standing]:
    """After something severe, what others staked for *agent* is lost to them."""
    book = shelf.book(agent)
    if book is None:
        return
    backers = active(book.received, day_of(at_s))
    for stake in backers:
        voucher = shelf.book(stake.voucher)
        if voucher is not None:
            yield _moved("burned", voucher, rules.burned(voucher, agent, at_s), index, at_s, other=agent)
    book = shelf.book(agent)
    if backers and book is not None:
        yield _moved("unvouched", book, rules.unvouched(book, at_s), index, at_s)


def _severity(text: str) -> Severity:
    return next((known for known in SEVERITIES if known == text), "benign")


def _moved(rule: str, before: Book, after: Book, cause: int, at_s: int, **details: object) -> entries.Standing:
    day = day_of(at_s)
    return entries.Standing(
        rule=rule,  # type: ignore[arg-type]
        agent=before.agent,
        cause=cause,
        at_s=at_s,
        before=score(before, day),
        after=score(after, day),
        **details,  # type: ignore[arg-type]
    )


def apply(shelf: Shelf, entry: entries.Standing) -> None:
    """The books after *entry*."""
    book, at = shelf.book(entry.agent), entry.at_s
    if book is None:
        return
    match entry.rule:
        case "outcome":
            shelf.keep(rules.after_outcome(book, entry.risk, at))
        case "refusal":
            severity = _severity(entry.severity)
            shelf.keep(rules.after_refusals(book, severity, entry.policy, entry.resource, entry.count, at))
        case "burned":
            shelf.keep(rules.burned(book, entry.other, at))
        case "unvouched":
            shelf.keep(rules.unvouched(book, at))
        case "cleared":
            shelf.keep(rules.cleared(book, at))
        case "granted" | "ungranted":
            shelf.keep(rules.granted(book, entry.rule == "granted", at))
        case "vouched":
            _vouched(shelf, book, entry)


def _vouched(shelf: Shelf, target: Book, entry: entries.Standing) -> None:
    voucher = shelf.book(entry.other)
    if voucher is not None:
        stake = rules.staked(voucher, target, entry.milli, entry.at_s)
        shelf.keep(rules.with_given(voucher, stake, entry.at_s))
        shelf.keep(rules.with_received(target, stake, entry.at_s))


def registered(shelf: Shelf, index: int, agent: str, principal: str, at_s: int) -> entries.Standing:
    """A new agent has a book from its first moment; how its story begins."""
    book = rules.opened(agent, principal, shelf.of(principal), at_s)
    shelf.keep(book)
    return _moved("registered", Book(agent, principal), book, index, at_s, other=principal)


def bound(shelf: Shelf, index: int, agent: str, former: str, at_s: int) -> entries.Standing | None:
    """A key that was *former*'s is *agent*'s now; what that adds to its story."""
    book, other = shelf.book(agent), shelf.book(former)
    if book is None or other is None or agent == former:
        return None
    after = rules.inherited(book, other, at_s)
    shelf.keep(after)
    return _moved("inherited", book, after, index, at_s, other=former)


class Replayed:
    """A replay from nothing: books, and every ``standing`` entry that does not follow from what was observed."""

    def __init__(self) -> None:
        self._books: dict[str, Book] = {}
        self._key_of: dict[str, str] = {}
        self._due: list[entries.Standing] = []
        self.wrong: list[str] = []
        self.observed = 0
        self.moved = 0

    def book(self, agent: str) -> Book | None:
        return self._books.get(agent)

    def books(self) -> list[Book]:
        return [self._books[name] for name in sorted(self._books)]

    def of(self, principal: str) -> list[Book]:
        return [book for book in self._books.values() if book.principal == principal]

    def keep(self, book: Book) -> None:
        self._books[book.agent] = book

    def read(self, index: int, line: entries.Line) -> None:
        """The next entry of the ledger."""
        entry, at_s = line.entry, line.stamp.wall_us // 1_000_000
        match entry:
            case entries.Agent(event="registered"):
                registered(self, index, entry.agent, rules.sponsor(entry.owner, entry.namespace), at_s)
            case entries.Agent(event="enrolled" | "rotated", key=str(key)):
                former = self._key_of.setdefault(key, entry.agent)
                bound(self, index, entry.agent, former, at_s)
            case entries.Outcome() | entries.Reported():
                self.observed += 1
                for due in follows(self, index, at_s, entry):
                    self._due.append(due)
                    apply(self, due)
            case entries.Standing():
                self.moved += 1
                self._compare(index, entry)

    def _compare(self, index: int, entry: entries.Standing) -> None:
        if entry.rule == "staked":
            return
        if entry.cause == BY_A_PERSON:
            book = self.book(entry.agent)
            if book is not None and score(book, day_of(entry.at_s)) != entry.before:
                self.wrong.append(f"#{index}: the score before it was {score(book, day_of(entry.at_s))}")
            apply(self, entry)
            return
        expected = self._due.pop(0) if self._due else None
        if expected != entry:
            self.wrong.append(f"#{index}: expected {expected}, found {entry}")

    @property
    def missing(self) -> list[entries.Standing]:
        """What follows from the ledger and does not stand in it (yet)."""
        return self._due
