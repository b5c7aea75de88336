"""One process's ledger: opened with recovery, appended to, read back, closed.

Opening trusts nothing but the device and the last signed checkpoint: valid frames are read to their end, a
torn tail is kept aside and cut, and a log that is shorter than its checkpoint, or has another root, is not
opened at all.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Self

from trust.identity.keys import SecretKey
from trust.ledger import checkpoint, entries, pruning
from trust.ledger.checkpoint import Checkpoint
from trust.ledger.disk import Disk
from trust.ledger.entries import AnyEntry, Gap, Line, Stamp
from trust.ledger.frames import HEADER, Scan, Tail
from trust.ledger.merkle import EMPTY_ROOT, TILE_WIDTH, leaf_hash
from trust.ledger.pruning import first_kept
from trust.ledger.sealer import Sealer
from trust.ledger.segments import SEGMENT_BYTES, Segment, Segments
from trust.ledger.tiles import TileWriter, read_entries, read_hashes, write_atomically
from trust.ledger.writer import Clock, EntryInvalid, LedgerUnavailable, OnDurable, Writer
from trust.reasons import Unverifiable

_ENTRY_BEGINS = b'{"stamp":'


class LedgerDamaged(Exception):
    """The files contradict what was signed; a person must look before anything may run."""


def _ignore(_tokens: object, _error: object) -> None:
    """For a ledger that nobody waits on."""


class Ledger:
    """Use :meth:`open`; :meth:`close` seals everything."""

    def __init__(self, root: Path, origin: str, segments: Segments, writer: Writer, sealer: Sealer, lock: int) -> None:
        self.root = root
        self.origin = origin
        self._segments = segments
        self._writer = writer
        self._sealer = sealer
        self._lock = lock

    @classmethod
    def open(
        cls,
        root: Path,
        *,
        origin: str,
        key: SecretKey,
        clock: Clock,
        boot: str,
        on_durable: OnDurable = _ignore,
        disk: Disk | None = None,
        segment_bytes: int = SEGMENT_BYTES,
        own_thread: bool = True,
    ) -> Self:
        """Recover what is on the device and be ready to append; without *own_thread* the caller commits.

        Raises :class:`LedgerDamaged` when the files contradict the last checkpoint, and
        :class:`LedgerUnavailable` when another process writes here or the device fails.
        """
        wal = root / "wal"
        wal.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = _lock(root / "lock")
        try:
            _begin(root, origin, key, clock)
            segments = Segments(wal, disk or Disk(), segment_bytes)
            tiles, gap = _recover(root, origin, key, segments, boot)
            return cls._start(root, origin, key, clock, boot, on_durable, segments, tiles, gap, lock, own_thread)
        except OSError as cause:
            os.close(lock)
            raise LedgerUnavailable(f"{root}: {cause}") from cause
        except BaseException:
            os.close(lock)
            raise

    @classmethod
    def _start(
        cls,
        root: Path,
        origin: str,
        key: SecretKey,
        clock: Clock,
        boot: str,
        on_durable: OnDurable,
        segments: Segments,
        tiles: TileWriter,
        gap: Gap | None,
        lock: int,
        own_thread: bool,
    ) -> Self:
        # Writer and sealer know each other only through these two functions.
        def seal_later(written: list[bytes]) -> None:
            sealer.add(written)

        writer = Writer(
            segments,
            origin=origin,
            boot=boot,
            clock=clock,
            next_seq=tiles.edge.size,
            on_durable=on_durable,
            on_written=seal_later,
        )
        sealer = Sealer(
            root,
            tiles,
            origin=origin,
            key=key,
            clock=clock,
            before_seal=segments.prepare,
            on_error=writer.fail,
        )
        ledger = cls(root, origin, segments, writer, sealer, lock)
        if own_thread:
            writer.start()
        sealer.start()
        if gap is not None:
            ledger.append(gap)
            if not own_thread:
                ledger.commit()
        return ledger

    @property
    def size(self) -> int:
        return self._writer.size

    @property
    def fault(self) -> LedgerUnavailable | None:
        """Why nothing can be recorded any more, if so."""
        return self._writer.poison

    def append(self, entry: AnyEntry, token: object = None, turn: int = 0) -> Stamp:
        """The stamp of *entry*; it is recorded when *token* comes back through ``on_durable``. What is no entry is
        refused (:class:`EntryInvalid`), and poisons nothing."""
        try:
            data = entries.encode(entry)
        except Unverifiable as bad:
            raise EntryInvalid(bad.detail) from None
        return self._writer.append(data, token, turn)

    def commit(self) -> None:
        """Make durable what was appended; for a ledger without its own thread."""
        self._writer.commit()

    def lines(self, start: int = 0) -> Iterator[tuple[int, Line]]:
        """Every durable entry from index *start* on."""
        for index, data in self._segments.frames(start):
            yield index, entries.decode(data)

    def since(self, wall_us: int) -> Iterator[tuple[int, Line]]:
        """Everything that was written after *wall_us* (Unix microseconds), and some of what was before."""
        yield from self.lines(self._segments.start_of(wall_us, lambda data: entries.decode(data).stamp.wall_us))

    def prune(self, first: int) -> None:
        """Forget the entries below index *first*, which begins a tile, but for their hashes; frames as far as whole
        segments are below it. Somebody else must have them, and ``pruning.require_hashes`` have found their hashes."""
        pruning.flush_hashes(self.root, first)
        pruning.drop(self.root, first)
        self._segments.forget(first)

    def close(self) -> None:
        self._writer.close()
        self._sealer.close()
        os.close(self._lock)


def _lock(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise LedgerUnavailable(f"{path.parent}: another process writes this ledger") from None
    return fd


def _begin(root: Path, origin: str, key: SecretKey, clock: Clock) -> None:
    """A new ledger starts with a checkpoint of nothing, so that one without a checkpoint was tampered with."""
    path, text = root / "vkey", checkpoint.vkey(origin, key.public) + "\n"
    if not path.exists():
        if not (root / "checkpoint").exists():
            claim = Checkpoint(origin, 0, EMPTY_ROOT, clock.wall_us() // 1000)
            write_atomically(root / "checkpoint", checkpoint.seal(claim, key), flush=True)
        write_atomically(path, text.encode(), flush=True)
    elif path.read_text() != text:
        raise LedgerDamaged(f"{path} belongs to another key or origin than this process has")


def _recover(root: Path, origin: str, key: SecretKey, segments: Segments, boot: str) -> tuple[TileWriter, Gap | None]:
    """The tiles up to the last valid frame, and what had to be cut after it."""
    sealed = _last_checkpoint(root, origin, key)
    pruned = _pruned(root, sealed)
    tiles = resume_tiles(root, sealed) or whole_tiles(root, pruned)
    segments.forget(pruned)  # what a crash while it was pruned has left
    existing = segments.all()
    if not existing and not sealed.size:
        segments.start(0)
        return tiles, None
    end, tail = min(pruned, existing[0].first) if existing else 0, None
    for segment, following in zip(existing, [*existing[1:], None], strict=True):
        if segment.first != end:
            raise LedgerDamaged(f"{root}: entries {end} to {segment.first - 1} are missing")
        if following is not None and following.first <= tiles.edge.size:
            end = following.first
            continue
        with segment.scan() as scan:
            for index, data in enumerate(scan, segment.first):
                end = index + 1
                if index >= tiles.edge.size:
                    tiles.append(data, leaf_hash(data))
                    if end == sealed.size and tiles.edge.root() != sealed.root:
                        raise LedgerDamaged(f"{root}: the first {end} entries are not those that were sealed")
            tail = scan.tail
    if end < sealed.size or tail is None:
        raise LedgerDamaged(f"{root}: the last checkpoint sealed {sealed.size} entries, but only {end} can be read")
    stranded = _stranded(existing[-1], tail)
    if stranded is not None:
        raise LedgerDamaged(
            f"{root}: entry {end} cannot be read, but entry {stranded} after it can; "
            "entries that were acknowledged would be lost by cutting here"
        )
    torn = segments.directory / f"torn-{boot}"
    segments.resume(existing[-1], tail, torn)
    if not tail.torn_bytes:
        return tiles, None
    return tiles, Gap("torn_tail", f"{tail.torn_bytes} bytes after entry {end - 1}, kept in {torn.name}")


def _pruned(root: Path, sealed: Checkpoint) -> int:
    """The index of the first entry that has to be here."""
    try:
        pruned = first_kept(root)
    except Unverifiable as bad:
        raise LedgerDamaged(bad.detail) from None
    if pruned > sealed.size:
        raise LedgerDamaged(f"{root}: entries below {pruned} were pruned, it says, and {sealed.size} were sealed")
    return pruned


def _stranded(segment: Segment, tail: Tail) -> int | None:
    """The index of a whole entry behind the first frame that cannot be read: then this is no torn tail."""
    data = segment.path.read_bytes()[: tail.offset + tail.torn_bytes]
    at = tail.offset
    while (at := data.find(_ENTRY_BEGINS, at + 1)) >= 0:
        for found in Scan(data[at - HEADER.size :]):
            return entries.decode(found).stamp.seq
    return None


def _last_checkpoint(root: Path, origin: str, key: SecretKey) -> Checkpoint:
    path = root / "checkpoint"
    if not path.exists():
        if (root / "vkey").exists():
            raise LedgerDamaged(f"{path} is missing, and a ledger has one from its first moment on")
        return Checkpoint(origin, 0, EMPTY_ROOT, 0)
    try:
        return checkpoint.open_checkpoint(path.read_bytes(), origin, key.public)
    except Unverifiable as bad:
        raise LedgerDamaged(f"{path}: {bad.detail}") from None


def whole_tiles(root: Path, size: int) -> TileWriter:
    """The tile writer as it was at *size* entries, which fill tiles, or as far before as what lies here is whole: the
    hashes of what was pruned, then entries that have the hashes that lie beside them."""
    tiles = TileWriter(root)
    try:
        pruned = first_kept(root)
        for number in range(size // TILE_WIDTH):
            leaves = read_hashes(root, 0, number, TILE_WIDTH)
            if number < pruned // TILE_WIDTH:
                for leaf in leaves:
                    tiles.append_pruned(leaf)
                continue
            bundle = list(islice(read_entries(root, size, number), TILE_WIDTH))
            if [leaf_hash(data) for data in bundle] != leaves:
                break
            for data, leaf in zip(bundle, leaves, strict=True):
                tiles.append(data, leaf)
    except Unverifiable:
        pass  # what is behind it comes again, from who has it
    return tiles


def resume_tiles(root: Path, sealed: Checkpoint) -> TileWriter | None:
    """The tile writer as it was at the last checkpoint, or None when the tiles must be made again.

    Tiles are not flushed one by one, so after a power failure they may be missing or wrong: the root tells.
    """
    tiles = TileWriter(root)
    edge, size = tiles.edge, sealed.size
    try:
        level, unit = 0, 1
        edge.levels = []
        while size // unit or not edge.levels:
            width = size // unit % TILE_WIDTH
            edge.levels.append(read_hashes(root, level, size // unit // TILE_WIDTH, width) if width else [])
            level, unit = level + 1, unit * TILE_WIDTH
        edge.size = size
        if size and edge.root() != sealed.root:
            return None
        tiles.resume_entries([*read_entries(root, size, size // TILE_WIDTH)])
    except Unverifiable:
        return None
    return tiles
