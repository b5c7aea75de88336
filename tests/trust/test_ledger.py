"""The ledger: durable, recovered, tamper-evident; and what happens when the disk fails."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trust.identity.keys import SecretKey
from trust.ledger import checkpoint
from trust.ledger.checkpoint import Checkpoint
from trust.ledger.disk import Disk
from trust.ledger.entries import Admin, AnyEntry, Gap, Outcome, decode
from trust.ledger.frames import Scan, frame
from trust.ledger.log import Ledger, LedgerDamaged
from trust.ledger.merkle import EMPTY_ROOT, Edge, leaf_hash, node_hash, subtree_root
from trust.ledger.tiles import pack_entries, tile_name, unpack_entries
from trust.ledger.verify import verify
from trust.ledger.writer import EntryInvalid, EntryTooLarge, LedgerUnavailable
from trust.reasons import Unverifiable

KEY = SecretKey(bytes(range(32)))
ORIGIN = "mesh.test/sidecar/a"
SEGMENT = 64 << 10


class Clock:
    def wall_us(self) -> int:
        return time.time_ns() // 1000

    def mono_ns(self) -> int:
        return time.monotonic_ns()


def open_ledger(root: Path, disk: Disk | None = None, boot: str = "b1", **more: object) -> Ledger:
    def done(tokens: object, error: LedgerUnavailable | None) -> None:
        for token in tokens:  # type: ignore[attr-defined]
            if token is not None:
                token(error)

    return Ledger.open(
        root,
        origin=ORIGIN,
        key=KEY,
        clock=Clock(),
        boot=boot,
        on_durable=done,
        disk=disk,
        segment_bytes=SEGMENT,
        **more,  # type: ignore[arg-type]
    )


def append(ledger: Ledger, text: str = "x") -> LedgerUnavailable | None:
    """Append and wait; the error, if it did not become durable."""
    heard: list[LedgerUnavailable | None] = []
    event = threading.Event()

    def told(error: LedgerUnavailable | None) -> None:
        heard.append(error)
        event.set()

    ledger.append(Admin("test", "me", text), told)
    assert event.wait(10)
    return heard[0]


def fill(root: Path, count: int, **more: object) -> None:
    ledger = open_ledger(root, **more)  # type: ignore[arg-type]
    for number in range(count):
        assert append(ledger, f"entry {number} " + "y" * 200) is None
    ledger.close()


def details(root: Path, boot: str = "later") -> list[str]:
    ledger = open_ledger(root, boot=boot)
    found = [line.entry.role for _, line in ledger.lines() if isinstance(line.entry, Admin)]
    ledger.close()
    return found


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 700])
def test_a_log_that_was_closed_verifies_and_reads_back(tmp_path: Path, count: int) -> None:
    fill(tmp_path, count)
    report = verify(tmp_path)
    assert report.faults == []
    assert report.holds
    assert (report.sealed, report.entries) == (count, count)
    assert len(details(tmp_path)) == count
    assert verify(tmp_path).holds


def test_many_restarts_keep_one_log(tmp_path: Path) -> None:
    for boot in range(12):
        ledger = open_ledger(tmp_path, boot=f"b{boot}")
        for number in range(50):
            append(ledger, f"{boot}:{number}")
        ledger.close()
    assert verify(tmp_path).faults == []
    assert details(tmp_path) == [f"{b}:{n}" for b in range(12) for n in range(50)]


def test_stamps_count_without_a_gap_and_name_their_boot(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    ledger = open_ledger(tmp_path, boot="b2")
    append(ledger)
    found = [(line.stamp.seq, line.stamp.boot, line.stamp.origin) for _, line in ledger.lines()]
    ledger.close()
    assert found == [(0, "b1", ORIGIN), (1, "b1", ORIGIN), (2, "b1", ORIGIN), (3, "b2", ORIGIN)]


def test_a_second_writer_is_kept_out(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    with pytest.raises(LedgerUnavailable, match="another process writes"):
        open_ledger(tmp_path)
    ledger.close()
    open_ledger(tmp_path).close()


def test_an_entry_that_is_too_large_is_refused_and_poisons_nothing(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    with pytest.raises(EntryTooLarge):
        ledger.append(Admin("test", "me", "x" * 70_000))
    assert append(ledger) is None
    ledger.close()
    assert verify(tmp_path).holds


@pytest.mark.parametrize(
    "entry",
    [
        Admin(5, "me", "x"),  # type: ignore[arg-type]
        Outcome("a", "d", "r", "perhaps"),  # type: ignore[arg-type]
        Outcome("a", "d", "r", "done", duration_us=-1),
        Outcome("a", "d", "r", "done", step=11),
    ],
)
def test_what_would_not_be_read_back_is_not_written_and_poisons_nothing(tmp_path: Path, entry: AnyEntry) -> None:
    ledger = open_ledger(tmp_path)
    with pytest.raises(EntryInvalid, match="not a ledger entry"):
        ledger.append(entry)
    assert append(ledger) is None
    ledger.close()
    assert verify(tmp_path).holds


# Tampering


def wal(root: Path) -> list[Path]:
    return sorted((root / "wal").glob("[0-9]*.segment"))


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0x01]))


def log_files(root: Path) -> list[tuple[Path, int]]:
    """Every file of the log with how many of its bytes mean something."""
    found = []
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.name not in ("lock", "spare.segment"):
            data = path.read_bytes()
            found.append((path, len(data.rstrip(b"\0")) if path.suffix == ".segment" else len(data)))
    return found


@given(st.data())
def test_a_flipped_bit_anywhere_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    root = tmp_path_factory.mktemp("log")
    shutil.copytree(_sealed_log(tmp_path_factory), root, dirs_exist_ok=True)
    path, size = data.draw(st.sampled_from(log_files(root)))
    flip(path, data.draw(st.integers(0, size - 1)))
    # The verifier's own key, as an auditor has it: the vkey file beside the log is itself under attack.
    report = verify(root, key=KEY.public, origin=ORIGIN)
    assert not report.holds, f"{path} was changed and nobody noticed"


_cache: list[Path] = []


def _sealed_log(factory: pytest.TempPathFactory) -> Path:
    if not _cache:
        root = factory.mktemp("sealed")
        fill(root, 300)
        _cache.append(root)
    return _cache[0]


Tamper = Callable[[Path], None]


def rewrite(change: Callable[[list[bytes]], list[bytes]]) -> Tamper:
    """Write the frames anew, as somebody with the disk but without the key would."""

    def tamper(root: Path) -> None:
        entries = [data for path in wal(root) for data in Scan(path.read_bytes())]
        for path in wal(root):
            path.unlink()
        first = root / "wal" / f"{0:020d}.segment"
        body = b"".join(map(frame, change(entries)))
        first.write_bytes(body + bytes(max(0, SEGMENT - len(body))))

    return tamper


def edited(entries: list[bytes]) -> list[bytes]:
    return [*entries[:5], entries[5].replace(b"entry 5", b"entry 6"), *entries[6:]]


TAMPERS: dict[str, Tamper] = {
    "an entry edited with a correct checksum": rewrite(edited),
    "an entry inserted": rewrite(lambda e: [*e[:5], e[5], *e[5:]]),
    "an entry deleted": rewrite(lambda e: [*e[:5], *e[6:]]),
    "two entries swapped": rewrite(lambda e: [*e[:5], e[6], e[5], *e[7:]]),
    "the end cut off": rewrite(lambda e: e[:-1]),
    "everything cut off": rewrite(lambda e: []),
    "a segment removed": lambda root: wal(root)[1].unlink(),
    "a tile removed": lambda root: (root / "tile" / "0" / "000").unlink(),
    "an entry bundle removed": lambda root: (root / "tile" / "entries" / "000").unlink(),
    "the checkpoint removed": lambda root: (root / "checkpoint").unlink(),
    "the checkpoint of another log": lambda root: (root / "checkpoint").write_bytes(
        checkpoint.seal(Checkpoint("other/log", 300, bytes(32), 1), KEY)
    ) and None,
    "a checkpoint signed by another key": lambda root: (root / "checkpoint").write_bytes(
        checkpoint.seal(Checkpoint(ORIGIN, 0, EMPTY_ROOT, 1), SecretKey(bytes(32)))
    ) and None,
}  # fmt: skip


@pytest.mark.parametrize("tamper", TAMPERS.values(), ids=TAMPERS.keys())
def test_tampering_is_found(tmp_path: Path, tamper: Tamper) -> None:
    fill(tmp_path, 300)
    assert verify(tmp_path).holds
    tamper(tmp_path)
    report = verify(tmp_path, key=KEY.public, origin=ORIGIN)
    assert not report.holds
    assert report.faults
    assert all(report.words())


@pytest.mark.parametrize(
    "name",
    [
        "an entry edited with a correct checksum",
        "the end cut off",
        "everything cut off",
        "a segment removed",
        "a checkpoint signed by another key",
    ],
)
def test_a_tampered_log_is_not_opened(tmp_path: Path, name: str) -> None:
    fill(tmp_path, 300)
    TAMPERS[name](tmp_path)
    shutil.rmtree(tmp_path / "tile")  # even when the tiles must be made again from what was forged
    with pytest.raises(LedgerDamaged):
        open_ledger(tmp_path)


def test_a_restored_old_snapshot_is_not_opened(tmp_path: Path) -> None:
    fill(tmp_path / "log", 20)
    shutil.copytree(tmp_path / "log" / "wal", tmp_path / "old")
    fill(tmp_path / "log", 20, boot="b2")
    shutil.rmtree(tmp_path / "log" / "wal")
    shutil.copytree(tmp_path / "old", tmp_path / "log" / "wal")
    with pytest.raises(LedgerDamaged, match="only 20 can be read"):
        open_ledger(tmp_path / "log", boot="b3")


def test_lost_tiles_are_made_again(tmp_path: Path) -> None:
    fill(tmp_path, 600)
    shutil.rmtree(tmp_path / "tile")
    fill(tmp_path, 1, boot="b2")
    assert verify(tmp_path).faults == []


def test_a_ledger_whose_frames_are_missing_is_told_so(tmp_path: Path) -> None:
    import shutil

    fill(tmp_path, 5)
    shutil.rmtree(tmp_path / "wal")
    report = verify(tmp_path)
    assert not report.holds
    assert any("wal is missing" in fault for fault in report.faults)


def test_an_empty_directory_proves_nothing(tmp_path: Path) -> None:
    assert not verify(tmp_path).holds


# Torn tails and failing disks


@pytest.mark.parametrize("cut", [1, 4, 8, 9, 100])
def test_a_torn_tail_is_cut_kept_aside_and_reported(tmp_path: Path, cut: int) -> None:
    fill(tmp_path, 10)
    torn = frame(b'{"half": "an entry that never was acknowledged"}' * 4)[:cut]
    segment = wal(tmp_path)[-1]
    end = len(segment.read_bytes().rstrip(b"\0"))
    with segment.open("r+b") as file:
        file.seek(end)
        file.write(torn)
    ledger = open_ledger(tmp_path, boot="b2")
    assert append(ledger, "after") is None
    gaps = [line.entry for _, line in ledger.lines() if isinstance(line.entry, Gap)]
    ledger.close()
    assert details(tmp_path)[-1] == "after"
    written = torn.rstrip(b"\0")
    assert [gap.what for gap in gaps] == (["torn_tail"] if written else [])
    if written:
        assert (tmp_path / "wal" / "torn-b2").read_bytes() == written
    assert verify(tmp_path).faults == []


class FailingDisk(Disk):
    """Fails at the *nth* write in one of several ways."""

    def __init__(self, nth: int, how: str) -> None:
        self.left = nth
        self.how = how

    def write(self, fd: int, data: bytes, offset: int) -> int:
        self.left -= 1
        if self.left >= 0:
            return super().write(fd, data, offset)
        if self.how == "short":
            return super().write(fd, data[: len(data) // 2], offset)
        if self.how == "torn":
            super().write(fd, data[: len(data) // 2], offset)
            raise OSError(5, "Input/output error")
        raise OSError({"enospc": 28, "eio": 5}[self.how], os.strerror({"enospc": 28, "eio": 5}[self.how]))


@pytest.mark.parametrize("how", ["enospc", "eio", "short", "torn"])
@pytest.mark.parametrize("nth", [0, 1, 7, 40])
def test_a_failed_write_poisons_the_writer_and_a_restart_recovers(tmp_path: Path, how: str, nth: int) -> None:
    ledger = open_ledger(tmp_path, FailingDisk(nth, how))
    acknowledged = []
    for number in range(60):
        try:
            if append(ledger, f"n{number}") is None:
                acknowledged.append(f"n{number}")
        except LedgerUnavailable:
            assert ledger.fault is not None
    ledger.close()
    assert acknowledged == [f"n{n}" for n in range(nth)], "once failed, nothing may be acknowledged again"
    found = details(tmp_path)
    assert found[: len(acknowledged)] == acknowledged
    assert len(found) <= len(acknowledged) + 1
    assert verify(tmp_path).faults == []


def test_a_failed_flush_is_never_retried(tmp_path: Path) -> None:
    disk = FailingDisk(0, "eio")
    ledger = open_ledger(tmp_path, disk)
    append(ledger)
    disk.left = 1_000_000  # the disk is well again, but what it holds is unknown
    with pytest.raises(LedgerUnavailable):
        append(ledger)
    ledger.close()


def test_a_disk_that_is_full_when_a_segment_is_needed_refuses(tmp_path: Path) -> None:
    class Full(Disk):
        def create(self, path: Path, size: int) -> None:
            if len(wal(tmp_path)) >= 1:
                raise OSError(28, "No space left on device")
            super().create(path, size)

    ledger = open_ledger(tmp_path, Full())
    errors = []
    for _ in range(400):
        try:
            errors.append(append(ledger, "z" * 300))
        except LedgerUnavailable as fault:
            errors.append(fault)
    assert errors[0] is None
    assert "No space left" in str(errors[-1])
    ledger.close()


# The tree and its notes


def reference_root(leaves: list[bytes]) -> bytes:
    """RFC 6962, section 2.1, as it is written there."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaf_hash(leaves[0])
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return node_hash(reference_root(leaves[:split]), reference_root(leaves[split:]))


