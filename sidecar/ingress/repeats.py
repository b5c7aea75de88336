"""Idempotency keys: an action that was sent again under its key is answered again and not done again.

That a key was used is remembered for a day, never less, and outlives a restart, because intents carry it. The
answers themselves are kept in memory, the last thousand. What provably did not happen frees its key.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from sidecar.answers import Allowed, Answer, Held
from trust.reasons import NOTHING_HAPPENED, Reason, Unverifiable, visible

MAX_KEYS: Final = 100_000
"""Used within a day. Further ones are refused: a key that was forgotten early would let its action happen twice."""
MAX_ANSWERS: Final = 1000
KEEP_S: Final = 86_400
MAX_ANSWER_BYTES: Final = 256 << 10
_KEY: Final = re.compile(r"[\x21-\x7e]{1,128}")


class Told(msgspec.Struct, frozen=True):
    """An answer as it went out."""

    status: int
    headers: dict[str, str]
    body: bytes


class _Used(msgspec.Struct):
    digest: str
    at: float
    told: asyncio.Future[Told] | None


class Repeats:
    """Of one sidecar, and so of one agent."""

    def __init__(self, used_before: dict[str, float], now: Callable[[], float]) -> None:
        self._now = now
        self._used: OrderedDict[str, _Used] = OrderedDict(
            (key, _Used("", at, None)) for key, at in sorted(used_before.items(), key=lambda item: item[1])
        )
        self._answered: deque[_Used] = deque()

    async def once(self, key: str, digest: str, do: Callable[[], Awaitable[tuple[Answer, Told]]]) -> Told:
        """What *do* answers; or what it answered before to the same *key* and *digest* of the request."""
        if _KEY.fullmatch(key) is None:
            wrong = f'idempotency_key "{visible(key, 60)}": expected 1 to 128 visible ASCII characters'
            raise Unverifiable(Reason.MALFORMED_REQUEST, wrong)
        self._forget_old()
        known = self._used.get(key)
        if known is not None:
            return await self._again(key, digest, known)
        if len(self._used) >= MAX_KEYS:
            raise Unverifiable(Reason.OVERLOADED, f"{MAX_KEYS} idempotency keys were used within a day")
        told: asyncio.Future[Told] = asyncio.get_running_loop().create_future()
        mine = self._used[key] = _Used(digest, self._now(), told)
        try:
            answer, response = await do()
        except BaseException:
            # Whether it happened is in the ledger; whoever asks again is told that the key was used.
            told.cancel()
            mine.told = None
            raise
        told.set_result(response)
        if not _may_have_happened(answer):
            self._used.pop(key, None)
        elif len(response.body) > MAX_ANSWER_BYTES:
            mine.told = None
        else:
            self._keep_answer(mine)
        return response

    def _keep_answer(self, used: _Used) -> None:
        self._answered.append(used)
        if len(self._answered) > MAX_ANSWERS:
            self._answered.popleft().told = None

    async def _again(self, key: str, digest: str, known: _Used) -> Told:
        if known.told is None:
            raise Unverifiable(Reason.REPLAYED, f"{visible(key)} was used before, and its answer is not kept any more")
        if known.digest != digest:
            raise Unverifiable(Reason.REPLAYED, f"{visible(key)} was used for another action")
        try:
            return await asyncio.shield(known.told)
        except asyncio.CancelledError:
            if known.told is None or known.told.cancelled():
                unheard = f"{visible(key)} was used before, and nobody heard the end"
                raise Unverifiable(Reason.REPLAYED, unheard) from None
            raise

    def _forget_old(self) -> None:
        """Those of more than a day ago, the oldest first; but never one whose action is not answered yet."""
        over = self._now() - KEEP_S
        while self._used:
            key, oldest = next(iter(self._used.items()))
            if oldest.at >= over or (oldest.told is not None and not oldest.told.done()):
                return
            del self._used[key]


def _may_have_happened(answer: Answer) -> bool:
    if isinstance(answer, Allowed):
        return True
    return not isinstance(answer, Held) and answer.refusal.reason not in NOTHING_HAPPENED
