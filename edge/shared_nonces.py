"""Nonces that several processes share: used once by any of them, also across restarts, or nobody can say and it is no.

The one door to redis. ``SET … NX`` decides which of several verifiers saw a nonce first. A Redis that lost its memory
is noticed by a mark that is gone with it: what was signed before the mark was set again may have been seen, and is
refused. Evicting keys would lose nonces without a sign, so a server that evicts is refused at the start.
"""

from __future__ import annotations

from typing import Any, Final

import redis.asyncio as redis
from redis.exceptions import RedisError

from trust.reasons import Reason, Unverifiable

PREFIX: Final = "licet:nonce:"
MARK: Final = "licet:nonces:since"
TIMEOUT_S: Final = 0.5
CONNECTIONS: Final = 64


class SharedNonces:
    """Of one audience; every verifier of that audience names the same Redis."""

    def __init__(self, url: str, audience: str) -> None:
        pool: Any = redis.BlockingConnectionPool.from_url(
            url,
            max_connections=CONNECTIONS,
            timeout=TIMEOUT_S,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
        )
        self._redis: Any = redis.Redis(connection_pool=pool)
        self._of = f"{audience}:"

    async def start(self) -> None:
        """Refuse to work with a server that forgets."""
        try:
            policy = (await self._redis.config_get("maxmemory-policy")).get("maxmemory-policy", "noeviction")
        except (RedisError, OSError) as bad:
            raise _unknown(bad) from None
        if policy != "noeviction":
            detail = f"its maxmemory-policy is {policy}; expected noeviction, or used nonces could be forgotten"
            raise Unverifiable(Reason.REPLAY_UNKNOWN, f"redis: {detail}")

    async def spend(self, nonce: str, created_at: int, expires_at: int, now: float) -> None:
        """Nothing, if no verifier saw *nonce* before, or :class:`Unverifiable`. Times are Unix seconds."""
        lives_ms = max(1, int((expires_at - now) * 1000))
        try:
            async with self._redis.pipeline(transaction=True) as asked:
                asked.set(MARK, int(now), nx=True)
                asked.get(MARK)
                asked.set(PREFIX + self._of + nonce, 1, nx=True, px=lives_ms)
                _, since, first = await asked.execute()
        except (RedisError, OSError) as bad:
            raise _unknown(bad) from None
        if not first:
            raise Unverifiable(Reason.REPLAYED, "this nonce was used before")
        if created_at < int(since):
            raise Unverifiable(Reason.REPLAY_UNKNOWN, "made before the memory of used nonces began; sign again")

    async def close(self) -> None:
        await self._redis.aclose()


def _unknown(bad: Exception) -> Unverifiable:
    return Unverifiable(Reason.REPLAY_UNKNOWN, f"redis: {bad or type(bad).__name__}")
