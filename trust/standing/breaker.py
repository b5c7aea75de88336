"""Circuit breakers: what fails again and again, repeats itself, or comes in a burst is stopped for a while.

Counting is in memory and forgets at a restart; a trip is a ledger entry, and what it stopped stays stopped until
the time in the entry. Plain and pure: times (Unix seconds) are arguments.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Final, Literal

import msgspec

Rule = Literal["failures", "loop", "burst"]
MAX_WATCHED: Final = 10_000
"""Agents, servers and calls that are counted at once; the longest unseen are forgotten first."""


MAX_FAILING: Final = 100


class Limits(msgspec.Struct, frozen=True):
    """How much within ``window_s`` trips, and for how long (``open_s``). Counts of 0 switch a rule off."""

    failures: int = 10
    loop: int = 300
    burst: int = 6_000
    window_s: int = 60
    open_s: int = 30


class Trip(msgspec.Struct, frozen=True):
    """``target`` (``agent:NAME`` or ``server:NAME``) is stopped until ``until_s`` because of *rule*."""

    target: str
    rule: Rule
    count: int
    until_s: int


class _Counter:
    """Events of the last window, in seconds; never less than the true count."""

    __slots__ = ("_buckets", "_total")

    def __init__(self) -> None:
        self._buckets: deque[list[int]] = deque()
        self._total = 0

    def add(self, now_s: int, window_s: int) -> int:
        """Count one event; how many the window holds."""
        if self._buckets and self._buckets[-1][0] >= now_s:
            self._buckets[-1][1] += 1
        else:
            self._buckets.append([now_s, 1])
        self._total += 1
        while self._buckets[0][0] <= now_s - window_s:
            self._total -= self._buckets.popleft()[1]
        return self._total


class Breaker:
    """Watches what passes one gateway."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._counters: OrderedDict[tuple[Rule, str], _Counter] = OrderedDict()
        self._failing: dict[str, dict[str, int]] = {}

    def called(self, agent: str, call: str, now_s: int) -> Trip | None:
        """*agent* makes *call* (the digest of everything that matters in it)."""
        limits = self._limits
        target = f"agent:{agent}"
        return self._count("burst", target, target, limits.burst, now_s) or self._count(
            "loop", f"{agent}|{call}", target, limits.loop, now_s
        )

    def failed(self, agent: str, server: str, now_s: int, namespace: str = "") -> Trip | None:
        """A call of *agent* to *server* failed. The agent is stopped; the server too, if others fail there as well: one
        agent alone must not take it away from all, nor one *namespace*, which has as many agents as it likes."""
        limits = self._limits
        failing = self._failing.setdefault(server, {})
        failing[f"{namespace}/" if namespace else agent] = now_s
        recent = [name for name, at_s in failing.items() if at_s > now_s - limits.window_s]
        self._failing[server] = {name: failing[name] for name in recent[-MAX_FAILING:]}
        by_pair = self._count("failures", f"{agent}|{server}", f"agent:{agent}", limits.failures, now_s)
        by_server = self._count("failures", f"server:{server}", f"server:{server}", 2 * limits.failures, now_s)
        return by_server if by_server is not None and len(recent) > 1 else by_pair

    def succeeded(self, agent: str, server: str) -> None:
        """Failures count only while nothing succeeds."""
        self._counters.pop(("failures", f"{agent}|{server}"), None)
        self._counters.pop(("failures", f"server:{server}"), None)
        self._failing.pop(server, None)

    def _count(self, rule: Rule, name: str, target: str, limit: int, now_s: int) -> Trip | None:
        if not limit:
            return None
        counter = self._counters.get((rule, name))
        if counter is None:
            counter = self._counters[(rule, name)] = _Counter()
            if len(self._counters) > MAX_WATCHED:
                self._counters.popitem(last=False)
        else:
            self._counters.move_to_end((rule, name))
        count = counter.add(now_s, self._limits.window_s)
        if count < limit:
            return None
        del self._counters[(rule, name)]
        return Trip(target, rule, count, now_s + self._limits.open_s)
