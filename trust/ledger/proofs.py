"""Inclusion and consistency proofs (RFC 6962, section 2.1) from the tiles of a log, and their verification.

A proof is read from the hashes that lie in tiles: no entry is needed, and no more than a few tiles a level. Source of
the verification: RFC 9162, sections 2.1.3.2 and 2.1.4.2.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final

from trust.identity.keys import PublicKey, unb64
from trust.ledger import checkpoint
from trust.ledger.checkpoint import Checkpoint
from trust.ledger.merkle import EMPTY_ROOT, HASH_BYTES, TILE_WIDTH, leaf_hash, node_hash, subtree_root
from trust.ledger.tiles import read_hashes
from trust.reasons import Reason, Unverifiable

MAX_PROOF: Final = 63
"""Hashes; a longer proof is of no tree."""


class Tree:
    """The first *size* entries of the log whose tiles lie under *root*."""

    def __init__(self, root: Path, size: int) -> None:
        self.size = size
        self._tile = lru_cache(maxsize=64)(lambda level, number, width: read_hashes(root, level, number, width))

    def root(self) -> bytes:
        """The root hash; 32 bytes."""
        return self._over(0, self.size) if self.size else EMPTY_ROOT

    def inclusion(self, index: int) -> list[bytes]:
        """The proof that entry *index* is in the tree, lowest first."""
        if not 0 <= index < self.size:
            raise _refuse(f"there is no entry {index} among {self.size}")
        proof: list[bytes] = []
        low, high = 0, self.size
        while high - low > 1:
            middle = low + _split(high - low)
            if index < middle:
                proof.append(self._over(middle, high))
                high = middle
            else:
                proof.append(self._over(low, middle))
                low = middle
        return proof[::-1]

    def consistency(self, before: int) -> list[bytes]:
        """The proof that the tree of the first *before* entries was only appended to."""
        if not 0 < before <= self.size:
            raise _refuse(f"a tree of {self.size} entries has no earlier one of {before}")
        return list(self._consistency(before, 0, self.size, True))

    def _consistency(self, before: int, low: int, high: int, whole: bool) -> Iterator[bytes]:
        if before == high - low:
            if not whole:
                yield self._over(low, high)
            return
        middle = _split(high - low)
        if before <= middle:
            yield from self._consistency(before, low, low + middle, whole)
            yield self._over(low + middle, high)
        else:
            yield from self._consistency(before - middle, low + middle, high, False)
            yield self._over(low, low + middle)

    def _over(self, low: int, high: int) -> bytes:
        """The root over the entries from *low* to before *high*, a range as the proofs cut it."""
        level, unit = 0, 1
        while (high - low) // unit >= TILE_WIDTH and low % (unit * TILE_WIDTH) == 0:
            level, unit = level + 1, unit * TILE_WIDTH
        hashes = list(self._hashes(level, low // unit, (high - low) // unit))
        rest = low + (high - low) // unit * unit
        if rest < high:
            hashes.append(self._over(rest, high))
        return subtree_root(hashes)

    def _hashes(self, level: int, first: int, count: int) -> Iterator[bytes]:
        """*count* hashes of one level from place *first* on."""
        known = self.size // TILE_WIDTH**level
        for number in range(first // TILE_WIDTH, (first + count - 1) // TILE_WIDTH + 1):
            width = min(TILE_WIDTH, known - number * TILE_WIDTH)
            tile = self._tile(level, number, width)
            start = number * TILE_WIDTH
            yield from tile[max(0, first - start) : first + count - start]


def _split(size: int) -> int:
    """The largest power of two below *size*."""
    return 1 << ((size - 1).bit_length() - 1)


def require_included(proof: Sequence[bytes], index: int, size: int, leaf: bytes, root: bytes) -> None:
    """Nothing, if *proof* shows that the entry with the hash *leaf* is number *index* of the tree with *root*."""
    if not 0 <= index < size or len(proof) > MAX_PROOF:
        raise _refuse(f"there is no entry {index} among {size}")
    at, last, made = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise _refuse("the proof is too long")
        if at & 1 or at == last:
            made = node_hash(sibling, made)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            made = node_hash(made, sibling)
        at, last = at >> 1, last >> 1
    if last or made != root:
        raise _refuse(f"the proof does not show that this is entry {index} of the {size} that were sealed")


def require_consistent(proof: Sequence[bytes], before: int, old: bytes, size: int, root: bytes) -> None:
    """Nothing, if *proof* shows that the tree of *size* entries with *root* begins with the *before* entries whose root
    is *old*."""
    if not 0 <= before <= size or len(proof) > MAX_PROOF:
        raise _refuse(f"a tree of {size} entries has no earlier one of {before}")
    if before in (0, size):
        expected = EMPTY_ROOT if before == 0 else root
        if proof or old != expected:
            raise _refuse(f"the first {before} entries are not those that were seen before")
        return
    hashes = [old, *proof] if before & (before - 1) == 0 else list(proof)
    if not hashes:
        raise _refuse("the proof is empty")
    at, last = before - 1, size - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    first = second = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            raise _refuse("the proof is too long")
        if at & 1 or at == last:
            first, second = node_hash(sibling, first), node_hash(sibling, second)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            second = node_hash(second, sibling)
        at, last = at >> 1, last >> 1
    if last or first != old or second != root:
        raise _refuse(f"the first {before} entries are not those that were seen before")


HEADER: Final = "c2sp.org/tlog-proof@v1"


def write(index: int, hashes: Sequence[bytes], note: bytes) -> bytes:
    """A C2SP tlog-proof: entry *index* is in the tree that *note*, a signed checkpoint, speaks of."""
    lines = [HEADER, f"index {index}", *(base64.b64encode(one).decode("ascii") for one in hashes), "", ""]
    return "\n".join(lines).encode() + note


def read(proof: bytes) -> tuple[int, list[bytes], bytes]:
    """(index, hashes, checkpoint) of a C2SP tlog-proof, or :class:`Unverifiable`; extra data is passed over."""
    head, found, note = proof.partition(b"\n\n")
    try:
        header, *lines = head.decode("ascii").split("\n")
    except UnicodeDecodeError:
        raise _refuse("not ASCII before the checkpoint") from None
    if lines and lines[0].startswith("extra "):
        lines = lines[1:]
    match = _INDEX.fullmatch(lines[0]) if lines else None
    if not found or header != HEADER or match is None:
        raise _refuse(f'expected "{HEADER}", "index N", hashes, an empty line, and a checkpoint')
    hashes = [unb64(line) for line in lines[1:]]
    if len(hashes) > MAX_PROOF or any(len(one) != HASH_BYTES for one in hashes):
        raise _refuse(f"expected at most {MAX_PROOF} hashes of {HASH_BYTES} bytes")
    return int(match[1]), hashes, note


def require_proved(proof: bytes, entry: bytes, origin: str, key: PublicKey) -> tuple[int, Checkpoint]:
    """Where *entry* (its exact bytes) stands in the log *origin* of *key*, and the checkpoint that says so."""
    index, hashes, note = read(proof)
    sealed = checkpoint.open_checkpoint(note, origin, key)
    require_included(hashes, index, sealed.size, leaf_hash(entry), sealed.root)
    return index, sealed


_INDEX: Final = re.compile(r"index (0|[1-9][0-9]{0,18})")


def _refuse(detail: str) -> Unverifiable:
    return Unverifiable(Reason.MALFORMED_REQUEST, f"proof: {detail}")
