"""A copy of another process's log that is believed only as far as its checkpoints: what a witness keeps.

Entries are taken as they come, and are nothing until a checkpoint of exactly that many was signed by the log's key and
has their root. Then the tiles, and last the checkpoint, are written; what is on the device is always a whole log.
"""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

from trust.identity.keys import PublicKey
from trust.ledger import checkpoint, entries
from trust.ledger.checkpoint import Checkpoint
from trust.ledger.log import resume_tiles, whole_tiles
from trust.ledger.merkle import EMPTY_ROOT, HASH_BYTES, TILE_WIDTH, leaf_hash
from trust.ledger.pruning import MARK, drop, first_kept, flush_hashes
from trust.ledger.tiles import write_atomically
from trust.reasons import Reason, Unverifiable, visible


class Forked(Exception):
    """The log's key signed two logs, or took something back; ``args`` says what was found."""


class Unfit(Exception):
    """The copy, and not the log, is not what it should be: whoever keeps it puts it aside and begins another.
    ``known``: what was seen of the log."""

    def __init__(self, detail: str, known: Checkpoint) -> None:
        super().__init__(detail)
        self.known = known


class Mirror:
    """Of the log *origin* with *key*, under *root*. *known* is the last checkpoint that was seen of it. *lacks*: below
    this index its writer may have only hashes, because a person said so."""

    def __init__(self, root: Path, origin: str, key: PublicKey, known: Checkpoint, lacks: int = 0) -> None:
        self._root = root
        self._origin = origin
        self._key = key
        self.known = known
        self._lacks = lacks
        self._pruned = 0
        sealed = self._kept()
        if not sealed.size:
            (root / MARK).unlink(missing_ok=True)  # of a beginning that came to nothing
        resumed = resume_tiles(root, sealed)
        self._is_whole = resumed is not None
        self._tiles = resumed or whole_tiles(root, sealed.size)
        if self._is_whole and self.size == known.size:
            self._require_witnessed()
        if sealed.size > known.size:
            self.known = sealed  # what is kept was looked at when it came
        if self.size == self.known.size:
            self._require_witnessed()

    def _kept(self) -> Checkpoint:
        try:
            return checkpoint.open_checkpoint((self._root / "checkpoint").read_bytes(), self._origin, self._key)
        except (FileNotFoundError, Unverifiable):
            return Checkpoint(self._origin, 0, EMPTY_ROOT, 0)

    @property
    def size(self) -> int:
        """Entries that were taken; the next one has this index."""
        return self._tiles.edge.size

    def take(self, first: int, bundle: list[bytes], may_name: Container[str] | None = None) -> None:
        """The entries from index *first* on. :class:`Forked` when they are not those that were witnessed before.
        *may_name*: the agents of which this log may tell; None: of any."""
        if first != self.size:
            raise Unverifiable(Reason.MALFORMED_REQUEST, f"entries from {first}; expected them from {self.size}")
        for index, data in enumerate(bundle, first):
            line = entries.decode(data)
            stamp, kind = line.stamp, self._origin.split("/")[1]
            if not entries.may_stand_in(line.entry, kind):
                told = f"entry {index} of {self._origin} is one that no {kind} writes"
                raise Unverifiable(Reason.MALFORMED_REQUEST, told)
            if isinstance(line.entry, entries.Pruned) and kind != "gateway" and line.entry.origin != self._origin:
                told = f"entry {index} of {self._origin} says that another log was pruned, {visible(line.entry.origin)}"
                raise Unverifiable(Reason.MALFORMED_REQUEST, told)
            if (stamp.origin, stamp.seq) != (self._origin, index):
                told = f"entry {index} of {self._origin} says that it is {stamp.origin}#{stamp.seq}"
                raise Unverifiable(Reason.MALFORMED_REQUEST, told)
            named = entries.agent_of(line.entry)
            if may_name is not None and named and named not in may_name:
                told = f"entry {index} of {self._origin} tells of {visible(named)}, which is another's"
                raise Unverifiable(Reason.MALFORMED_REQUEST, told)
            self._tiles.append(data, leaf_hash(data))
            if index + 1 == self.known.size:
                self._require_witnessed()

    def take_pruned(self, first: int, hashes: list[bytes], below: int, *, by_writer: bool = False) -> None:
        """Of the entries from index *first* on, up to where a tile ends, whoever ships them has only the *hashes* left,
        as of all *below* an index. From their writer only of what was witnessed before: otherwise a log could keep to
        itself what it says."""
        end = first + len(hashes)
        if first != self.size or end % TILE_WIDTH or not hashes or {len(one) for one in hashes} != {HASH_BYTES}:
            told = f"hashes of entries {first} to {end}; expected them from {self.size} to where a tile ends"
            raise Unverifiable(Reason.MALFORMED_REQUEST, told)
        if end > below:
            raise Unverifiable(Reason.MALFORMED_REQUEST, f"hashes of entries up to {end}, of which {below} were pruned")
        if by_writer and end > max(self.known.size, self._lacks):
            raise Forked(
                f"the entries of {self._origin} below {below} were pruned where they were written, and only "
                f"{self.known.size} were ever witnessed here, as after a backup that is older than keep_days; nobody "
                f"can bring them: `licet audit renew {self._origin} --pruned-below {below} --reason …`"
            )
        if self.size > max(self._pruned, first_kept(self._root)):
            # Nobody but we forgets what we have.
            raise Unfit(f"it ended at {self.size}, and of what follows only hashes are left", self.known)
        for index, leaf in enumerate(hashes, first):
            self._tiles.append_pruned(leaf)
            if index + 1 == self.known.size:
                self._require_witnessed()
        self._pruned = end

    def _require_witnessed(self) -> None:
        """As many entries as were witnessed have the root that they had."""
        if self._tiles.edge.root() == self.known.root:
            self._is_whole = True
            return
        if not self._is_whole:  # what was left here after a crash is not what it seemed
            raise Unfit("after a crash it had not the root that was witnessed", self.known)
        raise Forked(f"the first {self.known.size} entries of {self._origin} are not those that were witnessed")

    @property
    def newly_pruned(self) -> int:
        """The index below which :meth:`keep` will forget everything, because only hashes of it came; 0 if none did."""
        return self._pruned if self._pruned > first_kept(self._root) else 0

    def check(self, note: bytes) -> Checkpoint:
        """The checkpoint in *note*, if it seals exactly what was taken and takes nothing back."""
        sealed = checkpoint.open_checkpoint(note, self._origin, self._key)
        if sealed.size < self.known.size:
            raise Forked(f"{self._origin} had {self.known.size} entries and now seals {sealed.size}")
        if sealed.size != self.size:
            raise Unverifiable(Reason.MALFORMED_REQUEST, f"a checkpoint of {sealed.size}; {self.size} entries are here")
        if sealed.root != self._tiles.edge.root():
            raise Forked(f"{self._origin} seals another root over {sealed.size} entries than they have")
        return sealed

    def keep(self, sealed: Checkpoint, note: bytes) -> None:
        """Write what *note* seals, which :meth:`check` has looked at, and *note* with its cosignature."""
        self._tiles.write_partial()
        self._tiles.flush()
        write_atomically(self._root / "vkey", checkpoint.vkey(self._origin, self._key).encode() + b"\n")
        if self.newly_pruned:
            flush_hashes(self._root, self._pruned)
            drop(self._root, self._pruned)
        write_atomically(self._root / "checkpoint", note, flush=True)
        self.known = sealed
