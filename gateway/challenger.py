"""Asking a node for something that only the holder of its key can show, and how long that took."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from edge.client import Broken, Unreachable
from edge.clock import SystemClock
from gateway.reaching import Reaching
from gateway.state import NodeRecord
from trust.identity import challenge
from trust.identity.challenge import Challenge
from trust.identity.keys import PublicKey, SecretKey, unb64url
from trust.reasons import Reason, Unverifiable

ANSWER_S: Final = 5.0
MAX_ANSWER_BYTES: Final = 12 << 20
"""The rows of a product of the largest size, and the hashes of all of them, are less than half of it."""
NO_ANSWER: Final = (Unreachable, Broken, Unverifiable, TimeoutError)
"""How it can fail."""


class Shown(msgspec.Struct, frozen=True):
    """What a node showed, and after how many microseconds that was here."""

    what: bytes
    took_us: int


class Found(msgspec.Struct, frozen=True):
    """What came of a check: whether it ``holds``, and in words how that was found. ``lied``: it showed something, and
    that was wrong."""

    holds: bool
    how: str
    lied: bool = False

    @classmethod
    def silent(cls, why: BaseException) -> Found:
        """No answer is the answer no: whoever has nothing to show could otherwise just say nothing."""
        detail = why.detail if isinstance(why, Unverifiable) else str(why) or type(why).__name__
        return cls(False, f"it did not answer as it should: {detail}")


class Challenger:
    """Of one gateway."""

    def __init__(self, reaching: Reaching, key: SecretKey, clock: SystemClock) -> None:
        self._reaching = reaching
        self._key = key
        self._clock = clock

    async def ask(self, node: NodeRecord, asked: Challenge, within_s: float = ANSWER_S) -> Shown:
        """What *node* shows, or one of :data:`NO_ANSWER`."""
        begun = self._clock.mono_ns()
        async with asyncio.timeout(within_s):
            sealed = challenge.seal(asked, self._key).encode()
            async with self._reaching.send(node, "/v1/prove", {}, sealed) as reply:
                said = await reply.read(MAX_ANSWER_BYTES)
        took = (self._clock.mono_ns() - begun) // 1000
        if reply.status != 200:
            raise Unverifiable(Reason.UNAUTHENTICATED, f"{node.name} answered {reply.status}: {_detail(said)}")
        return Shown(challenge.open_answer(asked, said, PublicKey(unb64url(node.key))), took)

    def challenge(self, node: NodeRecord, nonce: str) -> Challenge:
        """An echo for *node*, from now on; other kinds are made of it."""
        now = int(self._clock.now())
        return Challenge("echo", nonce, node.name, node.epoch, now, now + challenge.MAX_LIFE_S)


def _detail(problem: bytes) -> str:
    try:
        return str(msgspec.json.decode(problem)["detail"])[:200]
    except (msgspec.DecodeError, KeyError, TypeError):
        return "no reason"
