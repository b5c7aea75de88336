"""What this node has done, by the id of the action: asked for once more, it answers again and does nothing twice.

A gateway that lost an answer asks again with another ticket for the same action. Within one life of this process that
is answered from here; a node that began anew has another epoch, and is not asked.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Final

import msgspec

from sidecar.node.upstream import Replied
from trust.reasons import Reason, Unverifiable

KEEP_S: Final = 180.0
"""Longer than a gateway asks again."""
MAX_DONE: Final = 20_000
MAX_KEPT_BYTES: Final = 64 << 20
MAX_ANSWER_BYTES: Final = 4 << 20
"""Larger answers, and streams, are not kept: asked again, the node says that it cannot tell them again."""


class _Done(msgspec.Struct):
    """``answer`` is there once it ended, if it could be kept."""

    payload: str
    until: float
    ended: asyncio.Event
    answer: Replied | None = None


class Done:
    """Of one node, in memory. *now* arguments are monotonic seconds."""

    def __init__(self) -> None:
        self._by_action: OrderedDict[str, _Done] = OrderedDict()
        self._bytes = 0

    def knows(self, action: str, payload: str) -> bool:
        """Whether the action was begun here before; :class:`Unverifiable` if it was with other bytes."""
        known = self._by_action.get(action)
        if known is not None and known.payload != payload:
            raise Unverifiable(Reason.TICKET_INVALID, "this action was begun with other bytes")
        return known is not None

    def begin(self, action: str, payload: str, now: float) -> None:
        """From here on it may have happened."""
        self._forget(now)
        self._by_action[action] = _Done(payload, now + KEEP_S, asyncio.Event())

    def ended(self, action: str, answer: Replied | None) -> None:
        """How it ended: with a complete *answer*, or with none that could be told again. Only the first time counts."""
        known = self._by_action.get(action)
        if known is None or known.ended.is_set():
            return
        if answer is not None and len(answer.body) <= MAX_ANSWER_BYTES:
            known.answer = answer
            self._bytes += len(answer.body)
        known.ended.set()

    async def again(self, action: str) -> Replied:
        """What it answered; waits for that if it still runs. :class:`Unverifiable` (``outcome_unknown``) if that cannot
        be told again."""
        known = self._by_action[action]
        await known.ended.wait()
        if known.answer is None:
            raise Unverifiable(Reason.OUTCOME_UNKNOWN, "this was begun before, and its answer cannot be told again")
        return known.answer

    def _forget(self, now: float) -> None:
        while self._by_action:
            action, oldest = next(iter(self._by_action.items()))
            full = len(self._by_action) > MAX_DONE or self._bytes > MAX_KEPT_BYTES
            if not oldest.ended.is_set() or (oldest.until > now and not full):
                return
            del self._by_action[action]
            self._bytes -= len(oldest.answer.body) if oldest.answer is not None else 0
