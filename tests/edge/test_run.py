"""A process that was told to end ends, whatever hangs in it."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Final

PART: Final = """
import asyncio, threading
from edge import run

class Part:
    port = 0

    async def start(self):
        pass

    async def deaf(self, times):
        while times:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                times -= 1

    async def stop(self):
        {hang}

run.STOP_WITHIN_S, run.END_WITHIN_S = 0.2, {end}
run.run(Part(), lambda: print("ready", flush=True))
print("ended", flush=True)
"""


def ends(hang: str, end: float) -> tuple[int, str, str]:
    """Exit code, and what it said."""
    process = subprocess.Popen(
        [sys.executable, "-c", PART.format(hang=hang, end=end)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
        return process.returncode, out, err
    finally:
        process.kill()
        process.wait()


def test_a_thread_that_hangs_keeps_no_process_alive() -> None:
    code, out, err = ends("await asyncio.to_thread(threading.Event().wait)", 1.0)
    assert (code, out) == (1, "")
    assert "did not stop within" in err
    assert "in wait" in err, "where it hung"


def test_a_task_that_cannot_be_cancelled_keeps_no_process_alive() -> None:
    code, _, err = ends("await asyncio.create_task(self.deaf(10_000))", 1.0)
    assert code == 1
    assert "Timeout" in err


def test_a_task_that_needs_more_than_one_cancellation_ends() -> None:
    code, out, err = ends("self.task = asyncio.create_task(self.deaf(3)); await asyncio.sleep(3600)", 20.0)
    assert (code, out) == (0, "ended\n"), err
    assert "did not stop within" in err
