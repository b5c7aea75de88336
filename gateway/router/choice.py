"""The choice of a node among the eligible. Pure: what is known of them, time and randomness are arguments.

Up to 32 eligible nodes are all looked at; of more, five that the seed draws, and the cheapest of those is taken: with
what each of five costs now, that is nearly as good as the best of a thousand, and no herd runs to one node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha512
from itertools import islice
from math import inf
from struct import unpack
from typing import Final

import msgspec

from gateway.router.cost import Seen, cost, predicted_us

LOOK_AT_ALL: Final = 32
DRAWN: Final = 5
LEFT_AT: Final = 2.0
"""Whatever would stick to a node goes elsewhere if that is so many times as dear as the best, unless it is there."""
EXPLORE_OF: Final = 100
"""One action of so many tries a node that is too slow for the objective, so that one that recovered is found again."""


class Objective(msgspec.Struct, frozen=True, gc=False):
    """Answer within ``slo_us`` (0: as soon as may be); ``strict``: or refuse."""

    slo_us: int = 0
    strict: bool = False


ASAP: Final = Objective()


class Looked(msgspec.Struct, frozen=True, gc=False):
    """One node that was looked at: its place among the eligible, what was known, what that costs."""

    at: int
    seen: Seen
    cost: float


class Choice(msgspec.Struct, frozen=True, gc=False):
    """``looked`` in the order in which they were looked at; ``chosen`` and ``runner_up`` are indexes into it. The
    former is -1 if the objective is strict and nobody meets it. ``why``: what decided."""

    seed: int
    among: int
    looked: tuple[Looked, ...]
    chosen: int
    runner_up: int
    why: str

    @property
    def node(self) -> str:
        return self.looked[self.chosen].seen.node


def draws(seed: int) -> tuple[int, ...]:
    """Eight numbers below 2^64 that the seed stands for; everybody can compute them again."""
    return unpack(">8Q", sha512(seed.to_bytes(8, "big")).digest())


def drawn(among: int, numbers: Sequence[int]) -> list[int]:
    """Five different places below *among* (Floyd's way), or all if there are at most 32."""
    if among <= LOOK_AT_ALL:
        return list(range(among))
    found: list[int] = []
    most = among - DRAWN
    for number in numbers:
        at = number % (most + 1)
        found.append(most if at in found else at)
        most += 1
    return found


def choose(
    eligible: Sequence[str],
    see: Callable[[str], Seen],
    seed: int,
    objective: Objective = ASAP,
    home: str = "",
    stays: bool = False,
) -> Choice:
    """One of *eligible*, which is not empty. *see* says what is known of a node now; *home*: the one of them where this
    belongs, if there is one; *stays*: what it belongs to is there already."""
    numbers = draws(seed)
    among = len(eligible)
    looked = []
    for at in drawn(among, numbers[2:7]):
        seen = see(eligible[at])
        looked.append(Looked(at, seen, cost(seen)))
    if home and all(one.seen.node != home for one in looked):
        seen = see(home)
        looked.append(Looked(eligible.index(home), seen, cost(seen)))
    if objective.slo_us and objective.strict and not any(_meets(one, objective) for one in looked):
        # Before anybody is told that nothing is fast enough, everything is looked at.
        every = (Looked(at, seen, cost(seen)) for at, seen in enumerate(map(see, eligible)))
        looked.extend(islice((one for one in every if _meets(one, objective)), LOOK_AT_ALL))
    return decide(seed, numbers, among, tuple(looked), objective, home, stays)


def decide(
    seed: int,
    numbers: Sequence[int],
    among: int,
    looked: tuple[Looked, ...],
    objective: Objective,
    home: str,
    stays: bool,
) -> Choice:
    """What follows from what was looked at; replaying a recorded choice calls this with what was recorded."""
    if not objective.slo_us and not home:
        chosen, runner_up = _two_cheapest(looked, numbers[1])
        return Choice(seed, among, looked, chosen, runner_up, "cheapest")
    candidates, why = list(range(len(looked))), "cheapest"
    if objective.slo_us:
        meeting = [at for at in candidates if _meets(looked[at], objective)]
        violating = [at for at in candidates if at not in meeting]
        if objective.strict and not meeting:
            return Choice(seed, among, looked, -1, -1, "nobody meets the objective")
        if meeting and violating and not objective.strict and numbers[0] % EXPLORE_OF == 0:
            candidates, why = violating, "explored"
        elif meeting:
            candidates, why = meeting, "cheapest that meets the objective"
        else:
            why = "cheapest, though nobody meets the objective"
    chosen, runner_up = _two_cheapest([looked[at] for at in candidates], numbers[1])
    chosen, runner_up = candidates[chosen], candidates[runner_up] if runner_up >= 0 else -1
    best = looked[chosen].cost
    for at in range(len(looked)) if stays else candidates:
        if looked[at].seen.node == home and (stays or looked[at].cost <= LEFT_AT * best):
            runner_up = chosen if at != chosen else runner_up
            chosen, why = at, "where it belongs"
            break
    return Choice(seed, among, looked, chosen, runner_up, why)


def _two_cheapest(looked: Sequence[Looked], number: int) -> tuple[int, int]:
    """The cheapest, equals by *number*, and the next, as indexes; -1 if there is no other."""
    first, second = 0, -1
    best, next_best = looked[0].cost, inf
    for at in range(1, len(looked)):
        costs = looked[at].cost
        if costs < best:
            first, second = at, first
            best, next_best = costs, best
        elif costs < next_best:
            second, next_best = at, costs
    if next_best == best:
        ties = [at for at, one in enumerate(looked) if one.cost == best]
        first = ties.pop(number % len(ties))
        second = ties[0]
    return first, second


def _meets(one: Looked, objective: Objective) -> bool:
    return predicted_us(one.seen) <= objective.slo_us
