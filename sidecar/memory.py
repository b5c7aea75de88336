"""What an agent has done: calls in flight and before, labels, denials. Folded from the ledger after a restart.

Labels and counts belong to agent and run together: whoever opens a new run sheds neither labels nor calls nor
denials, because runs are named by the caller. They fade with time (labels as configured, counts after a day)
and outlive a restart, because they are read back from the ledger. A call counts from the moment it is
permitted, so that several at once cannot each look like the first.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from trust.facts import Rate, Run

MINUTE: Final = 60
HOUR: Final = 3600
DAY: Final = 86_400
BUCKETS: Final = 60
MAX_RUNS: Final = 10_000
MAX_TOOLS: Final = 5_000


class Window:
    """Counts of the last *span_s* seconds, in :data:`BUCKETS` parts; never less than the true count."""

    def __init__(self, span_s: int) -> None:
        self._width = span_s / BUCKETS
        self._counts: OrderedDict[int, int] = OrderedDict()
        self._total = 0
        self._oldest = 0

    def add(self, now: float, amount: int = 1) -> None:
        bucket = int(now / self._width)
        self._counts[bucket] = self._counts.get(bucket, 0) + amount
        self._total += amount

    def count(self, now: float) -> int:
        oldest = int(now / self._width) - BUCKETS
        if oldest == self._oldest:
            return self._total
        self._oldest = oldest
        while self._counts and next(iter(self._counts)) < oldest:
            self._total -= self._counts.popitem(last=False)[1]
        return self._total


@dataclass(slots=True)
class _Rates:
    minute: Window = field(default_factory=lambda: Window(MINUTE))
    hour: Window = field(default_factory=lambda: Window(HOUR))
    day: Window = field(default_factory=lambda: Window(DAY))

    def add(self, now: float) -> None:
        for window in (self.minute, self.hour, self.day):
            window.add(now)

    def counts(self, now: float) -> tuple[int, int, int]:
        return self.minute.count(now), self.hour.count(now), self.day.count(now)


@dataclass(slots=True)
class _Run:
    started: float
    labels: set[str] = field(default_factory=set)


class Memory:
    """Of one agent. Times are Unix seconds."""

    def __init__(self, labels_keep_s: int) -> None:
        self._keep = labels_keep_s
        self._agent = _Rates()
        self._denied = Window(DAY)
        self._spent = Window(DAY)
        self._in_flight = 0
        self._tools: OrderedDict[str, _Rates] = OrderedDict()
        self._runs: OrderedDict[str, _Run] = OrderedDict()
        self._labels: dict[str, float] = {}

    def run(self, run: str, now: float) -> Run:
        """What a decision may know of *run*."""
        known = self._run(run, now)
        lasting = {label for label, until in self._labels.items() if until > now}
        return Run(
            run,
            self._agent.day.count(now),
            self._denied.count(now),
            tuple(sorted(known.labels | lasting)),
            self._spent.count(now),
            max(0, int(now - known.started)),
        )

    def rate(self, tool: str, now: float) -> Rate:
        of_tool = self._tools.get(tool)
        counts = (*self._agent.counts(now), *(of_tool.counts(now) if of_tool else (0, 0, 0)))
        return Rate(*counts, self._in_flight)

    def began(self) -> None:
        """A call is in flight, from the moment in which it is permitted."""
        self._in_flight += 1

    def ended(self) -> None:
        self._in_flight -= 1

    def permitted(self, run: str, tool: str, labels: tuple[str, ...] | list[str], now: float, cents: int = 0) -> None:
        """A call leaves, costs *cents*, and will bring *labels* into its run."""
        self._agent.add(now)
        if cents:
            self._spent.add(now, cents)
        rates = self._tools.setdefault(tool, _Rates())
        rates.add(now)
        if len(self._tools) > MAX_TOOLS:
            self._tools.popitem(last=False)
        known = self._run(run, now)
        known.labels.update(labels)
        for label in labels:
            self._labels[label] = max(self._labels.get(label, 0.0), now + self._keep)

    def denied(self, run: str, now: float) -> None:
        self._run(run, now)
        self._denied.add(now)

    def _run(self, run: str, now: float) -> _Run:
        known = self._runs.get(run)
        if known is None:
            known = self._runs[run] = _Run(now)
            if len(self._runs) > MAX_RUNS:
                self._runs.popitem(last=False)
        else:
            self._runs.move_to_end(run)
        return known
