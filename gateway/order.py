"""The one order of changes that several gateways share: each change has a turn, and who has the turn decides alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

import msgspec

from trust.ledger.writer import LedgerUnavailable

PAGE: Final = 1000
"""Of so many changes at most is told at once."""


class OrderUnavailable(LedgerUnavailable):
    """The order cannot be reached or not be believed, so nothing may be decided."""


class OrderDamaged(OrderUnavailable):
    """What the order says contradicts what was there before, or was not written by a gateway of this mesh."""


class OrderIncomplete(OrderDamaged):
    """Changes are missing that this gateway does not have itself."""


class Change(msgspec.Struct, frozen=True):
    """One change of state: ``body`` is the exact entry that stands at ``seq`` of the log ``origin``."""

    turn: int
    origin: str
    seq: int
    body: bytes

    @property
    def mark(self) -> str:
        """Which change this is."""
        return f"{self.origin}#{self.seq}"


class Order(Protocol):
    """What an engine has to do. One caller at a time. All but :meth:`close` raise :class:`OrderUnavailable`.

    Between :meth:`take` and :meth:`give` nobody else publishes. Who falls silent while it has the turn loses it, and
    what it publishes then is refused.
    """

    name: str
    """Which order this is; another database is another one."""

    async def open(self, wake: Callable[[], None]) -> None:
        """Be ready; *wake* is called when somebody published, though not always."""

    async def take(self, after: int) -> Sequence[Change]:
        """Get the turn; some of the changes from turn *after* on, that one included if there is one, in order."""

    async def news(self, after: int) -> Sequence[Change]:
        """The same changes without the turn."""

    async def publish(self, change: Change) -> None:
        """Make *change* durable as the next; the caller has the turn. When this fails it may have been done all the
        same: whoever has the turn next sees it, or it never was."""

    async def give(self) -> None:
        """Let others have the turn."""

    async def found(self, changes: Sequence[Change]) -> bool:
        """Be an order that begins with *changes*, if there is none yet; whether that was so."""

    async def head(self) -> int:
        """The turn of the last change, or 0."""

    async def published(self, origin: str) -> int:
        """The index of the last change of the log *origin*, or -1."""

    async def keep(self, kind: str, name: str, data: bytes) -> None:
        """Have *data* durably under a name; what is there already stays."""

    async def fetch(self, kind: str, name: str) -> bytes | None:
        """What was kept, or None."""

    async def drop(self, kind: str, name: str) -> None:
        """Forget what was kept."""

    async def close(self) -> None: ...
