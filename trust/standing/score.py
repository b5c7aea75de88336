"""Scores and their tiers. Scores are computed by the gateway from what it observed, never read from a caller."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

NEWCOMER: Final = 400
"""What an agent has of whom nothing is known."""

_TIERS: Final = (
    (900, "verified", 0),
    (700, "trusted", 1),
    (500, "standard", 2),
    (300, "probation", 3),
    (0, "untrusted", 4),
)


@dataclass(frozen=True, slots=True)
class Standing:
    """``score`` from 0 to 1000; ``tier`` and ``ring`` (0 is innermost) follow from it."""

    score: int
    tier: str = field(init=False)
    ring: int = field(init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.score <= 1000:
            raise ValueError(f"a score lies between 0 and 1000, not {self.score}")
        _, tier, ring = next(row for row in _TIERS if self.score >= row[0])
        object.__setattr__(self, "tier", tier)
        object.__setattr__(self, "ring", ring)
