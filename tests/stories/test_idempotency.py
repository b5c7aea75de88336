"""An action that is sent again under its idempotency key: answered again, not done again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.mesh import Mesh
from trust.ledger.entries import Dispatch, Intent

pytestmark = pytest.mark.slow
WRITE = ("workbench/write_file", {"path": "new.txt", "content": "once"})


def done(mesh: Mesh, tool: str = "write_file") -> int:
    return len([e for e in mesh.entries("node") if isinstance(e, Dispatch) and e.tool == tool])


async def test_a_repeat_gets_the_same_answer_and_nothing_happens_twice(mesh: Mesh) -> None:
    first = await mesh.call(*WRITE, idempotency_key="k1")
    again = await mesh.call(*WRITE, idempotency_key="k1")
    assert first.status == again.status == 200
    assert first.body == again.body
    assert first.headers["Licet-Decision-Id"] == again.headers["Licet-Decision-Id"]
    assert done(mesh) == 1
    assert (await mesh.call(*WRITE, idempotency_key="k2")).body != first.body
    assert done(mesh) == 2


async def test_repeats_at_once_wait_for_the_one_that_acts(mesh: Mesh) -> None:
    answers = await asyncio.gather(*(mesh.call(*WRITE, idempotency_key="k") for _ in range(10)))
    assert len({a.body for a in answers}) == 1
    assert done(mesh) == 1


@pytest.mark.parametrize(
    "other", [{"args": {"path": "new.txt", "content": "twice"}}, {"run": "another"}, {"place": {"pin": "node-1"}}]
)
async def test_a_key_is_for_one_action(mesh: Mesh, other: dict[str, Any]) -> None:
    await mesh.call(*WRITE, idempotency_key="k")
    name, args = WRITE
    answer = await mesh.call(name, other.pop("args", args), idempotency_key="k", **other)
    assert (answer.status, answer.json["reason"]) == (401, "replayed")
    assert done(mesh) == 1


async def test_what_did_not_happen_frees_its_key(mesh: Mesh) -> None:
    await mesh.stop("node")
    assert (await mesh.call(*WRITE, idempotency_key="k")).status in (403, 503)
    await mesh.start_node()
    await mesh.ready()
    assert (await mesh.call(*WRITE, idempotency_key="k")).status == 200
    assert done(mesh) == 1


async def test_a_held_action_runs_under_its_key_once_it_is_approved(mesh: Mesh) -> None:
    call = ("workbench/delete_file", {"path": "notes.txt"})
    held = await mesh.call(*call, idempotency_key="k")
    assert held.status == 202
    await mesh.vote(held.json["approval"])
    ran = await mesh.call(*call, idempotency_key="k")
    assert ran.status == 200
    assert (await mesh.call(*call, idempotency_key="k")).body == ran.body
    assert done(mesh, "delete_file") == 1


async def test_a_key_stays_used_after_a_restart(mesh: Mesh) -> None:
    await mesh.call(*WRITE, idempotency_key="k")
    assert [e.deed.idempotency_key for e in mesh.entries() if isinstance(e, Intent)] == ["k"]
    await mesh.stop("sidecar")
    await mesh.start_sidecar()
    answer = await mesh.call(*WRITE, idempotency_key="k")
    assert (answer.status, answer.json["reason"]) == (401, "replayed")
    assert done(mesh) == 1


@pytest.mark.parametrize("key", ["", "a b", "é", "x" * 129])
async def test_a_key_is_short_and_plain(mesh: Mesh, key: str) -> None:
    answer = await mesh.call(*WRITE, idempotency_key=key)
    assert (answer.status, answer.json["reason"]) == (400, "malformed_request")
