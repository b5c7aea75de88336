"""Moments as people write them: how long ago, or a time."""

from __future__ import annotations

import datetime
import re
from typing import Final

_AGO: Final = re.compile(r"(\d{1,6})\s*(s|m|h|d|w)")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def parse(text: str, now_us: int) -> int:
    """``2h``, ``7d`` (before *now_us*), or ``2026-11-21``, ``2026-11-21T10:00`` (UTC unless it says otherwise), as Unix
    microseconds; :class:`ValueError` for anything else."""
    ago = _AGO.fullmatch(text.strip())
    if ago is not None:
        return max(0, now_us - int(ago[1]) * _SECONDS[ago[2]] * 1_000_000)
    try:
        found = datetime.datetime.fromisoformat(text.strip())
        return max(0, int((found if found.tzinfo else found.replace(tzinfo=datetime.UTC)).timestamp() * 1e6))
    except (ValueError, OverflowError):
        raise ValueError(
            f'"{text[:40]}": expected how long ago (90s, 30m, 2h, 7d, 1w) or a time (2026-11-21 or 2026-11-21T10:00, '
            "UTC)"
        ) from None
