"""Offline verification: does what lies in a ledger's directory hold together, and what exactly is proved?

Needs nothing but the files and the public key. Everything is computed again: each frame's checksum, each
leaf, each tile, the root, the checkpoint's signature, each entry's schema and place. Whether each decision
follows from its recorded facts is asked of *judge*, which the caller builds from the bundles that it has.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from trust.identity.keys import PublicKey
from trust.ledger import checkpoint, entries
from trust.ledger.checkpoint import Checkpoint
from trust.ledger.disk import Disk
from trust.ledger.entries import Line, Pruned
from trust.ledger.merkle import EMPTY_ROOT, TILE_WIDTH, Edge, leaf_hash
from trust.ledger.proofs import Tree, require_consistent
from trust.ledger.pruning import first_kept
from trust.ledger.segments import SEGMENT_BYTES, Segments
from trust.ledger.tiles import read_entries, read_hashes
from trust.reasons import Unverifiable


class Judge(Protocol):
    """Whoever decides again. Each answer is what is wrong, or None; ``votes`` counts signatures that were checked."""

    @property
    def votes(self) -> int: ...

    def decided(self, line: Line) -> str | None:
        """Whether the decision in *line* follows from its facts; :class:`Undecidable` if that cannot be told."""

    def followed(self, line: Line) -> str | None:
        """Whether *line* fits those before it; each line of a log is given, in order."""


@dataclass(slots=True)
class Report:
    """What was verified, in numbers; :meth:`words` says it."""

    root: Path
    copy: bool = False
    origin: str = ""
    sealed: int = 0
    sealed_at: str = ""
    entries: int = 0
    decided_again: int = 0
    not_decidable: int = 0
    votes: int = 0
    kept: int = 0
    pruned: int = 0
    said_pruned: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Emptiness is no proof: a directory without a verified checkpoint does not hold."""
        return not self.faults and bool(self.sealed_at)

    def words(self) -> list[str]:
        if not self.sealed_at:
            return [*self.faults, f"{self.root}: no checkpoint could be verified, so nothing is proved"]
        after = max(0, self.entries - self.sealed)
        return [
            *self.faults,
            f"{self.origin}: {'verified' if self.holds else 'NOT verified'} to checkpoint {self.sealed} at "
            f"{self.sealed_at}; {after} {'entry' if after == 1 else 'entries'} after it not yet sealed",
            f"{self.decided_again} decisions were made again from their recorded facts and came out the same"
            + (
                f"; {self.not_decidable} could not be made again (their bundles or arguments are not here)"
                if self.not_decidable
                else ""
            ),
            *([f"{self.votes} votes are signed by passkeys, for exactly what was asked"] if self.votes else []),
            *([f"the entries below {self.pruned} were pruned: only their hashes are here"] if self.pruned else []),
            *([f"{self.kept} checkpoints that were kept elsewhere are of this very log"] if self.kept else []),
        ]


class Undecidable(Exception):
    """The judge has not what it needs (the bundle) to decide an entry again."""


def verify(
    root: Path,
    *,
    key: PublicKey | None = None,
    origin: str | None = None,
    judge: Judge | None = None,
    kept: Iterable[bytes] = (),
    copy: bool = False,
) -> Report:
    """Check the ledger at *root* (*copy*: what a witness has of one, without frames); also that it begins with what
    each checkpoint of it in *kept* sealed.

    Without *key*, the ``vkey`` file beside the log is believed, which proves only that the log agrees with
    itself: whoever can write the log can write that file too.
    """
    report = Report(root, copy=copy)
    try:
        named_origin, named_key = checkpoint.parse_vkey((root / "vkey").read_text())
        sealed = checkpoint.open_checkpoint(
            (root / "checkpoint").read_bytes(), origin or named_origin, key or named_key
        )
    except FileNotFoundError as missing:
        report.faults.append(f"{missing.filename} is missing")
        return report
    except Unverifiable as bad:
        report.faults.append(bad.detail)
        return report
    report.origin, report.sealed = sealed.origin, sealed.size
    _check(root, sealed, report, judge)
    for note in kept:
        _check_kept(root, sealed, note, key or named_key, report)
    when = datetime.datetime.fromtimestamp(sealed.time_ms / 1000, datetime.UTC)
    report.sealed_at = when.strftime("%H:%M:%SZ on %Y-%m-%d")
    return report


class _Frames:
    """The durable frames of a log, asked for in order; what is missing among them is a fault, unless it was pruned."""

    def __init__(self, root: Path, report: Report) -> None:
        self._report = report
        self._pruned = report.pruned
        self._frames = iter(Segments(root / "wal", Disk(), SEGMENT_BYTES).frames(0))
        self.expected = 0
        self._next = self._read()

    def _read(self) -> tuple[int, bytes] | None:
        found = next(self._frames, None)
        if found is not None:
            if found[0] > max(self.expected, self._pruned):
                missing = max(self.expected, self._pruned)
                self._report.faults.append(f"frames {missing} to {found[0] - 1} are missing or damaged")
            self.expected = found[0] + 1
        return found

    def take(self, index: int) -> bytes | None:
        """The frame with this index, if there is one."""
        found = self._next
        if found is None or found[0] > index:
            return None
        self._next = self._read()
        return found[1]

    def rest(self) -> Iterator[tuple[int, bytes]]:
        """Those behind the last that was taken."""
        while self._next is not None:
            yield self._next
            self._next = self._read()


