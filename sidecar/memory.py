"""What an agent has done: calls in flight and before, labels, denials. Folded from the ledger after a restart.

Everything here can be encoded, so that several workers of one sidecar start from the same (see ``journal``). Labels
and counts belong to agent and run together: whoever opens a new run sheds neither labels nor calls nor denials,
because runs are named by the caller. They fade with time (labels as configured, counts after a day) and outlive a
restart, because they are read back from the ledger. A call counts from the moment it is permitted, so that several at
once cannot each look like the first.
"""

from __future__ import annotations

from typing import Final

import msgspec

from trust.facts import Rate, Run

MINUTE: Final = 60
HOUR: Final = 3600
DAY: Final = 86_400
BUCKETS: Final = 60
MAX_RUNS: Final = 10_000
MAX_TOOLS: Final = 5_000


class Window(msgspec.Struct):
    """Counts of the last *span_s* seconds, in :data:`BUCKETS` parts; never less than the true count. They may be told
    in any order."""

    span_s: int
    counts: dict[int, int] = {}
    total: int = 0
    oldest: int = 0

    def add(self, now: float, amount: int = 1) -> None:
        bucket = int(now * BUCKETS / self.span_s)
        if bucket < self.oldest:
            return
        self.counts[bucket] = self.counts.get(bucket, 0) + amount
        self.total += amount

    def count(self, now: float) -> int:
        oldest = int(now * BUCKETS / self.span_s) - BUCKETS
        if oldest > self.oldest:
            self.oldest = oldest
            for bucket in [one for one in self.counts if one < oldest]:
                self.total -= self.counts.pop(bucket)
        return self.total


class _Rates(msgspec.Struct):
    minute: Window = msgspec.field(default_factory=lambda: Window(MINUTE))
    hour: Window = msgspec.field(default_factory=lambda: Window(HOUR))
    day: Window = msgspec.field(default_factory=lambda: Window(DAY))

    def add(self, now: float) -> None:
        for window in (self.minute, self.hour, self.day):
            window.add(now)

    def counts(self, now: float) -> tuple[int, int, int]:
        return self.minute.count(now), self.hour.count(now), self.day.count(now)


class _Run(msgspec.Struct):
    started: float
    labels: set[str] = set()


class Memory(msgspec.Struct):
    """Of one agent. Times are Unix seconds; ``in_flight`` is by the worker that a call is with; the run that
    was used last is last in ``runs``."""

    labels_keep_s: int
    agent: _Rates = msgspec.field(default_factory=_Rates)
    refused: Window = msgspec.field(default_factory=lambda: Window(DAY))
    spent: Window = msgspec.field(default_factory=lambda: Window(DAY))
    in_flight: dict[int, int] = {}
    tools: dict[str, _Rates] = {}
    runs: dict[str, _Run] = {}
    labels: dict[str, float] = {}

    def run(self, run: str, now: float) -> Run:
        """What a decision may know of *run*."""
        known = self._run(run, now)
        lasting = {label for label, until in self.labels.items() if until > now}
        return Run(
            run,
            self.agent.day.count(now),
            self.refused.count(now),
            tuple(sorted(known.labels | lasting)),
            self.spent.count(now),
            max(0, int(now - known.started)),
        )

    def rate(self, tool: str, now: float) -> Rate:
        of_tool = self.tools.get(tool)
        counts = (*self.agent.counts(now), *(of_tool.counts(now) if of_tool else (0, 0, 0)))
        return Rate(*counts, sum(self.in_flight.values()))

    def began(self, worker: int = 0) -> None:
        """A call is in flight, from the moment in which it is permitted."""
        self.in_flight[worker] = self.in_flight.get(worker, 0) + 1

    def ended(self, worker: int = 0) -> None:
        """A call is over."""
        if left := self.in_flight[worker] - 1:
            self.in_flight[worker] = left
        else:
            del self.in_flight[worker]

    def gone(self, worker: int) -> None:
        """Nothing is in flight with *worker* any more."""
        self.in_flight.pop(worker, None)

    def permitted(self, run: str, tool: str, labels: tuple[str, ...] | list[str], now: float, cents: int = 0) -> None:
        """A call leaves, costs *cents*, and will bring *labels* into its run."""
        self.agent.add(now)
        if cents:
            self.spent.add(now, cents)
        rates = self.tools.setdefault(tool, _Rates())
        rates.add(now)
        if len(self.tools) > MAX_TOOLS:
            del self.tools[next(iter(self.tools))]
        known = self._run(run, now)
        known.labels.update(labels)
        for label in labels:
            self.labels[label] = max(self.labels.get(label, 0.0), now + self.labels_keep_s)

    def denied(self, run: str, now: float) -> None:
        self._run(run, now)
        self.refused.add(now)

    def _run(self, run: str, now: float) -> _Run:
        known = self.runs.pop(run, None) or _Run(now)
        known.started = min(known.started, now)
        self.runs[run] = known
        if len(self.runs) > MAX_RUNS:
            del self.runs[next(iter(self.runs))]
        return known
