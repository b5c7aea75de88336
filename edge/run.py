"""Running one process of the mesh: uvloop, signals, and an end after what is in hand, soon and whatever hangs."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import logging
import signal
import sys
from collections.abc import Callable
from typing import Final, Protocol

import uvloop

from edge.stopping import ended

STOP_WITHIN_S: Final = 1.8
END_WITHIN_S: Final = 10.0
SWITCH_INTERVAL_S: Final = 0.0005
"""The ledger's threads wait for the interpreter lock; the default of 5 ms would be most of a call's latency."""

GC_THRESHOLDS: Final = (50_000, 20, 50)
"""Reference counts free nearly everything here; the collector only looks for cycles."""


class Part(Protocol):
    """A gateway, a sidecar or a node."""

    port: int

    async def start(self) -> None: ...

    async def drain(self) -> None:
        """Take nothing new on, and finish what is in hand, for as long as its configuration says."""

    async def stop(self) -> None: ...


def run(part: Part, on_started: Callable[[], None]) -> None:
    """Start *part*, call *on_started*, and stop on SIGINT or SIGTERM. What cannot start ends the process with
    its reason."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    uvloop.run(_run(part, on_started))


def calm_the_collector() -> None:
    """What is there after the start stays: looking through it again and again costs tens of milliseconds."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


async def _drained(part: Part, stopping: asyncio.Event) -> None:
    """Until nothing is in hand, or somebody asks once more."""
    stopping.clear()
    draining, again = asyncio.create_task(part.drain()), asyncio.create_task(stopping.wait())
    await asyncio.wait([draining, again], return_when=asyncio.FIRST_COMPLETED)
    again.cancel()
    if draining.cancel():
        return
    if (bug := draining.exception()) is not None:
        logging.getLogger("licet").error("finishing what was in hand failed: %s: %s", type(bug).__name__, bug)


async def _run(part: Part, on_started: Callable[[], None]) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, stopping.set)
    await part.start()
    calm_the_collector()
    on_started()
    await stopping.wait()
    await _drained(part, stopping)
    # A thread that hangs, or a task that cannot be cancelled, keeps no process alive: it ends, and says where it hung.
    if sys.stderr is not None:
        faulthandler.dump_traceback_later(END_WITHIN_S, exit=True)
    try:
        async with asyncio.timeout(STOP_WITHIN_S):
            await part.stop()
    except TimeoutError:
        # The ledger is durable at every moment, so ending here loses nothing that was answered.
        logging.getLogger("licet").warning("did not stop within %.1f s; ending anyway", STOP_WITHIN_S)
        await ended(asyncio.all_tasks() - {asyncio.current_task()})
