"""Replay on another worker, after a restart, and while Redis is away: with a real Redis."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as client

from edge.shared import Counted, Shared, examine
from gateway.app import Gateway
from loadtests.servers import Redis
from tests.mesh import Mesh
from trust.reasons import Reason, Unverifiable
from trust.recalled import Call, Past

pytestmark = pytest.mark.slow


@pytest.fixture
async def pair(redis: Redis) -> AsyncIterator[tuple[Shared, Shared]]:
    one, other = Shared(redis.url, "aud"), Shared(redis.url, "aud")
    await one.start()
    yield one, other
    await one.close()
    await other.close()


def plain(redis: Redis) -> Any:
    """To do to a server what its operators do."""
    return client.Redis.from_url(redis.url)


async def reached(shared: Shared, server: Any) -> None:
    """Connections of before are given up: each notices when it is used."""
    await shared.recall("anything")
    with contextlib.suppress(client.ConnectionError):
        await server.ping()


async def in_step(server: Any) -> None:
    """Until it has all that its primary has."""
    async with asyncio.timeout(30):
        while (await server.info("replication")).get("master_link_status") != "up":
            await asyncio.sleep(0.05)


def soon() -> tuple[int, int, float]:
    now = time.time()
    return int(now) + 1, int(now) + 60, now


async def test_of_all_verifiers_one_accepts(pair: tuple[Shared, Shared]) -> None:
    async def spend(which: int) -> Reason | None:
        try:
            await pair[which % 2].spend("n" * 16, *soon())
        except Unverifiable as bad:
            return bad.reason
        return None

    answers = Counter(await asyncio.gather(*(spend(which) for which in range(200))))
    # On a machine that is too busy to be asked in time, nobody may accept; two never may.
    assert answers[None] == 1 or (answers[None] == 0 and answers[Reason.REPLAY_UNKNOWN])
    assert set(answers) <= {None, Reason.REPLAYED, Reason.REPLAY_UNKNOWN}


async def test_another_audience_is_another_memory(redis: Redis) -> None:
    for audience in ("one", "two"):
        shared = Shared(redis.url, audience)
        await shared.start()
        await shared.spend("n" * 16, *soon())
        await shared.close()


async def test_a_redis_that_lost_its_memory_accepts_nothing_from_before(
    redis: Redis, pair: tuple[Shared, Shared]
) -> None:
    created, expires, now = soon()
    await pair[0].spend("n" * 16, created - 1, expires, now)
    redis.stop()
    with pytest.raises(Unverifiable) as bad:
        await pair[1].spend("m" * 16, *soon())
    assert bad.value.reason is Reason.REPLAY_UNKNOWN
    redis.start()
    with pytest.raises(Unverifiable) as bad:
        await pair[1].spend("n" * 16, created, expires, time.time())
    assert bad.value.reason is Reason.REPLAY_UNKNOWN, "though a clock that is ahead signed it"
    await pair[1].spend("o" * 16, created + 20, expires, now + 20)


async def test_a_redis_that_comes_back_with_an_older_memory_accepts_nothing_from_before(redis: Redis) -> None:
    """As from a snapshot: what was spent after it may come again."""
    redis.stop()
    redis.start("--save", "3600 1")
    shared, server = Shared(redis.url, "aud"), plain(redis)
    await shared.start()
    created, expires, now = soon()
    await shared.spend("n" * 16, created, expires, now)
    await server.save()
    await shared.spend("m" * 16, created, expires, now + 5)
    redis.stop()
    redis.start("--save", "3600 1")
    await reached(shared, server)
    assert await server.exists(f"licet:aud:nonce:{'n' * 16}"), "it does come back with the older one"
    with pytest.raises(Unverifiable) as bad:
        await shared.spend("m" * 16, created, expires, now + 10)
    assert bad.value.reason is Reason.REPLAY_UNKNOWN
    await shared.spend("o" * 16, created + 20, expires, now + 20)
    await shared.close()
    await server.aclose()


async def test_a_replica_that_takes_over_accepts_nothing_from_before(redis: Redis, tmp_path: Path) -> None:
    replica = Redis(tmp_path)
    replica.start("--replicaof", "127.0.0.1", str(redis.port))
    try:
        first, second, server = Shared(redis.url, "aud"), Shared(replica.url, "aud"), plain(replica)
        await first.start()
        created, expires, now = soon()
        await first.spend("n" * 16, created, expires, now)
        async with asyncio.timeout(30):
            while not await server.exists(f"licet:aud:nonce:{'n' * 16}"):
                await asyncio.sleep(0.05)
        await server.replicaof("NO", "ONE")
        with pytest.raises(Unverifiable) as bad:
            await second.spend("m" * 16, created, expires, now + 10)
        assert bad.value.reason is Reason.REPLAY_UNKNOWN
        with pytest.raises(Unverifiable) as bad:
            await second.spend("n" * 16, created + 20, expires, now + 20)
        assert bad.value.reason is Reason.REPLAYED, "what it does know, it knows"
        await second.spend("o" * 16, created + 20, expires, now + 20)
        await first.close()
        await second.close()
        await server.aclose()
    finally:
        replica.remove()


async def test_a_server_that_takes_over_again_is_not_the_one_that_it_was(redis: Redis, tmp_path: Path) -> None:
    """It never stopped, and has what the other one had, who lost something."""
    replica = Redis(tmp_path)
    replica.start("--replicaof", "127.0.0.1", str(redis.port))
    try:
        shared, one, other = Shared(redis.url, "aud"), plain(redis), plain(replica)
        await in_step(other)
        await shared.start()
        created, expires, now = soon()
        await shared.spend("n" * 16, created, expires, now)
        await other.replicaof("NO", "ONE")
        await one.replicaof("127.0.0.1", str(replica.port))
        await in_step(one)
        await one.replicaof("NO", "ONE")
        with pytest.raises(Unverifiable) as bad:
            await shared.spend("m" * 16, created, expires, now + 10)
        assert bad.value.reason is Reason.REPLAY_UNKNOWN
        for each in (one, other):
            await each.aclose()
        await shared.close()
    finally:
        replica.remove()


async def test_of_an_older_memory_no_count_and_no_key_is_believed(redis: Redis) -> None:
    redis.stop()
    redis.start("--save", "3600 1")
    shared, server = Shared(redis.url, "aud"), plain(redis)
    await shared.start()

    async def count(nonce: str, created: int) -> Counted:
        _, expires, now = soon()
        call = Call("a", "r", "t/t")
        return await shared.count(call, 1, 1, "log", nonce=nonce, created_at=created, expires_at=expires, now=now)

    await shared.seed("a", Past(), 1, (await count("1", soon()[0])).since)
    assert (await count("2", soon()[0])).whole
    assert await shared.claim("k", "act_1", 60, 30, time.time()) == "act_1"
    await server.save()
    await count("3", soon()[0])
    assert await shared.claim("l", "act_2", 60, 30, time.time()) == "act_2"
    redis.stop()
    redis.start("--save", "3600 1")
    await reached(shared, server)
    told = await count("4", soon()[0] + 20)
    assert not told.whole, "so the ledgers are asked"
    assert told.before.day == 0
    now = time.time()
    assert await shared.claim("k", "act_3", 60, 30, now) == "act_1"
    assert await shared.claim("l", "act_3", 60, 30, now) == "", "it does not tell"
    assert await shared.claim("l", "act_4", 60, 30, now + 40) == "act_4", "by then a ledger knows whose it is"
    await shared.close()
    await server.aclose()


async def test_an_answer_that_is_not_understood_is_no_yes(redis: Redis) -> None:
    """As when the address asks the library for texts instead of bytes."""
    shared = Shared(f"{redis.url}?decode_responses=true", "aud")
    for _ in range(2):
        with pytest.raises(Unverifiable) as bad:
            await shared.spend("n" * 16, *soon())
        assert bad.value.reason is Reason.REPLAY_UNKNOWN
    await shared.close()


async def test_a_redis_that_hides_its_settings_will_do(redis: Redis) -> None:
    """As managed ones are."""
    redis.stop()
    redis.start("--rename-command", "CONFIG", "")
    shared = Shared(redis.url, "aud")
    await shared.start()
    await shared.spend("n" * 16, *soon())
    await shared.close()
    assert all(one.fine for one in await examine(redis.url))


async def test_a_redis_that_forgets_when_it_is_full_is_refused(redis: Redis) -> None:
    redis.stop()
    redis.start("--maxmemory-policy", "allkeys-lru")
    shared = Shared(redis.url, "aud")
    with pytest.raises(Unverifiable, match="noeviction"):
        await shared.start()
    await shared.close()


async def test_a_request_replayed_after_a_restart_of_the_gateway_is_refused(redis: Redis, tmp_path: Path) -> None:
    from tests.attacks.test_forgery import dispatch, signature, statement
    from trust import wire

    async with Mesh(tmp_path / "mesh", redis=redis.url) as mesh:
        (mesh.sandbox / "notes.txt").write_text("x")
        made, body = statement(mesh)
        headers = signature(mesh, wire.encode(made, body))
        assert (await dispatch(mesh, made, body, headers=headers)).status == 200
        await mesh.stop("gateway")
        await mesh.start_gateway()
        answer = await dispatch(mesh, made, body, headers=headers)
        assert (answer.status, answer.json["reason"]) == (401, "replayed")
        await mesh.ready()
        async with asyncio.timeout(30):
            while (await mesh.call("workbench/read_file", {"path": "notes.txt"})).status != 200:
                await asyncio.sleep(0.1)
        redis.stop()
        answer = await dispatch(mesh, *statement(mesh))
        assert (answer.status, answer.json["reason"]) == (503, "replay_unknown")
        assert isinstance(mesh.gateway, Gateway)


async def test_the_doctor_says_what_is_wrong_with_it(redis: Redis) -> None:
    async def wrong() -> dict[str, str]:
        return {one.what: one.found for one in await examine(redis.url) if not one.fine}

    assert await wrong() == {}
    assert {one.what: one.found for one in await examine(redis.url)}["persistence"].startswith("off")
    redis.stop()
    assert set(await wrong()) == {"reached"}
    redis.start("--maxmemory-policy", "allkeys-lru")
    assert await wrong() == {"memory": "allkeys-lru"}
