"""A writer forgets what somebody else has: hashes stay, frames go, and whatever happens meanwhile nothing else is lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trust.test_ledger import KEY, ORIGIN, SEGMENT, flip, open_ledger
from trust.ledger import checkpoint, log, pruning, sealer, shipment, tiles
from trust.ledger.checkpoint import Checkpoint
from trust.ledger.disk import Disk
from trust.ledger.entries import Gap, Pruned, Stamp, encode, stamped
from trust.ledger.log import LedgerDamaged, whole_tiles
from trust.ledger.merkle import EMPTY_ROOT
from trust.ledger.mirror import Forked, Mirror, Unfit
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
    pruning.require_hashes(root, first)
    ledger.append(Pruned(ORIGIN, first, 1, "test"))
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
        assert (report.faults, report.sealed, report.pruned) == ([], SIZE + 1 + more, 768)
        assert "the entries below 768 were pruned: only their hashes are here" in report.words()
    ledger = open_ledger(written, boot="reads")
    *_, (index, last) = ledger.lines()
    ledger.close()
    assert (index, last.entry) == (SIZE + 400, Gap("test", "entry 399 " + "y" * 200))
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
    assert (report.faults, report.sealed, report.pruned) == ([], SIZE + 11, 768)


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
    ledger.append(Pruned(ORIGIN, 768, 1, "test"))
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
    assert (report.faults, report.sealed, report.pruned) == ([], SIZE + 6, 768 if at else 0)
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
            mirror.take_pruned(head.first, bundle, head.pruned, by_writer=by_writer)
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
    assert report.sealed == sealed(written).size == SIZE + 1 + more
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
        mirror.take_pruned(0, hashes, 256)
    with pytest.raises(Unverifiable, match="expected them from 0"):
        mirror.take_pruned(256, [b"x" * 32] * 256, 512)


@pytest.mark.parametrize("by_writer", [True, False])
def test_nobody_makes_a_witness_forget(written: Path, tmp_path: Path, by_writer: bool) -> None:
    """A copy ends early, and whoever ships says that there is no more than hashes of what was there."""
    copy, early = tmp_path / "copy", tmp_path / "early"
    fill(early, 300)
    ship(early, copy_of(copy, NOTHING))
    fill(early, 900, boot="b2")
    known = sealed(early)
    forget(early, 768)
    with pytest.raises(Unfit, match="it ended at 300, and of what follows only hashes are left") as found:
        ship(early, copy_of(copy, known), by_writer=by_writer)
    assert found.value.known == known
    report = verify(copy, copy=True)
    assert (report.faults, report.sealed, report.pruned) == ([], 300, 0), "it is untouched"


def test_a_copy_that_is_whole_is_not_put_away(written: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    ship(written, copy_of(copy, NOTHING))
    mirror = copy_of(copy, sealed(copy))
    more = -mirror.size % 256
    with pytest.raises(Forked):
        mirror.take_pruned(mirror.size, [b"x" * 32] * more, mirror.size + more, by_writer=True)


def test_no_writer_says_that_another_log_was_pruned(tmp_path: Path) -> None:
    for origin, fits in ((ORIGIN, True), ("mesh.test/gateway/main", False)):
        data = stamped(Stamp(ORIGIN, 0, "b", 1, 1), encode(Pruned(origin, 256, 1, "keep_days")))
        mirror = copy_of(tmp_path / "copy", NOTHING)
        if fits:
            mirror.take(0, [data])
        else:
            with pytest.raises(Unverifiable, match="says that another log was pruned"):
                mirror.take(0, [data])


def test_hashes_are_enough_where_a_person_said_so(written: Path, tmp_path: Path) -> None:
    """After a backup that was too old."""
    forget(written, 768)
    for lacks in (512, 768):
        mirror = Mirror(tmp_path / f"copy-{lacks}", ORIGIN, KEY.public, NOTHING, lacks)
        if lacks == 768:
            ship(written, mirror)
        else:
            with pytest.raises(Forked, match="--pruned-below 768"):
                ship(written, mirror)
    assert verify(tmp_path / "copy-768", copy=True).pruned == 768
    mirror = Mirror(tmp_path / "copy-more", ORIGIN, KEY.public, NOTHING, 10**12)
    with pytest.raises(Unverifiable, match="up to 1024, of which 768 were pruned"):
        mirror.take_pruned(0, [b"x" * 32] * 1024, 768, by_writer=True)


def test_a_tile_that_is_full_is_durable_before_anything_vouches_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: set[Path] = set()
    honest, write = tiles.flush_path, sealer.write_atomically

    def flush(path: Path) -> None:
        flushed.add(path)
        honest(path)

    def vouch(path: Path, data: bytes, *, flush: bool = False) -> None:
        size = checkpoint.open_checkpoint(data, ORIGIN, KEY.public).size
        for number in range(size // 256):
            full = [tmp_path / "log" / tiles.tile_path(level, number, 256) for level in (0, "entries")]
            assert {*full, *(one.parent for one in full)} <= flushed
        write(path, data, flush=flush)

    monkeypatch.setattr(tiles, "flush_path", flush)
    monkeypatch.setattr(sealer, "write_atomically", vouch)
    fill(tmp_path / "log", 700)
    assert sealed(tmp_path / "log").size == 700
    monkeypatch.setattr(sealer, "write_atomically", write)
    flushed.clear()
    mirror = copy_of(tmp_path / "copy", NOTHING)
    ship(tmp_path / "log", mirror)
    assert {tmp_path / "copy" / tiles.tile_path("entries", number, 256) for number in (0, 1)} <= flushed


def test_what_are_not_the_hashes_is_noticed_before_anything_is_removed(written: Path) -> None:
    """A power failure emptied a tile that nobody has looked at since."""
    (written / "tile/0/001").write_bytes(b"")
    ledger = open_ledger(written)
    with pytest.raises(Unverifiable, match="too short"):
        pruning.require_hashes(written, 768)
    flip(written / "tile/0/002", 40)
    (written / "tile/0/001").unlink()
    shutil.copy(written / "tile/0/000", written / "tile/0/001")
    with pytest.raises(Unverifiable, match="tile 0/1 is not the hashes"):
        pruning.require_hashes(written, 768)
    ledger.close()


def test_a_hole_that_no_entry_tells_of_is_a_fault(written: Path) -> None:
    ledger = open_ledger(written)
    ledger.prune(768)
    ledger.close()
    report = verify(written)
    assert report.faults == ["the entries below 768 are gone, and no entry says that they were pruned"]
    assert not report.holds


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


def test_a_copy_that_seems_whole_and_is_not_is_no_fork(written: Path, tmp_path: Path) -> None:
    """An entry and its hash were changed together, so only the root tells."""
    copy, other = tmp_path / "copy", tmp_path / "other"
    ship(written, copy_of(copy, NOTHING))
    fill(other, 256)
    for name in ("tile/0/000", "tile/entries/000"):
        shutil.copy(other / name, copy / name)
    shutil.rmtree(copy / "tile/1")
    known = sealed(copy)
    with pytest.raises(Unfit, match="after a crash it had not the root that was witnessed"):
        ship(written, copy_of(copy, known))


def test_whole_tiles_are_those_of_the_log(whole: Path) -> None:
    one = log.resume_tiles(whole, sealed(whole))
    assert one is not None
    assert whole_tiles(whole, 1024).edge.size == 1024
    assert whole_tiles(whole, 1024).edge.levels[1] == one.edge.levels[1]
