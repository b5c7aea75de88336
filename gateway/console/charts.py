"""Numbers as charts: what a page's script draws, and the table that says the same."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Final, Literal

import msgspec

from trust.ledger.words import moment

Tone = Literal["good", "wait", "bad", "accent"]
RECENT: Final = 20
"""What a small line shows of an agent's trust."""
WIDTH: Final = 96
HEIGHT: Final = 22


class Series(msgspec.Struct, frozen=True):
    """One line: its name, its colour, how it is dashed (so that colour is not all that tells it), its values."""

    name: str
    tone: Tone
    dash: tuple[int, ...]
    values: Sequence[int]


class Chart(msgspec.Struct, frozen=True):
    """Values over time; ``times``: Unix seconds, where each value's span begins. ``form``: how a time is written in the
    table. ``steps``: a value stands until the next."""

    title: str
    times: Sequence[int]
    series: Sequence[Series]
    form: str = "%Y-%m-%d %H:%M"
    steps: bool = False
    most: int | None = None

    @property
    def drawn(self) -> str:
        """For the script, as JSON."""
        return json.dumps(
            {
                "times": list(self.times),
                "series": [
                    {"name": s.name, "tone": s.tone, "dash": s.dash, "values": list(s.values)} for s in self.series
                ],
                "steps": self.steps,
                "most": self.most,
            }
        )

    @property
    def said(self) -> str:
        """In one sentence, for who cannot see it."""
        told = [f"{one.name}: {sum(one.values)}" for one in self.series]
        return f"{self.title}. {'; '.join(told)}" if not self.steps else self.title

    @property
    def rows(self) -> list[tuple[str, list[int]]]:
        """The table: only spans in which something happened."""
        lines = zip(self.times, zip(*(one.values for one in self.series), strict=True), strict=True)
        return [(moment(at * 1_000_000, self.form), list(values)) for at, values in lines if any(values)]


def slots(found: Iterable[tuple[int, str, int]], begin_s: int, step_s: int, count: int) -> dict[str, list[int]]:
    """(slot, name, how many) → name → one value per slot; a slot is its time (Unix seconds) divided by *step_s*."""
    first = begin_s // step_s
    values: dict[str, list[int]] = {}
    for slot, name, number in found:
        if 0 <= slot - first < count:
            values.setdefault(name, [0] * count)[slot - first] = number
    return values


def spark(values: Sequence[int], most: int) -> str:
    """The points of a small line, from 0 to *most*, in a box of :data:`WIDTH` by :data:`HEIGHT`; empty for fewer than
    two values."""
    if len(values) < 2:
        return ""
    step = WIDTH / (len(values) - 1)
    return " ".join(f"{step * i:.1f},{HEIGHT - 1 - (HEIGHT - 2) * v / most:.1f}" for i, v in enumerate(values))
