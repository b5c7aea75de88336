"""Idempotency keys under pressure: what is not answered yet is never forgotten, and what may have happened stays."""

from __future__ import annotations

import asyncio

import pytest

from sidecar.answers import Answer, Refused
from sidecar.ingress.repeats import KEEP_S, MAX_ANSWERS, Repeats, Told
from trust.reasons import NOTHING_HAPPENED, Reason, Unverifiable
from trust.verdict import Refusal

TOLD = Told(200, {}, b"x")


def answer(reason: Reason) -> Answer:
    return Refused("dec_1", None, Refusal(8, reason, ""))


async def test_a_pending_key_is_not_pushed_out_by_others() -> None:
    repeats, done = Repeats({}, lambda: 0.0), 0
    go = asyncio.Event()

    async def slow() -> tuple[Answer, Told]:
        nonlocal done
        done += 1
        await go.wait()
        return answer(Reason.OUTCOME_UNKNOWN), TOLD

    async def quick() -> tuple[Answer, Told]:
        return answer(Reason.OUTCOME_UNKNOWN), TOLD

    first = asyncio.create_task(repeats.once("K", "d", slow))
    await asyncio.sleep(0)
    for number in range(MAX_ANSWERS + 10):
        await repeats.once(f"k{number}", "d", quick)
    second = asyncio.create_task(repeats.once("K", "d", slow))
    await asyncio.sleep(0)
    go.set()
    assert await first == await second == TOLD
    assert done == 1


async def test_a_used_key_is_remembered_for_a_day_though_its_answer_is_not() -> None:
    now, done = 0.0, 0
    repeats = Repeats({"before-the-restart": -KEEP_S + 10}, lambda: now)

    async def do() -> tuple[Answer, Told]:
        nonlocal done
        done += 1
        return answer(Reason.OUTCOME_UNKNOWN), TOLD

    for number in range(3 * MAX_ANSWERS):
        await repeats.once(f"k{number}", "d", do)
    for forgotten in ("k0", "before-the-restart"):
        with pytest.raises(Unverifiable, match="not kept any more"):
            await repeats.once(forgotten, "d", do)
    assert await repeats.once(f"k{3 * MAX_ANSWERS - 1}", "d", do) == TOLD
    assert done == 3 * MAX_ANSWERS
    now = KEEP_S + 1
    await repeats.once("k0", "d", do)
    assert done == 3 * MAX_ANSWERS + 1


async def test_more_keys_than_can_be_remembered_are_refused_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.ingress.repeats.MAX_KEYS", 3)
    repeats = Repeats({}, lambda: 0.0)

    async def do() -> tuple[Answer, Told]:
        return answer(Reason.OUTCOME_UNKNOWN), TOLD

    for number in range(3):
        await repeats.once(f"k{number}", "d", do)
    with pytest.raises(Unverifiable) as refused:
        await repeats.once("k3", "d", do)
    assert refused.value.reason is Reason.OVERLOADED
    assert await repeats.once("k0", "d", do) == TOLD, "a known key is answered as before"


@pytest.mark.parametrize("reason", Reason)
async def test_a_key_is_free_again_only_if_nothing_happened(reason: Reason) -> None:
    repeats, done = Repeats({}, lambda: 0.0), 0

    async def do() -> tuple[Answer, Told]:
        nonlocal done
        done += 1
        return answer(reason), TOLD

    for _ in range(3):
        await repeats.once("K", "d", do)
    assert done == (3 if reason in NOTHING_HAPPENED else 1)


@pytest.mark.parametrize("reason", Reason)
def test_what_may_have_happened_is_never_said_not_to_have(reason: Reason) -> None:
    """Also when the refusal itself could not be recorded."""
    said = Refusal(9, reason, "x").unrecorded(OSError("disk full"))
    assert (said.reason in NOTHING_HAPPENED) == (reason in NOTHING_HAPPENED)
    assert "disk full" in said.detail


async def test_a_key_whose_answer_nobody_heard_stays_used() -> None:
    repeats = Repeats({}, lambda: 0.0)

    async def breaks() -> tuple[Answer, Told]:
        raise RuntimeError("gone")

    with pytest.raises(RuntimeError):
        await repeats.once("K", "d", breaks)
    with pytest.raises(Unverifiable, match="used before"):
        await repeats.once("K", "d", breaks)
