"""Routing, simulated: a thousand nodes, some slow, some failing fast, some cold: ``python -m loadtests.simulate``.

Nothing of the router is simulated: each choice is made by the functions that the gateway uses, with the time of the
simulation. What is simulated is the nodes: each has slots and a queue, and takes a time from a heavy-tailed distribution.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from rich.console import Console
from rich.table import Table

from gateway.router.choice import choose
from gateway.router.measured import Measured, spared

NODES: Final = 1000
SLOTS: Final = 4
LOAD: Final = 0.70
MEAN_S: Final = 0.5
SIGMA: Final = 0.6
"""Of the lognormal distribution of how long work takes: its p99 is about 3.3 times its mean."""
SLOW_SHARE: Final = 0.10
SLOW_TIMES: Final = 10.0
FAILING_SHARE: Final = 0.02
FAILS_AFTER_S: Final = 0.005
COLD_SHARE: Final = 0.05
COLD_S: Final = 3.0
"""What is sent to cold nodes so soon after they joined is what their coldness can hurt."""
WORK: Final = "models/complete"


class Router(Protocol):
    """Whoever picks nodes. Times in seconds."""

    def join(self, node: int) -> None: ...
    def pick(self, now: float) -> int: ...
    def sent(self, node: int, action: int, now: float) -> None: ...
    def ended(self, node: int, action: int, now: float, failed: bool) -> None: ...


Make = Callable[[random.Random], Router]


class Ours:
    """The gateway's choice. Without *failures* a failure is an answer like others, and a fast one (a control)."""

    def __init__(self, chance: random.Random, *, failures: bool = True) -> None:
        self._chance = chance
        self._measured = Measured()
        self._nodes: list[str] = []
        self._open: tuple[int, int, list[str]] = (-1, -1, [])
        self._failures = failures

    def join(self, node: int) -> None:
        name = str(node)
        self._measured.know(name, "cloud", SLOTS, 1.0)
        self._nodes.append(name)

    def pick(self, now: float) -> int:
        now_us = int(now * 1e6)
        measured = self._measured
        ejected = measured.ejected(now_us)
        if self._open[:2] != (measured.ejections, len(self._nodes)):
            left_out = spared(self._nodes, ejected)
            nodes = [node for node in self._nodes if node not in left_out]
            self._open = (measured.ejections, len(self._nodes), nodes)
        choice = choose(self._open[2], measured.seer(WORK, now_us), self._chance.getrandbits(64))
        return int(choice.node)

    def sent(self, node: int, action: int, now: float) -> None:
        self._measured.started(str(node), str(action), int(now * 1e6))

    def ended(self, node: int, action: int, now: float, failed: bool) -> None:
        ended = self._measured.failed if failed and self._failures else self._measured.succeeded
        ended(str(node), str(action), WORK, int(now * 1e6))


class Eager(Ours):
    """The same, but whoever never answered costs nothing, as where averages begin at zero (a control)."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        self._new: dict[int, int] = {}

    def join(self, node: int) -> None:
        super().join(node)
        self._new[node] = 0

    def pick(self, now: float) -> int:
        return min(self._new, key=self._new.__getitem__) if self._new else super().pick(now)

    def sent(self, node: int, action: int, now: float) -> None:
        super().sent(node, action, now)
        if node in self._new:
            self._new[node] += 1

    def ended(self, node: int, action: int, now: float, failed: bool) -> None:
        super().ended(node, action, now, failed)
        self._new.pop(node, None)


class RoundRobin:
    """One after the other."""

    def __init__(self, _chance: random.Random) -> None:
        self._nodes: list[int] = []
        self._next = 0

    def join(self, node: int) -> None:
        self._nodes.append(node)

    def pick(self, now: float) -> int:
        self._next += 1
        return self._nodes[self._next % len(self._nodes)]

    def sent(self, node: int, action: int, now: float) -> None:
        return

    def ended(self, node: int, action: int, now: float, failed: bool) -> None:
        return


class LeastOfTwo:
    """The one of two drawn with fewer requests outstanding: what most proxies do."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._nodes: list[int] = []
        self._outstanding: dict[int, int] = {}

    def join(self, node: int) -> None:
        self._nodes.append(node)
        self._outstanding[node] = 0

    def pick(self, now: float) -> int:
        return min(self._chance.sample(self._nodes, 2), key=self._outstanding.__getitem__)

    def sent(self, node: int, action: int, now: float) -> None:
        self._outstanding[node] += 1

    def ended(self, node: int, action: int, now: float, failed: bool) -> None:
        self._outstanding[node] -= 1


