"""Waiting longer each time that somebody says no: what is refused is recorded there, and would be for ever.

Only a refusal of who asks counts as one: an outage, or a policy that is not there yet, ends at any moment.
"""

from __future__ import annotations

from typing import Final

FIRST_S: Final = 0.5
LONGEST_S: Final = 60.0


REFUSED: Final = frozenset({401, 403, 409})
"""HTTP statuses that say no to whoever asks, and will again."""


class Backoff:
    """Seconds to wait after a refusal; :meth:`reset` after an answer."""

    def __init__(self) -> None:
        self._next = FIRST_S

    def after(self, status: int, otherwise: float) -> float:
        """Seconds to wait after an answer with this *status*; *otherwise*, if it was no refusal."""
        return self.next() if status in REFUSED else otherwise

    def next(self) -> float:
        """Twice as long as the time before, up to :data:`LONGEST_S`."""
        wait, self._next = self._next, min(self._next * 2, LONGEST_S)
        return wait

    def reset(self) -> None:
        self._next = FIRST_S
