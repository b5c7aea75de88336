"""Counting what happened, cheaply: numbers by name and labels, durations in buckets. Reading them is done elsewhere."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable
from typing import Final

import msgspec

BUCKETS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper ends; what takes longer is in none of them. A person's decision takes minutes and is no latency."""
Labels = tuple[tuple[str, str], ...]


class Told(msgspec.Struct, frozen=True):
    """What a tally says at one moment. ``durations``: (name, labels, counts by bucket, seconds in all); ``watched``:
    (name, what it is, value)."""

    counts: list[tuple[str, Labels, int]]
    durations: list[tuple[str, Labels, list[int], float]]
    watched: list[tuple[str, str, float]]


class Tally:
    """Of one process. Labels are few and come from our own tables: never names that somebody outside chooses."""

    def __init__(self) -> None:
        self.counts: defaultdict[tuple[str, Labels], int] = defaultdict(int)
        self.durations: dict[tuple[str, Labels], Durations] = {}
        self.watched: dict[str, tuple[str, Callable[[], float]]] = {}

    def count(self, name: str, labels: Labels = ()) -> None:
        """One more."""
        self.counts[name, labels] += 1

    def took(self, name: str, seconds: float, labels: Labels = ()) -> None:
        known = self.durations.get((name, labels))
        if known is None:
            known = self.durations[name, labels] = Durations()
        known.add(seconds)

    def watch(self, name: str, what: str, read: Callable[[], float]) -> None:
        """A number that is read when somebody asks; *what* says what it is."""
        self.watched[name] = (what, read)

    def told(self) -> Told:
        """All of it, now."""
        return Told(
            [(name, labels, number) for (name, labels), number in self.counts.items()],
            [(name, labels, list(one.counts), one.total_s) for (name, labels), one in self.durations.items()],
            [(name, what, read()) for name, (what, read) in self.watched.items()],
        )


class Durations:
    """How many took how long; ``counts`` has one more place, for what took longer than all buckets."""

    __slots__ = ("counts", "total_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.total_s = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS_S, seconds)] += 1
        self.total_s += seconds
