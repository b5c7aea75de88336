"""A writer forgets what somebody else has: hashes stay, frames go, and whatever happens meanwhile nothing else is lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trust.test_ledger import KEY, ORIGIN, SEGMENT, flip, open_ledger
from trust.ledger import checkpoint, log, pruning, shipment
from trust.ledger.checkpoint import Checkpoint
from trust.ledger.disk import Disk
from trust.ledger.entries import Gap
from trust.ledger.log import LedgerDamaged, whole_tiles
from trust.ledger.merkle import EMPTY_ROOT
from trust.ledger.mirror import Forked, Mirror
from trust.ledger.pruning import MARK, first_kept
from trust.ledger.segments import Segments
from trust.ledger.verify import verify
from trust.reasons import Unverifiable

SIZE = 1100


def fill(root: Path, count: int, boot: str = "b1") -> None:
    """With what a sidecar may write."""
    ledger = open_ledger(root, boot=boot)
    for number in range(count):
        ledger.append(Gap("test", f"entry {number} " + "y" * 200))
    ledger.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole") / "log"
    fill(root, SIZE)
    return root


@pytest.fixture
def written(whole: Path, tmp_path: Path) -> Path:
    """A log of 1,100 entries in several segments."""
    return shutil.copytree(whole, tmp_path / "log")


def firsts(root: Path) -> list[int]:
    return [segment.first for segment in Segments(root / "wal", Disk(), SEGMENT).all()]


def forget(root: Path, first: int) -> None:
    ledger = open_ledger(root, boot="forgets")
    ledger.prune(first)
    ledger.close()


def sealed(root: Path) -> Checkpoint:
    return checkpoint.open_checkpoint((root / "checkpoint").read_bytes(), ORIGIN, KEY.public)


def test_frames_and_entries_go_and_the_log_goes_on(written: Path) -> None:
    before = firsts(written)
    forget(written, 768)
    assert firsts(written) == before[max(n for n, first in enumerate(before) if first <= 768) :]
    assert firsts(written)[0] > 0
    for more in (0, 400):
        fill(written, more, boot=f"b{more}")
        report = verify(written)
        assert (report.faults, report.sealed, report.pruned) == ([], SIZE + more, 768)
        assert "the entries below 768 were pruned: only their hashes are here" in report.words()
    ledger = open_ledger(written, boot="reads")
    *_, (index, last) = ledger.lines()
    ledger.close()
    assert (index, last.entry) == (SIZE + 399, Gap("test", "entry 399 " + "y" * 200))
    forget(written, 1280)
    assert (verify(written).faults, firsts(written)[0] > 768) == ([], True)


def test_after_a_power_failure_it_is_put_together_from_hashes_and_frames(written: Path) -> None:
    """What was not flushed: the last tiles, and those above the first level."""
    forget(written, 768)
    for lost in (written / "tile/1", written / "tile/0/004.p", written / "tile/entries/004.p"):
        shutil.rmtree(lost)
    (written / "tile/entries/003").unlink()
    fill(written, 10, boot="after")
    report = verify(written)
    assert (report.faults, report.sealed, report.pruned) == ([], SIZE + 10, 768)


@pytest.mark.parametrize("how", ["missing", "another"])
def test_hashes_that_are_all_that_is_left_are_not_guessed(written: Path, how: str) -> None:
    forget(written, 768)
    shutil.rmtree(written / "tile/1")
    if how == "missing":
        (written / "tile/0/001").unlink()
    else:
        flip(written / "tile/0/001", 40)
    with pytest.raises(LedgerDamaged):
        open_ledger(written)


@pytest.mark.parametrize("at", range(9))
def test_a_crash_while_it_forgets_loses_nothing_else(written: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Wherever it ends: before the mark, and at each file that goes."""

    class Crash(BaseException):
        pass

    left = at

    def step() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Crash

    honest, write = Path.unlink, pruning.write_atomically

    def unlink(self: Path, missing_ok: bool = False) -> None:
        if "entries" in str(self) or self.suffix == ".segment":
            step()
        honest(self, missing_ok)

    def mark(path: Path, data: bytes, *, flush: bool = False) -> None:
        step()
        write(path, data, flush=flush)

    ledger = open_ledger(written, boot="dies")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", unlink)
        patched.setattr(pruning, "write_atomically", mark)
        try:
            ledger.prune(768)
            crashed = False
        except Crash:
            crashed = True
    ledger.close()
    assert crashed == (at < 8), "one mark, three bundles, and the segments"
    assert verify(written).faults == []
    fill(written, 5, boot="after")
    report = verify(written)
    assert (report.faults, report.sealed, report.pruned) == ([], SIZE + 5, 768 if at else 0)
    if at:
        assert firsts(written)[0] > 0, "what the crash left is gone"