class LowestLatency:
    """The one with the lowest moving average of its answers: everybody runs there at once."""

    def __init__(self, _chance: random.Random) -> None:
        self._average: dict[int, float] = {}
        self._began: dict[int, float] = {}
        self._heap: list[tuple[float, int]] = []

    def join(self, node: int) -> None:
        self._average[node] = 0.0
        heapq.heappush(self._heap, (0.0, node))

    def pick(self, now: float) -> int:
        while self._heap[0][0] != self._average[self._heap[0][1]]:
            heapq.heappop(self._heap)
        return self._heap[0][1]

    def sent(self, node: int, action: int, now: float) -> None:
        self._began[action] = now

    def ended(self, node: int, action: int, now: float, failed: bool) -> None:
        took = now - self._began.pop(action)
        self._average[node] += 0.2 * (took - self._average[node])
        heapq.heappush(self._heap, (self._average[node], node))


@dataclass
class _Node:
    times: float = 1.0
    failing: bool = False
    cold: bool = False
    busy: int = 0
    queue: deque[int] = field(default_factory=deque)


@dataclass
class Result:
    """Latencies in seconds, in the order of arrival, of what began after the warm-up."""

    steady: list[float]
    cold: list[float]
    errors: int
    unfinished: int

    def p(self, share: float, of: list[float] | None = None) -> float:
        found = sorted(self.steady if of is None else of)
        return found[min(len(found) - 1, int(share * len(found)))] if found else math.nan


def simulate(
    make: Callable[[random.Random], Router],
    *,
    seed: int = 1,
    seconds: float = 60.0,
    warm_s: float = 20.0,
    routers: int = 1,
) -> Result:
    """A thousand nodes at 70 % of what they can do; the cold ones join half-way."""
    chance = random.Random(seed)
    nodes = [_Node() for _ in range(NODES)]
    order = list(range(NODES))
    chance.shuffle(order)
    slow, failing = int(NODES * SLOW_SHARE), int(NODES * FAILING_SHARE)
    for at in order[:slow]:
        nodes[at].times = SLOW_TIMES
    for at in order[slow : slow + failing]:
        nodes[at].failing = True
    for at in order[slow + failing : slow + failing + int(NODES * COLD_SHARE)]:
        nodes[at].cold = True
    rate = LOAD * sum(SLOTS / (MEAN_S * n.times) for n in nodes if not n.failing and not n.cold)
    using = [make(random.Random(seed * 100 + number)) for number in range(routers)]
    for router in using:
        for at, node in enumerate(nodes):
            if not node.cold:
                router.join(at)
    mu = math.log(MEAN_S) - SIGMA * SIGMA / 2
    began: list[float] = []
    where: list[int] = []
    by: list[int] = []
    took: list[float] = []
    failed: list[bool] = []
    ends: list[tuple[float, int]] = []
    arrival, joined, total = chance.expovariate(rate), False, warm_s + seconds
    half = warm_s + seconds / 2

    def serve(action: int, now: float) -> None:
        node = nodes[where[action]]
        takes = FAILS_AFTER_S if node.failing else chance.lognormvariate(mu, SIGMA) * node.times
        node.busy += 1
        heapq.heappush(ends, (now + takes, action))

    limit = total + 120.0
    while arrival < total or ends:
        if arrival < total and (not ends or arrival <= ends[0][0]):
            now = arrival
            if not joined and now >= half:
                joined = True
                for router in using:
                    for at, node in enumerate(nodes):
                        if node.cold:
                            router.join(at)
            number = chance.randrange(routers) if routers > 1 else 0
            picked = using[number].pick(now)
            action = len(began)
            began.append(now)
            where.append(picked)
            by.append(number)
            took.append(-1.0)
            failed.append(nodes[picked].failing)
            using[number].sent(picked, action, now)
            if nodes[picked].busy < SLOTS:
                serve(action, now)
            else:
                nodes[picked].queue.append(action)
            arrival += chance.expovariate(rate)
        else:
            now, action = heapq.heappop(ends)
            if now > limit:
                break
            node = nodes[where[action]]
            node.busy -= 1
            took[action] = now - began[action]
            using[by[action]].ended(where[action], action, now, failed[action])
            if node.queue:
                serve(node.queue.popleft(), now)
    counted = [at for at, when in enumerate(began) if when >= warm_s]
    # What has not ended when the simulation does took at least until then.
    latency = [took[at] if took[at] >= 0 else limit - began[at] for at in range(len(began))]
    return Result(
        steady=[latency[at] for at in counted if not failed[at] and not nodes[where[at]].cold],
        cold=[latency[at] for at in counted if nodes[where[at]].cold and began[at] < half + COLD_S],
        errors=sum(failed[at] for at in counted),
        unfinished=sum(took[at] < 0 for at in counted),
    )


class Gate(NamedTuple):
    """What must hold, and whether it does."""

    what: str
    must: str
    found: str
    holds: bool


