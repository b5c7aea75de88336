"""The budget of second attempts: at most one for ten actions, so that retries cannot bring down what is overloaded."""

from __future__ import annotations

from typing import Final

SHARE: Final = 0.1
SAVED: Final = 10.0
"""What may be saved up while nothing goes wrong; also what there is at the start."""


class Budget:
    """Of one gateway."""

    def __init__(self) -> None:
        self._left = SAVED

    def earned(self) -> None:
        """An action was sent for the first time."""
        self._left = min(SAVED, self._left + SHARE)

    def spend(self) -> bool:
        """Whether there may be one more attempt."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
