"""What ``licet up`` does with the processes that it started."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from licet.launcher import Launcher
from licet.settings import load

PROGRAM = """
import signal, sys, time
def end(*_):
    time.sleep(1)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(("drain_s", "ends"), [("0", -signal.SIGKILL), ("30", 0)])
def test_a_part_may_finish_what_it_has_in_hand_for_as_long_as_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drain_s: str, ends: int
) -> None:
    monkeypatch.setenv("LICET_HOME", str(tmp_path))
    monkeypatch.setenv("LICET_NODE__DRAIN_S", drain_s)
    monkeypatch.setattr("licet.launcher.STOP_WITHIN_S", 0.3)
    part = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE)
    assert part.stdout is not None
    assert part.stdout.readline() == b"ready\n"
    Launcher(load(), parts={"node-1": part}).stop()
    assert part.wait() == ends
