"""Evidence that halves with time, in whole numbers: the same sums on every machine, in whatever order they were made.

Instead of shrinking what is old, what is new is weighed more (forward decay): evidence of day *d* is added as
``milli * weight(d)``, where ``weight`` doubles with each half-life, and what is left on day *n* is the sum divided by
``weight(n)``, rounded down. A sum has no history: adding in another order, or reading in between, changes nothing.
The weights within one half-life are the integer table ``floor(2^(32 + i/half_life))``.

Source: Cormode, Shkapenyuk, Srivastava, Xu, "Forward decay", 2009. A day is 86,400 s of Unix time; day 0 is 2026-01-01.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

SCALE_BITS: Final = 32
DAY_S: Final = 86_400
FIRST_DAY: Final = 20_454
"""2026-01-01 in days of Unix time: weights count from here, so that they stay small."""

Total = str
"""A weighed sum in hexadecimal: it outgrows the integers that JSON readers agree on."""
NOTHING: Final[Total] = "0"


@lru_cache(maxsize=8)
def table(half_life: int) -> tuple[int, ...]:
    """``floor(2^(32 + i/half_life))`` for each day *i* of one half-life."""
    return tuple(_root((1 << (SCALE_BITS * half_life)) << i, half_life) for i in range(half_life))


def _root(value: int, degree: int) -> int:
    """The largest integer whose *degree*-th power is at most *value*."""
    low, high = 1, 1 << (value.bit_length() // degree + 1)
    while low < high:
        middle = (low + high + 1) >> 1
        low, high = (middle, high) if middle**degree <= value else (low, middle - 1)
    return low


def day_of(seconds: float) -> int:
    """The day of a moment in Unix seconds; whatever lies before day 0 counts as day 0."""
    return max(0, int(seconds // DAY_S) - FIRST_DAY)


@lru_cache(maxsize=64)
def weight(half_life: int, day: int) -> int:
    """What one unit of evidence of *day* weighs."""
    return table(half_life)[day % half_life] << (day // half_life)


def add(total: Total, milli: int, half_life: int, day: int) -> Total:
    """*total* with *milli* thousandths of evidence of *day*."""
    return plus(total, weighed(milli, half_life, day))


def weighed(milli: int, half_life: int, day: int) -> Total:
    """*milli* thousandths of evidence of *day* as a sum of their own."""
    return f"{milli * weight(half_life, day):x}"


def plus(one: Total, other: Total) -> Total:
    return f"{int(one, 16) + int(other, 16):x}"


def minus(one: Total, other: Total) -> Total:
    """What is left, never below nothing."""
    return f"{max(0, int(one, 16) - int(other, 16)):x}"


def left(total: Total, half_life: int, day: int) -> int:
    """Thousandths of evidence that *total* is worth on *day*, rounded down."""
    return int(total, 16) // weight(half_life, day)
