"""Standing, simulated: the figures that the rules of the score give, and a picture: ``python -m loadtests.standing``.

Nothing here is random. Each life is played through the very functions that the gateway uses.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from trust.standing import rules, score
from trust.standing.decay import DAY_S, FIRST_DAY
from trust.standing.score import Book

PICTURE: Final = Path("docs/standing.png")
Life = Iterator[tuple[float, Book]]
"""Days and the book at the end of each."""


def at(day: float) -> int:
    return int((FIRST_DAY + day) * DAY_S)


def newcomer() -> Book:
    return rules.opened("agent", "ada", [], at(0))


def works(book: Book, day: int, classes: tuple[int, ...], times: int = 20) -> Book:
    """One day of confirmed outcomes: *times* of each of *classes* of risk."""
    for risk in classes:
        for _ in range(times):
            book = rules.after_outcome(book, risk, at(day + 0.5))
    return book


def reader(days: int = 400) -> Life:
    """5,000 reads a day. After the fifth the day's cap holds, so the rest is played by the rule that it earns nothing."""
    book = newcomer()
    for day in range(days):
        book = works(book, day, (0,), 50)
        yield day + 1, book


def farmer(days: int = 400) -> Life:
    """Everything of risk 0 and 1 that counts, every day."""
    book = newcomer()
    for day in range(days):
        book = works(book, day, (0, 1))
        yield day + 1, book


def honest(days: int = 90) -> Life:
    """Busy in every class of risk."""
    book = newcomer()
    for day in range(days):
        book = works(book, day, (0, 1, 2, 3))
        yield day + 1, book


def fallen(days: int = 90, critical: int = 62) -> Life:
    """The same until a critical event; a person clears it ten days later."""
    book = newcomer()
    for day in range(days):
        book = works(book, day, (0, 1, 2, 3))
        if day + 1 == critical:
            book = rules.after_refusals(book, "critical", "forbid", "server", 1, at(day + 0.9))
        if day + 1 == critical + 10:
            book = rules.cleared(book, at(day + 0.9))
        yield day + 1, book


def denied(days: int = 90) -> Life:
    """10,000 equal denials on the first day, and nothing after."""
    book = rules.after_refusals(newcomer(), "benign", "forbid", "server", 10_000, at(0.5))
    for day in range(days):
        yield day + 1, book


LIVES: Final[dict[str, Callable[[], Life]]] = {
    "5,000 reads a day": reader,
    "low-risk farming": farmer,
    "busy and honest": honest,
    "honest, then critical": fallen,
    "10,000 denials in a day": denied,
}


def scores(life: Life) -> list[tuple[float, int]]:
    """Scores at the end of each day."""
    return [(day, score.score(book, int(day - 0.01))) for day, book in life]


def figures() -> list[tuple[str, str, str]]:
    """What is asked, what the design says, what comes out."""
    told = {name: dict(scores(life())) for name, life in LIVES.items()}
    honest_, fallen_ = told["busy and honest"], told["honest, then critical"]
    return [
        ("5,000 reads a day for 400 days, highest", "≤ 460", str(max(told["5,000 reads a day"].values()))),
        ("low-risk farming (classes 0 and 1), day 90", "617", str(told["low-risk farming"][90])),
        ("the same for 400 days, highest", "", str(max(told["low-risk farming"].values()))),
        ("busy and honest, day 7 / 14 / 30", "640 / 738 / 830", " / ".join(str(honest_[day]) for day in (7, 14, 30))),
        ("a critical event at 861 (day 62)", "299", f"{honest_[62]} → {fallen_[62]}"),
        ("10,000 equal denials in one day", "400 → 379", f"400 → {told['10,000 denials in a day'][1]}"),
    ]


def draw(path: Path) -> None:
    """Every life as a line, over the tiers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
    for name, life in LIVES.items():
        points = [(0, 400), *((day, held) for day, held in scores(life()) if day <= 90)]
        axes.plot(*zip(*points, strict=True), label=name, linewidth=1.8)
    for tier in score.TIERS[1:]:
        axes.axhline(tier.threshold, color="0.8", linewidth=0.8, zorder=0)
        axes.text(90.5, tier.threshold + 6, tier.name, color="0.45", fontsize=8, ha="right")
    axes.set(title="Standing, simulated", xlabel="days", ylabel="score", xlim=(0, 91), ylim=(0, 1000))
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    figure.savefig(path, dpi=120)


def main() -> None:
    table = Table("life", "design", "rules")
    for row in figures():
        table.add_row(*row)
    Console(width=120).print(table)
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE
    draw(path)
    print(f"picture: {path}")


if __name__ == "__main__":
    main()
