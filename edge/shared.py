"""What several processes of one gateway remember together, in Redis: nonces, sessions, leases, and what agents did.

The one door to redis. All of it is soft: when Redis forgets, nonces are not believed for a while, sessions are opened
again, leases come back with the next heartbeat, and what agents did is counted again from the ledgers. ``SET … NX``
decides which of several verifiers saw a nonce first. A server that started again or took over is known by its run id,
whatever it remembers: what was signed before may have been seen, and is refused. Evicting keys would lose nonces
without a sign, so a server that evicts is refused at the start.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import redis.asyncio as redis
from redis.exceptions import RedisError

from edge import did
from edge.backoff import Backoff
from trust.identity.httpsig import CLOCK_SKEW_S
from trust.reasons import Reason, Unverifiable
from trust.recalled import DENIED, Call, Past, Recalled
from trust.window import BUCKETS, DAY

PREFIX: Final = "licet:"
MARK: Final = PREFIX + "since"
LEASES: Final = PREFIX + "leases"
MARGIN_S: Final = 1 + int(CLOCK_SKEW_S)
"""By how much what was signed before something may seem to be later: clocks differ, and marks are whole seconds."""
TIMEOUT_S: Final = 0.5
NO_RUN_ID: Final = "it does not say its run_id in INFO, so nobody would see that it lost something"
IF_LOST: Final = "sessions are opened again, nodes heard of again within seconds, and agents counted from the ledgers"
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
    except (RedisError, OSError) as bad:
        return [Finding("reached", False, str(bad) or type(bad).__name__, "what is signed is refused until it is back")]
    finally:
        await server.aclose()
    policy, role = str(info.get("maxmemory_policy", "not said")), str(info.get("role", "master"))
    kept, known = bool(info.get("aof_enabled")), "run_id" in info
    return [
        Finding("reached", True, f"version {info.get('redis_version', 'unknown')}"),
        Finding("memory", policy == "noeviction", policy, "expected noeviction, or used nonces could be forgotten"),
        Finding("takes writes", role == "master", role, "expected the primary"),
        Finding("run id", known, "said" if known else "not said", NO_RUN_ID),
        Finding("persistence", True, "on" if kept else "off, and not needed: what is in it is found again"),
        Finding("if it were lost", True, IF_LOST),
    ]


class Counted(msgspec.Struct, frozen=True):
    """A call counts, since ``at`` (Unix seconds). ``before``: what its agent had done, as far as that counts;
    ``since``: when counting began; ``whole``: what was before that counts too; ``several``: it comes through several
    sidecars."""

    call: Call
    at: float
    before: Recalled
    since: float
    whole: bool
    several: bool


class Shared:
    """Of one *audience*; every process of it names the same Redis. *name*: of this process."""

    def __init__(self, url: str, audience: str, name: str = "main") -> None:
        self._name = name
        pool: Any = redis.BlockingConnectionPool.from_url(
            url,
            max_connections=CONNECTIONS,
            timeout=TIMEOUT_S,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
        )
        self._redis: Any = redis.Redis(connection_pool=pool)
        self._of = f"{PREFIX}{audience}:"
        self._scripts: dict[str, Any] = {}

    async def start(self, within_s: float = 0.0) -> None:
        """Refuse to work with a server that forgets; one that cannot be reached is waited for so long."""
        info = await self._info(within_s)
        policy = info.get("maxmemory_policy", "not said")
        if "run_id" not in info:
            raise Unverifiable(Reason.REPLAY_UNKNOWN, f"redis: {NO_RUN_ID}")
        if policy != "noeviction":
            detail = f"its maxmemory-policy is {policy}; expected noeviction, or used nonces could be forgotten"
            raise Unverifiable(Reason.REPLAY_UNKNOWN, f"redis: {detail}")

    async def _info(self, within_s: float) -> dict[str, Any]:
        backoff, loop = Backoff(), asyncio.get_running_loop()
        end = loop.time() + within_s
        while True:
            try:
                found: dict[str, Any] = await self._redis.info()
                if "run_id" in found:
                    await self._redis.eval(did.BEGIN, 1, MARK, int(time.time()), MARGIN_S)
                return found
            except (redis.ConnectionError, redis.TimeoutError, redis.ReadOnlyError, OSError) as bad:
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
        keys = [MARK, f"{self._of}nonce:{nonce}"]
        _require_new(await self._run(did.SPEND, keys, int(now), lives_ms, created_at, MARGIN_S))

    # What agents did

    async def count(
        self,
        call: Call,
        in_flight: int,
        labels_keep_s: int,
        log: str,
        *,
        nonce: str,
        created_at: int,
        expires_at: float,
        now: float,
    ) -> Counted:
        """Spend *nonce* as :meth:`spend` does, and count *call* from now on. *in_flight*: calls of its agent here,
        with this one; *log*: of its sidecar."""
        windows = [*call.counts, (DENIED, DAY, 0)]
        lives_ms = max(1, int((expires_at - now) * 1000))
        keys = (*self._did(call.agent), self._flight(call.agent), MARK, f"{self._of}nonce:{nonce}")
        told = await self._run(
            did.COUNT,
            keys,
            int(now),
            lives_ms,
            created_at,
            self._name,
            in_flight,
            labels_keep_s,
            call.run,
            "\n".join(call.labels),
            log,
            MARGIN_S,
            *(part for window in windows for part in window),
        )
        _require_new(told[0])
        at, since, whole, several, flying, *counts = told[1 : 6 + len(windows)]
        known = {label.decode() for label in told[6 + len(windows) :]}
        before = Recalled.of(counts, in_flight - 1 + flying, known)
        return Counted(call, float(at), before, float(since), bool(whole), bool(several))

    async def uncount(self, counted: Counted) -> None:
        """The call did not happen. Its labels stay."""
        past = Past()
        for name, span_s, amount in counted.call.counts:
            past.add(name, span_s, int(counted.at * BUCKETS / span_s), -amount)
        await self._put(counted.call.agent, past, since=f"{counted.since:.6f}")

    async def denied(self, agent: str, amount: int) -> None:
        """So much was refused to *agent*."""
        await self._run(did.PUT, [*self._did(agent), MARK], "", "", 0, "", 1, DENIED, DAY, "", amount)

    async def seed(self, agent: str, past: Past, labels_keep_s: int, since: float) -> None:
        """What *agent* did before counting began, *since* then; only the first time."""
        await self._put(agent, past, "seeded", labels_keep_s, since=f"{since:.6f}")

    async def _put(self, agent: str, past: Past, mark: str = "", labels_keep_s: int = 0, *, since: str) -> None:
        counts = [part for key, amount in past.counts.items() for part in (*key, amount)]
        labels = [part for one in past.labels for part in one]
        several = "1" if past.several else ""
        keys, told = [*self._did(agent), MARK], (len(past.counts), *counts, *labels)
        await self._run(did.PUT, keys, mark, since, labels_keep_s, several, *told)

    async def flying(self, calls: dict[str, int]) -> None:
        """How many calls of agents are in flight with this process. If that cannot be told, it is told soon again."""
        with contextlib.suppress(Unverifiable):
            await self._run(did.FLY, [self._flight(agent) for agent in calls], self._name, *calls.values())

    def _did(self, agent: str) -> list[str]:
        return [f"{self._of}{kind}:{agent}" for kind in ("did", "labels", "runs")]

    def _flight(self, agent: str) -> str:
        return f"{self._of}flight:{agent}"

    async def _run(self, script: str, keys: Sequence[str], *values: object) -> Any:
        try:
            if script not in self._scripts:
                self._scripts[script] = self._redis.register_script(script)
            return await self._scripts[script](keys=list(keys), args=list(values))
        except (RedisError, OSError) as bad:
            raise _unknown(bad) from None

    # Used once for a day

    async def claim(self, key: str, action: str, lives_s: float, sealed_s: float, now: float) -> str:
        """Which action has *key*: *action*, if none had it yet; empty, if a memory that lost some does not tell. What
        was claimed *sealed_s* ago is sealed in a ledger, so after that it is asked no more."""
        keys, lives_ms = [MARK, self._of + key], int(lives_s * 1000)
        told = await self._run(did.CLAIM, keys, int(now), lives_ms, action, int(sealed_s), MARGIN_S)
        return bytes(told).decode()

    async def release(self, key: str, action: str) -> None:
        """Nothing happened under *key* by *action*. If that cannot be told, it stays taken."""
        with contextlib.suppress(Unverifiable):
            await self._run(did.RELEASE, [self._of + key], action)

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


def _require_new(told: object) -> None:
    """Nothing, if a nonce was spent for the first time, or :class:`Unverifiable`: whatever else is told, too."""
    match told:
        case b"spent" | b"counted":
            return
        case b"replayed":
            raise Unverifiable(Reason.REPLAYED, "this nonce was used before")
        case b"unknown":
            raise Unverifiable(Reason.REPLAY_UNKNOWN, "made before the memory of used nonces began; sign again")
    raise Unverifiable(Reason.REPLAY_UNKNOWN, f"redis: expected bytes that say whether a nonce is new, found {told!r}")


def _unknown(bad: Exception) -> Unverifiable:
    return Unverifiable(Reason.REPLAY_UNKNOWN, f"redis: {bad or type(bad).__name__}")
