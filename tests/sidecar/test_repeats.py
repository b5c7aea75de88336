"""Idempotency keys under pressure: what is not answered yet is never forgotten, and what may have happened stays."""

from __future__ import annotations

import asyncio

import pytest

from sidecar.answers import Answer, Refused
from sidecar.ingress.repeats import MAX_KEYS, Repeats, Told
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
    for number in range(MAX_KEYS + 10):
        await repeats.once(f"k{number}", "d", quick)
    second = asyncio.create_task(repeats.once("K", "d", slow))
    await asyncio.sleep(0)
    go.set()
    assert await first == await second == TOLD
    assert done == 1


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
