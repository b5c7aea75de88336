"""What the router measures of nodes: work in flight, how long answers take, failures in a row. Plain; time is given.

Outstanding work and failures belong to a node; how long an answer takes belongs to a node and a kind of work (a tool),
because a node that answers questions of models is not slow beside one that reads files.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

from gateway.router.cost import Peak, Prior, Seen, expected_us, learned, moved

IN_A_ROW: Final = 3
"""So many failures in a row eject a node,"""
EJECTION_US: Final = 10_000_000
"""for so long the first time, twice as long the second, and so on,"""
LONGEST: Final = 30
"""but no more than so many times as long."""
ANY: Final = ""
"""Stands for nodes of every kind: what is expected of a kind of which nothing was measured."""
_NEVER: Final = Prior()
MAX_WORKS: Final = 5_000
"""Kinds of work; what was done longest ago is forgotten first."""


class Load:
    """Of one node. ``started``: when (monotonic microseconds) each attempt in flight began, the oldest first;
    ``streams``: how many have begun to answer and go on."""

    __slots__ = ("ejected_until_us", "ejections", "failures", "kind", "slots", "started", "streams", "weight_milli")

    def __init__(self, kind: str, slots: int, weight_milli: int) -> None:
        self.kind = kind
        self.slots = slots
        self.weight_milli = weight_milli
        self.started: dict[str, int] = {}
        self.streams = 0
        self.failures = 0
        self.ejections = 0
        self.ejected_until_us = 0


class Work:
    """How long one kind of work takes: on each node, and on each kind of node."""

    __slots__ = ("peaks", "priors")

    def __init__(self) -> None:
        self.peaks: dict[str, Peak] = {}
        self.priors: dict[str, Prior] = {}

    def prior(self, kind: str) -> Prior:
        return self.priors.get(kind) or self.priors.get(ANY, _NEVER)


class Measured:
    """Of all nodes. *kind* of a node: those of equal kind are expected to be equally fast."""

    def __init__(self) -> None:
        self._loads: dict[str, Load] = {}
        self._works: OrderedDict[str, Work] = OrderedDict()
        self._ejected: dict[str, Load] = {}
        self.ejections = 0
        """Rises whenever a node is ejected or let in again."""

    def know(self, node: str, kind: str, slots: int, weight: float) -> None:
        """What the registry says of a node; what was measured of it stays."""
        milli = max(1, round(weight * 1000))
        load = self._loads.get(node)
        if load is None:
            self._loads[node] = Load(kind, slots, milli)
        else:
            load.kind, load.slots, load.weight_milli = kind, slots, milli

    def seer(self, work: str, now_us: int) -> Callable[[str], Seen]:
        """What is known now of a node that :meth:`know` told of, for a kind of *work*."""
        known, loads = self._works.get(work, _NOTHING), self._loads
        peaks, priors, otherwise = known.peaks, known.priors, known.prior(ANY)

        def see(node: str) -> Seen:
            load = loads[node]
            prior = priors.get(load.kind, otherwise)
            peak = peaks.get(node)
            oldest = 0
            for first in load.started.values():
                oldest = now_us - first
                break
            outstanding = len(load.started) + load.streams
            if peak is None:
                return Seen(node, load.slots, load.weight_milli, outstanding, oldest, prior.us, 0, prior.us)
            age = now_us - peak.at_us
            return Seen(node, load.slots, load.weight_milli, outstanding, oldest, peak.us, age, prior.us)

        return see

    def see(self, node: str, work: str, now_us: int) -> Seen:
        return self.seer(work, now_us)(node)

    def outstanding(self, node: str) -> int:
        load = self._loads.get(node)
        return len(load.started) + load.streams if load is not None else 0

    def started(self, node: str, attempt: str, now_us: int) -> None:
        self._loads[node].started[attempt] = now_us

    def abandoned(self, node: str, attempt: str) -> None:
        """It ended, and that says nothing about the node: whoever asked hung up, or the other of two was faster."""
        self._loads[node].started.pop(attempt, None)

    def over(self, node: str) -> None:
        """A stream that went on has ended."""
        self._loads[node].streams -= 1

    def succeeded(self, node: str, attempt: str, work: str, now_us: int, *, goes_on: bool = False) -> None:
        """It answered; if that *goes_on* it stays outstanding, and :meth:`over` ends it."""
        took = self._took(node, attempt, now_us)
        load = self._loads[node]
        load.streams += goes_on
        load.failures = 0
        load.ejections = 0
        if self._ejected.pop(node, None) is not None:
            load.ejected_until_us = 0
            self.ejections += 1
        known = self._work(work)
        known.peaks[node] = moved(known.peaks.get(node), known.prior(load.kind), took, now_us)
        for kind in (load.kind, ANY):
            known.priors[kind] = learned(known.priors.get(kind, _NEVER), took)

    def failed(self, node: str, attempt: str, work: str, now_us: int) -> None:
        took = self._took(node, attempt, now_us)
        load = self._loads[node]
        known = self._work(work)
        known.peaks[node] = moved(known.peaks.get(node), known.prior(load.kind), took, now_us, failed=True)
        load.failures += 1
        if load.failures >= IN_A_ROW:
            # One more failure after the time is over is enough: it is on probation until it succeeds.
            load.failures = IN_A_ROW - 1
            load.ejections = min(load.ejections + 1, LONGEST)
            load.ejected_until_us = now_us + EJECTION_US * load.ejections
            self._ejected[node] = load
            self.ejections += 1

    def ejected(self, now_us: int) -> dict[str, Load]:
        """Those who are ejected now."""
        over = [node for node, load in self._ejected.items() if load.ejected_until_us <= now_us]
        for node in over:
            del self._ejected[node]
            self.ejections += 1
        return self._ejected

    def load(self, node: str) -> Load:
        """Of a node that :meth:`know` told of."""
        return self._loads[node]

    def expectations(self, node: str, now_us: int, most: int = 12) -> list[tuple[str, int]]:
        """How long (microseconds) each kind of work that was measured there is expected to take, the last first."""
        works = [name for name, work in reversed(self._works.items()) if node in work.peaks][:most]
        return [(work, int(expected_us(self.see(node, work, now_us)))) for work in works]

    def slowdown(self, node: str, work: str, now_us: int) -> float:
        """How many times as long as its class the node takes for *work*; 1 if nothing was measured."""
        if node not in self._works.get(work, _NOTHING).peaks:
            return 1.0
        seen = self.see(node, work, now_us)
        return expected_us(seen) / max(1, seen.prior_us)

    def known_by(self, node: str, work: str, peers: int, answers: int) -> bool:
        """Whether so many other nodes of its class did this *work*, with so many answers."""
        known, kind = self._works.get(work, _NOTHING), self._loads[node].kind
        others = [name for name in known.peaks if name != node and self._loads[name].kind == kind]
        return len(others) >= peers and known.prior(kind).answers >= answers

    def forget(self, node: str) -> None:
        self._loads.pop(node, None)
        self._ejected.pop(node, None)
        for work in self._works.values():
            work.peaks.pop(node, None)

    def _took(self, node: str, attempt: str, now_us: int) -> int:
        return now_us - self._loads[node].started.pop(attempt, now_us)

    def _work(self, name: str) -> Work:
        known = self._works.get(name)
        if known is None:
            known = self._works[name] = Work()
        self._works.move_to_end(name)
        if len(self._works) > MAX_WORKS:
            self._works.popitem(last=False)
        return known


_NOTHING: Final = Work()


def spared(eligible: Sequence[str], ejected: dict[str, Load]) -> frozenset[str]:
    """Those of *eligible* that are passed over because they are ejected: at most half of them, the worst first. So the
    least bad are used when too many fail at once: it is more likely that something else is wrong."""
    found = [node for node in eligible if node in ejected] if ejected else []
    most = len(eligible) // 2
    if len(found) > most:
        found.sort(key=lambda node: (-ejected[node].ejections, -ejected[node].ejected_until_us, node))
        found = found[:most]
    return frozenset(found)
