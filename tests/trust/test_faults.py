"""Every write, flush and rename of a ledger made to fail, one after the other, and every point at which it is killed."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.trust.test_ledger import ORIGIN, append, details, open_ledger
from trust.ledger import checkpoint, disk, segments, tiles
from trust.ledger.log import LedgerDamaged
from trust.ledger.verify import verify
from trust.ledger.writer import LedgerUnavailable

ENTRIES = 90
"""Of some 900 bytes each in segments of 64 KiB: the log goes from one segment to the next."""
CALLS = ("pwrite", "fsync", "open", "replace")
NUMBERS = {"enospc": errno.ENOSPC, "eio": errno.EIO}
HOWS = ("enospc", "eio", "short", "torn", "slow")


class FaultyOs:
    """The ``os`` module, whose *nth* call that changes the disk fails; everything after it works again."""

    def __init__(self, nth: int, how: str) -> None:
        self.nth = nth
        self.how = how
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in CALLS:
            return real

        def call(*arguments: Any, **more: Any) -> Any:
            self.calls += 1
            if self.calls - 1 != self.nth:
                return real(*arguments, **more)
            if self.how == "slow":
                time.sleep(0.05)
                return real(*arguments, **more)
            if name == "pwrite" and self.how in ("short", "torn"):
                fd, data, offset = arguments
                written = real(fd, data[: len(data) // 2], offset)
                if self.how == "short":
                    return written
            number = NUMBERS.get(self.how, errno.EIO)
            raise OSError(number, os.strerror(number))

        return call


@contextmanager
def faulty(nth: int, how: str) -> Iterator[FaultyOs]:
    shim = FaultyOs(nth, how)
    before = [(module, module.os) for module in (disk, segments, tiles)]  # type: ignore[attr-defined]
    for module, _ in before:
        module.os = shim  # type: ignore[attr-defined]
    try:
        yield shim
    finally:
        for module, real in before:
            module.os = real  # type: ignore[attr-defined]


def session(root: Path) -> tuple[list[str], bool]:
    """(what was acknowledged, whether everything was): a ledger opened, written to, and closed."""
    acknowledged: list[str] = []
    try:
        ledger = open_ledger(root, boot="b1")
    except (OSError, LedgerUnavailable):
        return acknowledged, False
    whole = True
    for number in range(ENTRIES):
        try:
            if append(ledger, f"n{number} " + "y" * 800) is None:
                assert whole, "once failed, nothing may be acknowledged again"
                acknowledged.append(f"n{number}")
            else:
                whole = False
        except LedgerUnavailable:
            whole = False
    ledger.close()
    return acknowledged, whole and ledger.fault is None


def check(root: Path, acknowledged: list[str]) -> None:
    """A restart finds everything that was acknowledged, in order, and an outsider can verify it."""
    found = [text.split()[0] for text in details(root)]
    assert found[: len(acknowledged)] == acknowledged
    assert found == [f"n{number}" for number in range(len(found))], "a hole"
    report = verify(root)
    assert report.faults == []
    assert report.holds


def points(how: str, soak: bool) -> list[int]:
    """All calls of a session without faults in the long version, every seventh otherwise."""
    with faulty(-1, how) as shim, pytest.MonkeyPatch.context() as patch:
        import tempfile

        with tempfile.TemporaryDirectory() as directory:
            patch.setattr("trust.ledger.sealer.INTERVAL_S", 0.02)
            session(Path(directory))
    return list(range(0, shim.calls, 1 if soak else max(1, shim.calls // 12)))


@pytest.mark.parametrize("how", HOWS)
def test_whatever_fails_nothing_acknowledged_is_lost(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr("trust.ledger.sealer.INTERVAL_S", 0.02)  # checkpoints and tiles in between, often
    failed = 0
    for nth in points(how, bool(request.config.getoption("--soak"))):
        root = tmp_path / str(nth)
        with faulty(nth, how):
            acknowledged, whole = session(root)
        if how == "slow":
            assert whole
            assert len(acknowledged) == ENTRIES
        failed += not whole
        check(root, acknowledged)
    assert how == "slow" or failed >= 5, "the faults must have been felt"


WRITER = """
import sys
from pathlib import Path
from tests.trust.test_ledger import append, open_ledger
import trust.ledger.sealer as sealer

sealer.INTERVAL_S = 0.01
root, boot, first = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
ledger = open_ledger(root, boot=boot)
print("open", flush=True)
for number in range(first, first + 100_000):
    if append(ledger, f"n{number} " + "y" * (number * 37 % 900)) is None:
        print(f"n{number}", flush=True)
"""


def kill_once(root: Path, boot: str, first: int, after_s: float) -> list[str]:
    """What a writer acknowledged before it was killed, that long after it had opened its log."""
    command = [sys.executable, "-c", WRITER, str(root), boot, str(first)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    time.sleep(after_s)
    process.send_signal(signal.SIGKILL)
    told = process.communicate()[0].splitlines(keepends=True)
    return [line.strip() for line in told if line.endswith("\n")]


def kill_often(root: Path, times: int, seed: int) -> int:
    """One log through many deaths; how many entries were acknowledged in all."""
    chance = random.Random(seed)
    acknowledged: list[str] = []
    for death in range(times):
        first = int(acknowledged[-1][1:]) + 1_000 if acknowledged else 0
        acknowledged += kill_once(root, f"b{death}", first, chance.random() * 0.25)
        found = {text.split()[0] for text in details(root, boot=f"look{death}")}
        assert found >= set(acknowledged), f"death {death}: an acknowledged entry is lost"
        report = verify(root)
        assert report.faults == [], f"death {death}"
        origin, key = checkpoint.parse_vkey((root / "vkey").read_text())
        assert (origin, report.sealed) == (ORIGIN, checkpoint.open_checkpoint(
            (root / "checkpoint").read_bytes(), origin, key
        ).size)  # fmt: skip
    return len(acknowledged)


@pytest.mark.slow
def test_a_log_survives_being_killed_again_and_again(tmp_path: Path) -> None:
    assert kill_often(tmp_path, 8, seed=1) > 50


@pytest.mark.soak
def test_a_log_survives_two_hundred_deaths(tmp_path: Path) -> None:
    assert kill_often(tmp_path, 200, seed=2) > 1_000


def test_a_clock_that_goes_backward_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order is that of the log, whatever its clock says; the gap is shown, not repaired."""
    now = [2_000_000_000_000_000]
    monkeypatch.setattr("tests.trust.test_ledger.Clock.wall_us", lambda _: now[0])
    ledger = open_ledger(tmp_path)
    for _ in range(10):
        assert append(ledger) is None
        now[0] -= 3_600_000_000
    ledger.close()
    assert verify(tmp_path).holds
    again = open_ledger(tmp_path, boot="b2")
    walls = [line.stamp.wall_us for _, line in again.lines()]
    again.close()
    assert walls == sorted(walls, reverse=True)


def test_a_log_does_not_go_on_under_another_key(tmp_path: Path) -> None:
    """A log's key is part of its name: who lost it begins anew, and a person says so to the witness."""
    from trust.identity.keys import SecretKey

    assert session(tmp_path)[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.trust.test_ledger.KEY", SecretKey.generate())
        with pytest.raises(LedgerDamaged, match="another key or origin"):
            open_ledger(tmp_path, boot="b2")