def test_segments_are_missed_unless_it_says_that_they_were_pruned(written: Path) -> None:
    segments = Segments(written / "wal", Disk(), SEGMENT).all()
    segments[0].path.unlink()
    assert not verify(written).holds
    with pytest.raises(LedgerDamaged, match=f"entries 0 to {segments[1].first - 1} are missing"):
        open_ledger(written)
    (written / MARK).write_text("256\n")
    segments[1].path.unlink()
    assert segments[2].first > 256
    with pytest.raises(LedgerDamaged, match=f"entries 256 to {segments[2].first - 1} are missing"):
        open_ledger(written)
    assert not verify(written).holds


@pytest.mark.parametrize("text", ["1280\n", "99999872\n", "-256\n", "300\n", ""])
def test_a_mark_that_is_none_removes_nothing(written: Path, text: str) -> None:
    before = firsts(written)
    (written / MARK).write_text(text)
    with pytest.raises(LedgerDamaged):
        open_ledger(written)
    assert firsts(written) == before
    assert not verify(written).holds


# On its way to the witness


def ship(written: Path, mirror: Mirror, *, by_writer: bool = True) -> None:
    """All that *mirror* has not."""
    vkey, note = (written / "vkey").read_text().strip(), (written / "checkpoint").read_bytes()
    end = sealed(written)
    while True:
        head, bundle = shipment.unpack(shipment.following(written, vkey, mirror.size, end.size, note))
        if head.pruned:
            mirror.take_pruned(head.first, bundle, by_writer=by_writer)
        else:
            mirror.take(head.first, bundle)
        if head.checkpoint:
            mirror.keep(mirror.check(note), note)
            return


def copy_of(root: Path, known: Checkpoint) -> Mirror:
    return Mirror(root, ORIGIN, KEY.public, known)


NOTHING = Checkpoint(ORIGIN, 0, EMPTY_ROOT, 0)


@given(first=st.integers(0, 4), many=st.integers(1, 3), more=st.integers(0, 2))
def test_a_witness_that_lost_its_copy_gets_hashes_for_what_is_gone(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, first: int, many: int, more: int
) -> None:
    home = tmp_path_factory.mktemp("case")
    written, copy = shutil.copytree(whole, home / "log"), home / "copy"
    known = sealed(written)
    forget(written, first * 256)
    fill(written, more, boot="b2")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shipment, "TILES_OF_HASHES", many)
        ship(written, copy_of(copy, known))
    report = verify(copy, copy=True)
    assert (report.faults, report.pruned) == ([], first * 256)
    assert report.sealed == sealed(written).size == SIZE + more
    fill(written, 7, boot="b3")
    ship(written, copy_of(copy, sealed(copy)))
    report = verify(copy, copy=True)
    assert (report.faults, report.pruned, report.sealed) == ([], first * 256, sealed(written).size)


def test_nobody_keeps_to_himself_what_nobody_has_seen(written: Path, tmp_path: Path) -> None:
    """Hashes are taken for nothing but what was witnessed with all that it says."""
    forget(written, 768)
    for known in (NOTHING, Checkpoint(ORIGIN, 767, b"x" * 32, 0)):
        with pytest.raises(Forked, match="below 768 were pruned where they were written, and only"):
            ship(written, copy_of(tmp_path / "copy", known))
    assert not (tmp_path / "copy" / "checkpoint").exists()
    assert first_kept(tmp_path / "copy") == 0


def test_hashes_of_another_log_are_a_fork(written: Path, tmp_path: Path) -> None:
    known = sealed(written)
    forget(written, 768)
    flip(written / "tile/0/001", 40)
    with pytest.raises(Forked, match="are not those that were witnessed"):
        ship(written, copy_of(tmp_path / "copy", known))
    assert not (tmp_path / "copy" / "checkpoint").exists()


