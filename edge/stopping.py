"""Ending what waits for an answer when somebody says so, as :func:`edge.http.relay` does for streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Final

CHECK_S: Final = 0.25
"""How often a call that waits looks whether it may go on."""
AGAIN_S: Final = 0.5
DRAIN_LOOK_S: Final = 0.05


async def settled(in_hand: Callable[[], int], within_s: float) -> None:
    """Until nothing is *in_hand* any more, or the time is over."""
    try:
        async with asyncio.timeout(within_s):
            while in_hand():  # noqa: ASYNC110 (counters that others keep)
                await asyncio.sleep(DRAIN_LOOK_S)
    except TimeoutError:
        return


async def ended(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel *tasks* until each has ended. Once is not enough: a library that is interrupted in the middle of its own
    cleaning up may take the interruption for an error of the connection, and then nothing remembers it."""
    waiting = set(tasks)
    while waiting:
        for task in waiting:
            task.cancel()
        _, waiting = await asyncio.wait(waiting, timeout=AGAIN_S)


class Stopped(Exception):
    """What was inside was ended; it may have had its effect."""


@asynccontextmanager
async def until(stopped: Callable[[], object]) -> AsyncIterator[None]:
    """What is inside runs until *stopped*, which is asked four times a second and once more at its end; then it is
    cancelled where it waits, and :class:`Stopped` is raised in its place."""
    loop = asyncio.get_running_loop()
    looking: asyncio.TimerHandle | None = None

    def look() -> None:
        nonlocal looking
        if stopped():
            limit.reschedule(loop.time())
        else:
            looking = loop.call_later(CHECK_S, look)

    try:
        async with asyncio.timeout(None) as limit:
            looking = loop.call_later(CHECK_S, look)
            yield
    except TimeoutError:
        if limit.expired():
            raise Stopped from None
        raise
    finally:
        if looking is not None:
            looking.cancel()
    if stopped():
        raise Stopped
