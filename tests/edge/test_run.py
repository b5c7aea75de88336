"""A process that was told to end ends, whatever hangs in it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
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

    async def drain(self):
        {drain}

    async def stop(self):
        {hang}

run.STOP_WITHIN_S, run.END_WITHIN_S = 0.2, {end}
run.run(Part(), lambda: print("ready", flush=True))
print("ended", flush=True)
"""


def ends(hang: str, end: float, drain: str = "pass", signals: int = 1) -> tuple[int, str, str]:
    """Exit code, and what it said."""
    process = subprocess.Popen(
        [sys.executable, "-c", PART.format(hang=hang, end=end, drain=drain)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for _ in range(signals):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
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


def test_what_is_in_hand_is_finished_first() -> None:
    drain = "await asyncio.sleep(1); print('finished', flush=True)"
    assert ends("print('stopped', flush=True)", 20.0, drain)[:2] == (0, "finished\nstopped\nended\n")


def test_who_asks_twice_does_not_wait_for_it() -> None:
    code, out, err = ends("pass", 20.0, "await asyncio.sleep(3600)", signals=2)
    assert (code, out) == (0, "ended\n"), err


def test_a_fault_in_finishing_keeps_nothing_from_ending() -> None:
    code, out, err = ends("pass", 20.0, "raise OSError('broken')")
    assert (code, out) == (0, "ended\n")
    assert "broken" in err