@pytest.mark.parametrize("hashes", [[], [b"x" * 32] * 255, [b"x" * 31] * 256, [b"x" * 32] * 255 + [b""]])
def test_what_are_no_hashes_is_refused(written: Path, tmp_path: Path, hashes: list[bytes]) -> None:
    mirror = copy_of(tmp_path / "copy", sealed(written))
    with pytest.raises(Unverifiable, match="expected them from 0 to where a tile ends"):
        mirror.take_pruned(0, hashes)
    with pytest.raises(Unverifiable, match="expected them from 0"):
        mirror.take_pruned(256, [b"x" * 32] * 256)


def test_a_copy_that_has_a_beginning_forgets_it_with_what_follows(written: Path, tmp_path: Path) -> None:
    """The gateway was away for longer than the others keep entries."""
    early = tmp_path / "early"
    fill(early, 300)
    mirror = copy_of(tmp_path / "copy", NOTHING)
    ship(early, mirror)
    fill(early, 900, boot="b2")
    known = sealed(early)
    forget(early, 768)
    ship(early, copy_of(tmp_path / "copy", known), by_writer=False)
    report = verify(tmp_path / "copy", copy=True)
    assert (report.faults, report.pruned, report.sealed) == ([], 768, sealed(early).size)
    assert sorted(path.name for path in (tmp_path / "copy/tile/entries").glob("[0-9]*"))[0] == "003"


def test_no_writer_makes_a_witness_forget(written: Path, tmp_path: Path) -> None:
    """A copy lost its end, and its writer says that there is no more than hashes of what was there."""
    copy, early = tmp_path / "copy", tmp_path / "early"
    fill(early, 300)
    ship(early, copy_of(copy, NOTHING))
    fill(early, 900, boot="b2")
    known = sealed(early)
    forget(early, 768)
    with pytest.raises(Unverifiable, match="ended at 300; it is kept aside"):
        ship(early, copy_of(copy, known))
    ship(early, copy_of(copy, known))
    assert verify(copy, copy=True).pruned == 768
    kept = verify(tmp_path / "copy.aside-1", copy=True)
    assert (kept.faults, kept.sealed, kept.pruned) == ([], 300, 0)


def test_a_copy_whose_last_tiles_a_crash_took_goes_on_where_it_is_whole(written: Path, tmp_path: Path) -> None:
    """Its writer may have only hashes of what is before."""
    copy = tmp_path / "copy"
    ship(written, copy_of(copy, NOTHING))
    shutil.rmtree(copy / "tile/0/004.p")
    forget(written, 768)
    mirror = copy_of(copy, sealed(copy))
    assert mirror.size == 1024
    ship(written, mirror)
    report = verify(copy, copy=True)
    assert (report.faults, report.pruned, report.sealed) == ([], 0, sealed(written).size)
    shutil.rmtree(copy / "tile/0/004.p")
    flip(copy / "tile/entries/001", 40)
    assert whole_tiles(copy, 1024).edge.size == 256


def test_a_copy_that_seems_whole_and_is_not_begins_anew(written: Path, tmp_path: Path) -> None:
    """An entry and its hash were changed together, so only the root tells."""
    copy, other = tmp_path / "copy", tmp_path / "other"
    ship(written, copy_of(copy, NOTHING))
    fill(other, 256)
    for name in ("tile/0/000", "tile/entries/000"):
        shutil.copy(other / name, copy / name)
    shutil.rmtree(copy / "tile/1")
    known = sealed(copy)
    with pytest.raises(Unverifiable, match="was damaged and begins anew"):
        ship(written, copy_of(copy, known))
    assert [path.name for path in tmp_path.glob("copy.*")] == ["copy.aside-1"]
    ship(written, copy_of(copy, known))
    assert verify(copy, copy=True).holds


def test_whole_tiles_are_those_of_the_log(whole: Path) -> None:
    one = log.resume_tiles(whole, sealed(whole))
    assert one is not None
    assert whole_tiles(whole, 1024).edge.size == 1024
    assert whole_tiles(whole, 1024).edge.levels[1] == one.edge.levels[1]
