"""The score, from 0 to 1000: beta reputation over decaying evidence, and the tiers that are climbed slowly.

``score = min(cap, 1000 * (r + v + W*a) / (r + v + s + W))``, rounded down, with r earned evidence, s negative evidence
and v what others vouch for; W = 20 is the weight of the prior, a = 0.40 its share, so that a newcomer has 400. All
evidence is in thousandths. Nothing here reads a clock, and nothing that reads a score changes it.

Source: Josang and Ismail, "The beta reputation system", 2002.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from trust.standing import decay
from trust.standing.decay import DAY_S, NOTHING, Total

EARNED_HALF_LIFE: Final = 30
NEGATIVE_HALF_LIFE: Final = 90
PRIOR_WEIGHT: Final = 20_000
PRIOR: Final = 8_000
NEWCOMER: Final = 1000 * PRIOR // PRIOR_WEIGHT
HIGHEST: Final = 1000
CRITICAL_CAP: Final = 299
"""After a critical event, until a person clears it."""
GRANTED_FROM: Final = 900
"""From here on it needs attestation and a person's grant."""
VOUCHED_POINTS: Final = 100
CLIMB_MARGIN: Final = 20
CLIMB_S: Final = DAY_S
"""Going up needs a score of the threshold and the margin for this long; going down is immediate."""


class Tier(msgspec.Struct, frozen=True):
    """One row of the table of tiers. ``ring`` 0 is innermost."""

    name: str
    threshold: int
    ring: int


TIERS: Final = (
    Tier("untrusted", 0, 4),
    Tier("probation", 300, 3),
    Tier("standard", 500, 2),
    Tier("trusted", 700, 1),
    Tier("verified", 900, 0),
)


def level_of(score: int) -> int:
    """The highest tier, as its place in :data:`TIERS`, whose threshold *score* reaches."""
    return sum(score >= tier.threshold for tier in TIERS) - 1


class Standing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a decision may know. ``level`` is the place of the tier in :data:`TIERS`; it lags behind a rising score."""

    score: Annotated[int, msgspec.Meta(ge=0, le=HIGHEST)]
    level: Annotated[int, msgspec.Meta(ge=0, le=len(TIERS) - 1)]

    @property
    def tier(self) -> str:
        return TIERS[self.level].name

    @property
    def ring(self) -> int:
        return TIERS[self.level].ring

    @classmethod
    def at_once(cls, score: int) -> Standing:
        """For cases and tests: the tier that *score* has once it has held."""
        if not 0 <= score <= HIGHEST:
            raise ValueError(f"a score lies between 0 and {HIGHEST}, not {score}")
        return cls(score, level_of(score))


LOWEST: Final = Standing(0, 0)


def lowest(standings: list[Standing]) -> Standing:
    """The standing of a chain: its lowest score and its lowest tier. Of nobody: the lowest there is."""
    if not standings:
        return LOWEST
    return Standing(min(s.score for s in standings), min(s.level for s in standings))


class Stake(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Earned evidence that *voucher* stakes for *target*, until the end of a day. ``total`` is its weighed sum."""

    voucher: str
    target: str
    total: Total
    until_day: int


class Book(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is held for and against one agent. ``today`` and what follows it count within ``day`` only.

    ``level`` and ``rising_s`` (Unix seconds since when the next tier has been in reach; 0: it is not) hold at
    ``at_s``; :func:`climbed` says how they are later. ``repeats`` counts refusals by policy and resource.
    """

    agent: str
    principal: str
    earned: Total = NOTHING
    negative: Total = NOTHING
    critical: bool = False
    granted: bool = False
    day: int = 0
    today: tuple[int, ...] = (0, 0, 0, 0)
    repeats: dict[str, int] = {}
    given: tuple[Stake, ...] = ()
    received: tuple[Stake, ...] = ()
    level: int = 1
    rising_s: int = 0
    at_s: int = 0


def earned(book: Book, day: int) -> int:
    """Earned evidence on *day*, less what is staked for others."""
    total = book.earned
    for stake in active(book.given, day):
        total = decay.minus(total, stake.total)
    return decay.left(total, EARNED_HALF_LIFE, day)


def vouched(book: Book, day: int) -> int:
    """Evidence that others lend: half of what they stake."""
    return sum(decay.left(stake.total, EARNED_HALF_LIFE, day) // 2 for stake in active(book.received, day))


def active(stakes: tuple[Stake, ...], day: int) -> list[Stake]:
    return [stake for stake in stakes if day < stake.until_day]


def score(book: Book, day: int) -> int:
    """The score on *day*."""
    r, s = earned(book, day), decay.left(book.negative, NEGATIVE_HALF_LIFE, day)
    alone = _ratio(r, s)
    lifted = min(_ratio(r + vouched(book, day), s), alone + VOUCHED_POINTS)
    return min(cap(book), lifted)


def _ratio(positive: int, negative: int) -> int:
    return HIGHEST * (positive + PRIOR) // (positive + negative + PRIOR_WEIGHT)


def cap(book: Book) -> int:
    """What the score cannot pass, whatever was earned."""
    if book.critical:
        return CRITICAL_CAP
    return HIGHEST if book.granted else GRANTED_FROM - 1


def climbed(book: Book, now_s: int) -> Book:
    """*book* with its tier as it is at *now_s*, if nothing happened since: scores change at midnight only."""
    level, rising, at = book.level, book.rising_s, book.at_s
    while True:
        midnight = (at // DAY_S + 1) * DAY_S
        end = min(midnight, now_s)
        level, rising = _through(level, rising, score(book, decay.day_of(at)), at, end)
        if end >= now_s:
            return msgspec.structs.replace(book, level=level, rising_s=rising, at_s=max(book.at_s, now_s))
        at = end


def _through(level: int, rising: int, held: int, begin: int, end: int) -> tuple[int, int]:
    """Tier and since when the next is in reach, after a time in which the score was *held*."""
    reached = level_of(held)
    if reached < level:
        level, rising = reached, 0
    while level + 1 < len(TIERS) and held >= TIERS[level + 1].threshold + CLIMB_MARGIN:
        rising = rising or begin
        if rising + CLIMB_S > end:
            return level, rising
        level, begin, rising = level + 1, rising + CLIMB_S, 0
    return level, 0


def standing(book: Book, now_s: int) -> Standing:
    """What a decision at *now_s* may know of the agent."""
    return Standing(score(book, decay.day_of(now_s)), climbed(book, now_s).level)
