"""What several processes of one gateway remember together, in Redis: used nonces, open sessions, leases of nodes.

The one door to redis. All of it is soft: when Redis forgets, nonces are not believed for a while, sessions are opened
again, and leases come back with the next heartbeat. ``SET … NX`` decides which of several verifiers saw a nonce first.
A Redis that lost its memory is noticed by a mark that is gone with it: what was signed before the mark was set again
may have been seen, and is refused. Evicting keys would lose nonces without a sign, so a server that evicts is refused
at the start.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

import msgspec
import redis.asyncio as redis
from redis.exceptions import RedisError

from edge.backoff import Backoff
from trust.reasons import Reason, Unverifiable

PREFIX: Final = "licet:"
MARK: Final = PREFIX + "since"
LEASES: Final = PREFIX + "leases"
TIMEOUT_S: Final = 0.5
SNAPSHOTS: Final = (
    "it keeps snapshots only, so after a crash an old memory would come back as if it were whole; "
    'expected appendonly yes, or save ""'
)
CONNECTIONS: Final = 64
_RENEW: Final = """
local time = redis.call('TIME')
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. ' ' .. time[1] .. ' ' .. time[2])
"""


class Finding(msgspec.Struct, frozen=True):
    """One thing about a server that is relied on; ``hint``: what to do if it is not ``fine``."""

    what: str
    fine: bool
    found: str
    hint: str = ""


async def examine(url: str) -> list[Finding]:
    """What an operator should know of the Redis at *url*; nothing is changed there."""
    server: Any = redis.Redis.from_url(url, socket_timeout=2.0, socket_connect_timeout=2.0)
    try:
        info = await server.info()
        settings = await server.config_get("maxmemory-policy", "appendonly", "save")
    except (RedisError, OSError) as bad:
        return [Finding("reached", False, str(bad) or type(bad).__name__, "what is signed is refused until it is back")]
    finally:
        await server.aclose()
    policy, role = settings.get("maxmemory-policy", "noeviction"), str(info.get("role", "master"))
    kept = settings.get("appendonly") == "yes"
    snapshots = bool(settings.get("save")) and not kept
    return [
        Finding("reached", True, f"version {info.get('redis_version', 'unknown')}"),
        Finding("memory", policy == "noeviction", policy, "expected noeviction, or used nonces could be forgotten"),
        Finding("takes writes", role == "master", role, "expected the primary"),
        Finding("snapshots", not snapshots, "alone" if snapshots else "not relied on", SNAPSHOTS),
        Finding("persistence", True, "on" if kept else "off: after a restart what was signed before is signed again"),
        Finding("if it were lost", True, "sessions are opened again and nodes are heard of again within seconds"),
    ]


class Shared:
    """Of one *audience*; every process of it names the same Redis."""

    def __init__(self, url: str, audience: str) -> None:
        pool: Any = redis.BlockingConnectionPool.from_url(
            url,
            max_connections=CONNECTIONS,
            timeout=TIMEOUT_S,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
        )
        self._redis: Any = redis.Redis(connection_pool=pool)
        self._of = f"{PREFIX}{audience}:"

    async def start(self, within_s: float = 0.0) -> None:
        """Refuse to work with a server that forgets; one that cannot be reached is waited for so long."""
        found = await self._settings(within_s)
        policy = found.get("maxmemory-policy", "noeviction")
        if found.get("save") and found.get("appendonly") != "yes":
            raise Unverifiable(Reason.REPLAY_UNKNOWN, f"redis: {SNAPSHOTS}")
        if policy != "noeviction":
            detail = f"its maxmemory-policy is {policy}; expected noeviction, or used nonces could be forgotten"
            raise Unverifiable(Reason.REPLAY_UNKNOWN, f"redis: {detail}")

    async def _settings(self, within_s: float) -> dict[str, str]:
        backoff, loop = Backoff(), asyncio.get_running_loop()
        end = loop.time() + within_s
        while True:
            try:
                found: dict[str, str] = await self._redis.config_get("maxmemory-policy", "appendonly", "save")
                return found
            except (redis.ConnectionError, redis.TimeoutError, OSError) as bad:
                if loop.time() >= end:
                    raise _unknown(bad) from None
            except RedisError as bad:
                raise _unknown(bad) from None
            await asyncio.sleep(backoff.next())

    async def close(self) -> None:
        await self._redis.aclose()

    # Used once

    async def spend(self, nonce: str, created_at: int, expires_at: float, now: float) -> None:
        """Nothing, if no process saw *nonce* before, or :class:`Unverifiable`. Times are Unix seconds."""
        lives_ms = max(1, int((expires_at - now) * 1000))
        try:
            async with self._redis.pipeline(transaction=True) as asked:
                asked.set(MARK, int(now), nx=True)
                asked.get(MARK)
                asked.set(f"{self._of}nonce:{nonce}", 1, nx=True, px=lives_ms)
                _, since, first = await asked.execute()
        except (RedisError, OSError) as bad:
            raise _unknown(bad) from None
        if not first:
            raise Unverifiable(Reason.REPLAYED, "this nonce was used before")
        if created_at < int(since):
            raise Unverifiable(Reason.REPLAY_UNKNOWN, "made before the memory of used nonces began; sign again")

    # Sessions

    async def remember(self, name: str, text: str, lives_s: float) -> None:
        """Let the others find *text*, which proves itself, under a name. If that fails, they do not find it."""
        with contextlib.suppress(RedisError, OSError):
            await self._redis.set(self._of + name, text, px=max(1, int(lives_s * 1000)))

    async def recall(self, name: str) -> str | None:
        """What was remembered, if that can be known."""
        try:
            found = await self._redis.get(self._of + name)
        except (RedisError, OSError):
            return None
        return None if found is None else bytes(found).decode("utf-8", "replace")

    # Leases

    async def renew(self, node: str, epoch: int) -> None:
        """A node was heard of in this epoch, now. If that cannot be told, the others do not know it."""
        with contextlib.suppress(RedisError, OSError):
            await self._redis.eval(_RENEW, 1, self._of + LEASES, node, epoch)

    async def leases(self) -> dict[str, tuple[int, float]]:
        """Of each node the epoch in which it was heard of, and how many seconds ago; nothing, while Redis is away."""
        try:
            async with self._redis.pipeline(transaction=True) as asked:
                asked.time()
                asked.hgetall(self._of + LEASES)
                (seconds, micros), found = await asked.execute()
        except (RedisError, OSError):
            return {}
        now, leases = seconds + micros / 1e6, {}
        for node, lease in found.items():
            epoch, at, at_us = bytes(lease).split()
            leases[bytes(node).decode()] = (int(epoch), now - int(at) - int(at_us) / 1e6)
        return leases


def _unknown(bad: Exception) -> Unverifiable:
    return Unverifiable(Reason.REPLAY_UNKNOWN, f"redis: {bad or type(bad).__name__}")