def _check(root: Path, sealed: Checkpoint, report: Report, judge: Judge | None) -> None:
    """Sealed entries and durable frames side by side, once from beginning to end: the tree is computed again, and the
    frames must be the same entries and go on without a gap."""
    if not report.copy and not (root / "wal").is_dir():
        report.faults.append(f"{root / 'wal'} is missing: the durable frames")
    try:
        report.pruned = first_kept(root)
    except Unverifiable as bad:
        report.faults.append(bad.detail)
        return
    if report.pruned > sealed.size:
        report.faults.append(f"entries below {report.pruned} were pruned, it says, and {sealed.size} were sealed")
        return
    frames, edge = _Frames(root, report), Edge()
    try:
        for number in range(report.pruned // TILE_WIDTH):
            for index, leaf in enumerate(read_hashes(root, 0, number, TILE_WIDTH), number * TILE_WIDTH):
                frame = frames.take(index)
                if frame is not None and leaf_hash(frame) != leaf:
                    report.faults.append(f"frame {index} is not the entry that was sealed")
                for level, at, hashes in edge.append(leaf):
                    _check_tile(root, level, at, hashes, report)
        for index, data in enumerate(read_entries(root, sealed.size, report.pruned // TILE_WIDTH), report.pruned):
            for level, number, hashes in edge.append(leaf_hash(data)):
                _check_tile(root, level, number, hashes, report)
            frame = frames.take(index)
            if frame is not None and frame != data:
                report.faults.append(f"frame {index} is not the entry that was sealed")
            _check_entry(data, index, sealed.origin, report, judge)
        for level, hashes in enumerate(edge.levels):
            if hashes:
                _check_tile(root, level, sealed.size // TILE_WIDTH ** (level + 1), hashes, report)
        if (edge.root() if sealed.size else EMPTY_ROOT) != sealed.root:
            report.faults.append(f"the first {sealed.size} entries do not have the root that was signed")
    except Unverifiable as bad:
        report.faults.append(bad.detail)
    for index, data in frames.rest():
        if index >= sealed.size:
            _check_entry(data, index, sealed.origin, report, judge)
    if report.pruned > report.said_pruned and not report.copy:
        report.faults.append(f"the entries below {report.pruned} are gone, and no entry says that they were pruned")
    report.entries = sealed.size if report.copy else frames.expected
    if report.entries < sealed.size:
        report.faults.append(
            f"{root / 'wal'}: entry {report.entries} cannot be read (its checksum or length is wrong), and "
            f"{sealed.size} entries were sealed"
        )


def _check_kept(root: Path, sealed: Checkpoint, note: bytes, key: PublicKey, report: Report) -> None:
    """A checkpoint of before must be one of this very log, only shorter."""
    try:
        earlier = checkpoint.open_checkpoint(note, sealed.origin, key)
        if not 0 < earlier.size <= sealed.size:
            report.faults.append(f"{earlier.size} entries were sealed once, and now there are {sealed.size}")
            return
        proof = Tree(root, sealed.size).consistency(earlier.size)
        require_consistent(proof, earlier.size, earlier.root, sealed.size, sealed.root)
        report.kept += 1
    except Unverifiable as bad:
        report.faults.append(f"a checkpoint that was kept: {bad.detail}")


def _check_tile(root: Path, level: int, number: int, hashes: list[bytes], report: Report) -> None:
    if read_hashes(root, level, number, len(hashes)) != hashes:
        report.faults.append(f"tile {level}/{number} is not the hashes of the entries below it")


def _check_entry(data: bytes, index: int, origin: str, report: Report, judge: Judge | None) -> None:
    try:
        line = entries.decode(data)
    except Unverifiable as bad:
        report.faults.append(f"entry {index}: {bad.detail}")
        return
    if isinstance(line.entry, Pruned) and line.entry.origin == origin:
        report.said_pruned = max(report.said_pruned, line.entry.first)
    if line.stamp.seq != index or line.stamp.origin != origin:
        report.faults.append(f"entry {index} says that it is {line.stamp.origin}#{line.stamp.seq}")
    if judge is not None:
        fault = judge.followed(line)
        if fault is not None:
            report.faults.append(f"entry {index}: {fault}")
        report.votes = judge.votes
        _decide_again(line, index, report, judge)


def _decide_again(line: Line, index: int, report: Report, judge: Judge) -> None:
    if getattr(line.entry, "judgement", None) is None:
        return
    try:
        fault = judge.decided(line)
    except Undecidable:
        report.not_decidable += 1
        return
    if fault is None:
        report.decided_again += 1
    else:
        report.faults.append(f"entry {index}: {fault}")
