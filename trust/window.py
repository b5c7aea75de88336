"""Counts over the last minute, hour or day: in parts, so that old ones fade and nothing is forgotten early."""

from __future__ import annotations

from typing import Final

import msgspec

MINUTE: Final = 60
HOUR: Final = 3600
DAY: Final = 86_400
BUCKETS: Final = 60


class Window(msgspec.Struct):
    """Counts of the last *span_s* seconds, in :data:`BUCKETS` parts; never less than the true count. They may be told
    in any order."""

    span_s: int
    counts: dict[int, int] = {}
    total: int = 0
    oldest: int = 0

    def add(self, now: float, amount: int = 1) -> None:
        """So many more at *now* (Unix seconds)."""
        self.put(int(now * BUCKETS / self.span_s), amount)

    def put(self, bucket: int, amount: int) -> None:
        """So many more in one part: of the Unix seconds that begin at ``bucket * span_s / BUCKETS``."""
        if bucket < self.oldest:
            return
        self.counts[bucket] = self.counts.get(bucket, 0) + amount
        self.total += amount

    def count(self, now: float) -> int:
        """How many until *now*."""
        oldest = int(now * BUCKETS / self.span_s) - BUCKETS
        if oldest > self.oldest:
            self.oldest = oldest
            for bucket in [one for one in self.counts if one < oldest]:
                self.total -= self.counts.pop(bucket)
        return self.total
