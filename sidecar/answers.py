"""How an attempt ended, as values that each protocol turns into its own words."""

from __future__ import annotations

from typing import Any

import msgspec

from edge.client import MAX_REPLY_BYTES
from sidecar.stream import Stream
from trust.verdict import Refusal


class Audit(msgspec.Struct, frozen=True):
    """Where the decision stands in the ledger."""

    origin: str
    index: int

    def __str__(self) -> str:
        return f"{self.origin}#{self.index}"


class Allowed(msgspec.Struct, frozen=True):
    """The upstream answered. Its body is either complete (``body``) or a ``stream``.
    ``approved``: the stored action of an approval ran; ``edited``: with arguments that people changed.
    ``trace``: how its node was chosen."""

    decision_id: str
    audit: Audit
    node: str
    status: int
    headers: dict[str, str]
    body: bytes
    stream: Stream | None
    approved: bool = False
    edited: bool = False
    trace: dict[str, Any] = {}

    async def read(self) -> bytes:
        """The complete body, however it comes; ConnectionError if it breaks or is too large to hold."""
        if self.stream is None:
            return self.body
        parts: list[bytes] = []
        size = 0
        async for part in self.stream:
            size += len(part)
            if size > MAX_REPLY_BYTES:
                await self.stream.aclose()
                raise ConnectionError(f"the answer has more than {MAX_REPLY_BYTES} bytes")
            parts.append(part)
        return b"".join(parts)


class Held(msgspec.Struct, frozen=True):
    """A person must decide. ``expires_at``: Unix seconds."""

    decision_id: str
    audit: Audit
    approval: str
    state: str
    action_digest: str
    expires_at: int
    sentences: tuple[str, ...] = ()


class Refused(msgspec.Struct, frozen=True):
    """No. ``audit`` is None only when the ledger itself could not be written."""

    decision_id: str
    audit: Audit | None
    refusal: Refusal


class Behind(Refused, frozen=True):
    """It was decided without knowing all that the agent did; now that is known."""


Answer = Allowed | Held | Refused
