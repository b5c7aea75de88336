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
from trust.recalled import Recalled
from trust.window import DAY, HOUR, MINUTE, Window

FLYING_S: Final = 0.05
"""For so long what a gateway told of what is in flight holds: until the same call is decided again."""
_NOBODY: Final = Recalled()
MAX_RUNS: Final = 10_000
MAX_TOOLS: Final = 5_000


class _Rates(msgspec.Struct):
    minute: Window = msgspec.field(default_factory=lambda: Window(MINUTE))
    hour: Window = msgspec.field(default_factory=lambda: Window(HOUR))
    day: Window = msgspec.field(default_factory=lambda: Window(DAY))

    def add(self, now: float, amount: int = 1) -> None:
        for window in (self.minute, self.hour, self.day):
            window.add(now, amount)

    def counts(self, now: float) -> tuple[int, int, int]:
        return self.minute.count(now), self.hour.count(now), self.day.count(now)


class _Told(msgspec.Struct):
    """What the gateway knew at a moment, before a call of a tool, and until when that holds."""

    at: float
    until: float
    recalled: Recalled


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
    others: dict[str, _Told] = {}

    def run(self, run: str, now: float) -> Run:
        """What a decision may know of *run*."""
        known = self._run(run, now)
        lasting = {label for label, until in self.labels.items() if until > now}
        others = self._others(now)
        return Run(
            run,
            max(self.agent.day.count(now), others.day),
            max(self.refused.count(now), others.denied),
            tuple(sorted(known.labels | lasting)),
            max(self.spent.count(now), others.spent_cents),
            max(0, int(now - known.started)),
        )

    def rate(self, tool: str, now: float) -> Rate:
        of_tool = self.tools.get(tool)
        counts = (*self.agent.counts(now), *(of_tool.counts(now) if of_tool else (0, 0, 0)))
        known = (*counts, sum(self.in_flight.values()))
        others, same = self._others(now), self.others.get(tool)
        of_same = same.recalled if same is not None and now < same.until else _NOBODY
        told = (others.minute, others.hour, others.day, of_same.tool_minute, of_same.tool_hour, of_same.tool_day)
        return Rate(*map(max, known, (*told, others.in_flight)))

    def told(self, run: str, tool: str, recalled: Recalled, now: float, until: float) -> None:
        """The gateway counted more. Its counts hold for a while, in which the same is decided again: after that they
        would be too high. What the agent has seen stays."""
        self.others = {name: one for name, one in self.others.items() if one.until > now}
        self.others[tool] = _Told(now, until, recalled)
        known = self._run(run, now)
        known.labels.update(recalled.labels)
        for label in recalled.labels:
            self.labels[label] = max(self.labels.get(label, 0.0), now + self.labels_keep_s)

    def _others(self, now: float) -> Recalled:
        """The most of what was told for any tool."""
        told = [one for one in self.others.values() if now < one.until]
        if not told:
            return _NOBODY
        flying = [one.recalled.in_flight for one in told if now - one.at < FLYING_S]
        most = {
            name: max(getattr(one.recalled, name) for one in told)
            for name in ("minute", "hour", "day", "spent_cents", "denied")
        }
        return msgspec.structs.replace(_NOBODY, in_flight=max(flying, default=0), **most)

    def took_back(self, tool: str, at: float, cents: int) -> None:
        """A call that was permitted at that time was never sent. What it would have brought stays."""
        for rates in (self.agent, self.tools.get(tool)):
            if rates is not None:
                rates.add(at, -1)
        if cents:
            self.spent.add(at, -cents)

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