RIVALS: Final[dict[str, Make]] = {
    "least requests of two": LeastOfTwo,
    "round robin": RoundRobin,
    "lowest latency": LowestLatency,
}
CRIPPLED: Final[dict[str, Make]] = {
    "licet, deaf to failures": lambda chance: Ours(chance, failures=False),
    "licet, new nodes cost nothing": Eager,
}
"""Negative controls, with the rivals: a gate that all of them pass would measure nothing."""


def gates(ours: Result, two: Result, robin: Result) -> list[Gate]:
    """The design's."""
    p99, cold = ours.p(0.99), ours.p(0.99, ours.cold)
    share = ours.errors / (len(ours.steady) + ours.errors)
    half, tenth = two.p(0.99) / 2, robin.p(0.99) / 10
    return [
        Gate("p99 beside two", f"<= {half:.2f} s, half of least requests of two", f"{p99:.2f} s", p99 <= half),
        Gate("p99 beside round robin", f"<= {tenth:.2f} s, a tenth of it", f"{p99:.2f} s", p99 <= tenth),
        Gate("p99 of nodes that joined cold", f"<= {1.5 * p99:.2f} s, 1.5 x", f"{cold:.2f} s", cold <= 1.5 * p99),
        Gate("errors of nodes that fail fast", "< 0.1 %", f"{100 * share:.3f} %", share < 0.001),
        Gate("unfinished", "0", str(ours.unfinished), not ours.unfinished),
    ]


PICTURE: Final = Path("docs/routing.png")
ROUTERS: Final = (1, 2, 4, 8, 32)


def draw(path: Path, by_name: dict[str, Result], by_routers: dict[int, Result]) -> None:
    """How many take longer than what, for each way to choose; and what independent routers lose."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.6), layout="constrained", width_ratios=(3, 2))
    for name, result in by_name.items():
        found = sorted(result.steady)
        step = max(1, len(found) // 2000)
        shown = found[::step]
        left.plot(shown, [1 - at * step / len(found) for at in range(len(shown))], label=name, linewidth=1.8)
    left.set(xscale="log", yscale="log", xlabel="seconds", ylabel="share that takes longer", ylim=(1e-3, 1))
    left.set_title(f"{NODES} nodes at {LOAD:.0%}: 10 % ten times slow, 2 % fail fast, 5 % join cold", fontsize=10)
    left.grid(color="0.92")
    left.legend(frameon=False, fontsize=9)
    right.plot(list(by_routers), [result.p(0.99) for result in by_routers.values()], marker="o", label="p99")
    right.plot(list(by_routers), [result.p(0.5) for result in by_routers.values()], marker="o", label="p50")
    right.set(xscale="log", xlabel="independent routers", ylabel="seconds", ylim=(0, None))
    right.set_xticks(list(by_routers), [str(number) for number in by_routers])
    right.set_title("each router knows only what it sent itself", fontsize=10)
    right.grid(color="0.92")
    right.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the simulation, after its warm-up")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    asked = parser.parse_args()

    def run(make: Make, routers: int = 1) -> Result:
        return simulate(make, seed=asked.seed, seconds=asked.seconds, routers=routers)

    found = {"licet": run(Ours), **{name: run(make) for name, make in RIVALS.items()}}
    crippled = {name: run(make) for name, make in CRIPPLED.items()}
    routers = {number: found["licet"] if number == 1 else run(Ours, number) for number in ROUTERS}
    table = Table("chosen by", "p50 s", "p99 s", "cold p99 s", "errors %", "unfinished")
    several = {f"licet, {number} routers": result for number, result in routers.items() if number > 1}
    for name, result in {**found, **crippled, **several}.items():
        errors = 100 * result.errors / (len(result.steady) + result.errors)
        figures = (result.p(0.5), result.p(0.99), result.p(0.99, result.cold), errors)
        table.add_row(name, *(f"{figure:.3f}" for figure in figures), str(result.unfinished))
    console = Console(width=120)
    console.print(table)
    two, robin = found["least requests of two"], found["round robin"]
    held = gates(found["licet"], two, robin)
    for gate in held:
        console.print(f"{'holds ' if gate.holds else 'MISSED'}  {gate.what}: {gate.found} (must be {gate.must})")
    blunt = {gate.what for gate in held}
    for name, result in {**{rival: found[rival] for rival in RIVALS}, **crippled}.items():
        missed = [gate.what for gate in gates(result, two, robin) if not gate.holds]
        blunt -= set(missed)
        console.print(f"negative control, {name}: misses {', '.join(missed) or 'nothing'}")
    if blunt:
        console.print(f"MEASURES NOTHING: {', '.join(blunt)}, which every control passes")
    draw(asked.picture, found, routers)
    console.print(f"picture: {asked.picture}")
    sys.exit(bool(blunt) or not all(gate.holds for gate in held))


if __name__ == "__main__":
    main()
