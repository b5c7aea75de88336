"""Waiting longer each time that somebody says no: what is refused is recorded there, and would be for ever."""

from __future__ import annotations

from typing import Final

FIRST_S: Final = 0.5
LONGEST_S: Final = 60.0


class Backoff:
    """Seconds to wait after a refusal; :meth:`reset` after an answer."""

    def __init__(self) -> None:
        self._next = FIRST_S

    def next(self) -> float:
        """Twice as long as the time before, up to :data:`LONGEST_S`."""
        wait, self._next = self._next, min(self._next * 2, LONGEST_S)
        return wait

    def reset(self) -> None:
        self._next = FIRST_S
