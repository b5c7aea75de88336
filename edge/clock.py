"""Time and randomness: read here, passed on as arguments everywhere else."""

from __future__ import annotations

import os
import time
from functools import lru_cache
from typing import Final

from trust.trace import Trace, continued

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


_FIVE_BITS: Final = bytes(ord(_CROCKFORD[value & 31]) for value in range(256))
"""Turns random bytes into random Crockford digits, five bits of each."""
_POOL_BYTES: Final = 4096


class _Pool:
    """Random bytes, asked of the kernel by the page: a system call for each id costs more than the id."""

    def __init__(self) -> None:
        self._bytes = b""
        self._at = 0

    def take(self, count: int) -> bytes:
        if self._at + count > len(self._bytes):
            self._bytes, self._at = os.urandom(_POOL_BYTES), 0
        self._at += count
        return self._bytes[self._at - count : self._at]


_pool = _Pool()
os.register_at_fork(after_in_child=_pool.__init__)  # type: ignore[misc]


def new_id(prefix: str) -> str:
    """``<prefix>_<ULID>``: 48 bits of milliseconds, 80 random bits; sorts by time."""
    return f"{prefix}_{_moment(time.time_ns() // 1_000_000)}{_pool.take(16).translate(_FIVE_BITS).decode('ascii')}"


def id_at(prefix: str, milliseconds: int) -> str:
    """What :func:`new_id` made before this moment (Unix milliseconds) sorts before, and what it makes from then on
    behind."""
    return f"{prefix}_{_moment(milliseconds)}"


@lru_cache(maxsize=2)
def _moment(milliseconds: int) -> str:
    return "".join(_CROCKFORD[milliseconds >> shift & 31] for shift in range(45, -5, -5))


def new_trace(header: str | None) -> Trace:
    """Now, in the trace that a ``traceparent`` names, or in a new one."""
    return continued(header, _pool.take(24).hex(), time.time_ns())


def new_span(trace: Trace) -> Trace:
    """Another span below *trace*'s."""
    return Trace(trace.trace_id, _pool.take(8).hex(), trace.span_id, time.time_ns())


def new_nonce() -> str:
    """128 random bits, 32 hexadecimal digits."""
    return _pool.take(16).hex()