@given(st.integers(0, 1200))
def test_the_root_over_tiles_is_that_of_rfc_6962(count: int) -> None:
    leaves = [str(n).encode() for n in range(count)]
    edge = Edge()
    for leaf in leaves:
        edge.append(leaf_hash(leaf))
    assert edge.root() == reference_root(leaves)
    assert subtree_root([leaf_hash(leaf) for leaf in leaves]) == reference_root(leaves)


def test_tile_names_are_those_of_the_specification() -> None:
    assert tile_name(1234067) == "x001/x234/067"
    assert tile_name(0) == "000"
    assert tile_name(999) == "999"
    assert tile_name(1000) == "x001/000"


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_entry_bundles_read_back(entries: list[bytes]) -> None:
    assert unpack_entries(pack_entries(entries)) == entries


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=20), st.binary(max_size=40))
def test_frames_read_back_up_to_the_first_that_is_broken(entries: list[bytes], rest: bytes) -> None:
    scan = Scan(b"".join(map(frame, entries)) + b"\0\0\0\0" + rest)
    assert list(scan) == entries


def test_a_checkpoint_opens_only_for_its_log_and_key() -> None:
    claim = Checkpoint(ORIGIN, 5, bytes(range(32)), 1700000000000)
    note = checkpoint.seal(claim, KEY)
    assert checkpoint.open_checkpoint(note, ORIGIN, KEY.public) == claim
    assert checkpoint.parse_vkey(checkpoint.vkey(ORIGIN, KEY.public)) == (ORIGIN, KEY.public)
    for bad in (note.replace(b"\n5\n", b"\n6\n"), note[:-2], b"", b"\xff", note.replace(b"\n\n", b"\n")):
        with pytest.raises(Unverifiable):
            checkpoint.open_checkpoint(bad, ORIGIN, KEY.public)
    with pytest.raises(Unverifiable):
        checkpoint.open_checkpoint(note, "other", KEY.public)
    with pytest.raises(Unverifiable):
        checkpoint.open_checkpoint(note, ORIGIN, SecretKey(bytes(32)).public)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b'{"stamp":{},"entry":{}}',
        b'{"stamp":{"origin":"o","seq":0,"boot":"b","wall_us":1,"mono_ns":1},"entry":{"kind":"admin","event":"e","by":"b","more":1}}',
    ],
)
def test_what_is_not_an_entry_is_refused(data: bytes) -> None:
    with pytest.raises(Unverifiable):
        decode(data)
