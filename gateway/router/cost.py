"""What a node costs an action now: how long it takes there, times how much waits there. Pure.

cost = max(E, age of the oldest in flight) · (outstanding + 1) / (slots · weight), where
E = prior + (peak - prior) · exp(-age / 30 s).

``prior`` is what the node's class takes for this work, so a node that nobody has tried yet is neither the cheapest nor
feared; ``peak`` is a peak-sensitive moving average (Finagle's): it jumps up with a slow answer and comes down with many
fast ones. The age of the oldest in flight sees a node that hangs before it has answered. Failures count as slow.
Everything is whole microseconds, so that a recorded choice computes to the same costs again.
"""

from __future__ import annotations

from math import exp
from typing import Final

import msgspec

FORGET_US: Final = 30_000_000.0
"""A node's own measurements fade towards its class's with this time."""
AVERAGE_US: Final = 10_000_000.0
"""How slowly a peak comes down under fast answers."""
FAILED_TIMES: Final = 10
"""A failure counts as an answer that took so many times what was expected."""
LEAST_US: Final = 1.0
"""Nothing takes no time, so whatever waits on a node counts."""
FIRST_PRIOR_US: Final = 100_000
"""Of a class of which nothing was ever measured."""
PRIOR_OF: Final = 256
"""A class's prior is the mean of about so many answers."""


class Seen(msgspec.Struct, frozen=True, gc=False):
    """What was known of one node in the moment of a choice. ``weight_milli``: thousandths; ``oldest_us``: age of its
    oldest work in flight; ``age_us``: since its peak was measured."""

    node: str
    slots: int
    weight_milli: int
    outstanding: int
    oldest_us: int
    peak_us: int
    age_us: int
    prior_us: int


class Peak(msgspec.Struct, frozen=True, gc=False):
    """A peak-sensitive moving average, and when (monotonic microseconds) it was moved."""

    us: int
    at_us: int


class Prior(msgspec.Struct, frozen=True, gc=False):
    """What a class of nodes takes for one kind of work, out of so many answers."""

    us: int = FIRST_PRIOR_US
    answers: int = 0


def expected_us(seen: Seen) -> float:
    """E: how long this work takes on the node when nothing waits there."""
    return max(LEAST_US, seen.prior_us + (seen.peak_us - seen.prior_us) * exp(-seen.age_us / FORGET_US))


def cost(seen: Seen) -> float:
    """The lower the better; comparable among nodes for one kind of work only."""
    takes = seen.prior_us + (seen.peak_us - seen.prior_us) * exp(-seen.age_us / FORGET_US)
    if seen.oldest_us > takes:
        takes = seen.oldest_us
    if takes < LEAST_US:
        takes = LEAST_US
    return takes * (seen.outstanding + 1) * 1000.0 / (seen.slots * seen.weight_milli)


def predicted_us(seen: Seen) -> float:
    """When the answer can be expected: beyond its slots work waits."""
    takes = max(expected_us(seen), seen.oldest_us)
    return takes * max(1.0, (seen.outstanding + 1) / seen.slots)


def moved(peak: Peak | None, prior: Prior, took_us: int, now_us: int, *, failed: bool = False) -> Peak:
    """The peak after one more answer. The very first of a kind of work is all that is known of it."""
    if peak is None:
        peak = Peak(prior.us if prior.answers or failed else took_us, now_us)
    faded = prior.us + (peak.us - prior.us) * exp(-(now_us - peak.at_us) / FORGET_US)
    if failed:
        took_us = max(took_us, int(FAILED_TIMES * max(faded, prior.us)))
    if took_us >= faded:
        return Peak(took_us, now_us)
    kept = exp(-max(now_us - peak.at_us, took_us) / AVERAGE_US)
    return Peak(int(faded * kept + took_us * (1 - kept)), now_us)


def learned(prior: Prior, took_us: int) -> Prior:
    """The prior after one more answer that was no failure."""
    answers = min(prior.answers + 1, PRIOR_OF)
    return Prior(prior.us + (took_us - prior.us) // answers, answers)
