"""Spans after the fact: marks are taken while something is done, and told when it is recorded and answered."""

from __future__ import annotations

import time
from typing import Final, Protocol

from trust.trace import Trace


class Marks:
    """When each part ended, in Unix nanoseconds; the first began at ``begin_ns``."""

    __slots__ = ("begin_ns", "parts")

    def __init__(self, begin_ns: int) -> None:
        self.begin_ns = begin_ns
        self.parts: list[tuple[str, int]] = []

    def at(self, part: str) -> None:
        """*part* ends now."""
        self.parts.append((part, time.time_ns()))


class _NoMarks(Marks):
    """Where nobody looks, nothing is kept."""

    __slots__ = ()

    def at(self, part: str) -> None:
        return


UNSEEN: Final = _NoMarks(0)
Attributes = dict[str, str | int | bool]


class Tracer(Protocol):
    """Tells spans to whoever collects them; never waits, never fails."""

    def marks(self, received_ns: int = 0) -> Marks:
        """For something that begins now, or began when it was received."""

    def told(self, name: str, trace: Trace, marks: Marks, attributes: Attributes, *, failed: bool) -> None:
        """One span with its parts below it; it is *trace*'s own span if that has one."""

    def close(self) -> None: ...


class NoTracer:
    """Nobody collects: the default."""

    def marks(self, received_ns: int = 0) -> Marks:
        return UNSEEN

    def told(self, name: str, trace: Trace, marks: Marks, attributes: Attributes, *, failed: bool) -> None:
        return

    def close(self) -> None:
        return
