"""Time and randomness: read here, passed on as arguments everywhere else."""

from __future__ import annotations

import os
import time
from typing import Final

_CROCKFORD: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


class SystemClock:
    """The machine's clocks."""

    def wall_us(self) -> int:
        return time.time_ns() // 1000

    def mono_ns(self) -> int:
        return time.monotonic_ns()

    def now(self) -> float:
        """Unix seconds."""
        return time.time()

    def mono(self) -> float:
        """Monotonic seconds, for ages and deadlines."""
        return time.monotonic()


def new_id(prefix: str) -> str:
    """``<prefix>_<ULID>``: 48 bits of milliseconds, 80 random bits; sorts by time."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    return f"{prefix}_" + "".join(_CROCKFORD[value >> shift & 31] for shift in range(125, -5, -5))


def new_nonce() -> str:
    """128 random bits, 32 hexadecimal digits."""
    return os.urandom(16).hex()
