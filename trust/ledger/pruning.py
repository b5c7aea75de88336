"""Pruning: old entries go, tile by tile; their hashes stay, so that everything after them is proved as before.

A copy is pruned by who keeps it. A writer may prune its own log as far as somebody else has it: then its frames go too.
"""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from typing import Final

from trust.ledger import entries
from trust.ledger.merkle import TILE_WIDTH, leaf_hash
from trust.ledger.tiles import flush_path, read_entries, read_hashes, remove_tile, tile_path, write_atomically
from trust.reasons import Reason, Unverifiable

MARK: Final = "pruned"
_NUMBER: Final = re.compile(r"\d{1,15}\n")


def first_kept(root: Path) -> int:
    """The index of the first entry that is still there; 0 if nothing was pruned."""
    try:
        text = (root / MARK).read_text("ascii")
    except FileNotFoundError:
        return 0
    if _NUMBER.fullmatch(text) is None or int(text) % TILE_WIDTH:
        raise Unverifiable(Reason.MALFORMED_REQUEST, f"{root / MARK}: expected a multiple of {TILE_WIDTH}")
    return int(text)


def first_to_keep(root: Path, size: int, before_us: int) -> int:
    """The first of the *size* sealed entries that stays when whole tiles go in which everything is older than
    *before_us* (Unix microseconds). The last tile always stays."""
    first = first_kept(root)
    while first + TILE_WIDTH < size:
        bundle = read_entries(root, first + TILE_WIDTH, first // TILE_WIDTH)
        if any(entries.stamp_of(data).wall_us >= before_us for data in bundle):
            break
        first += TILE_WIDTH
    return first


def drop(root: Path, first: int) -> None:
    """Forget what is below index *first*, which begins a tile."""
    begin = first_kept(root)
    if first > begin:
        write_atomically(root / MARK, f"{first}\n".encode(), flush=True)  # said before it is done: a crash leaves waste
    for number in range(begin // TILE_WIDTH, first // TILE_WIDTH):
        remove_tile(root / tile_path("entries", number, TILE_WIDTH))


def require_hashes(root: Path, first: int) -> None:
    """:class:`Unverifiable` unless what would be left of the entries below index *first* is their hashes."""
    for number in range(first_kept(root) // TILE_WIDTH, first // TILE_WIDTH):
        bundle = islice(read_entries(root, first, number), TILE_WIDTH)
        if [leaf_hash(data) for data in bundle] != read_hashes(root, 0, number, TILE_WIDTH):
            told = f"{root}: tile 0/{number} is not the hashes of its entries"
            raise Unverifiable(Reason.MALFORMED_REQUEST, told)


def flush_hashes(root: Path, first: int) -> None:
    """Make durable the hashes of the entries from what is kept to index *first*: nothing else will be left of them."""
    numbers = range(first_kept(root) // TILE_WIDTH, first // TILE_WIDTH)
    paths = [root / tile_path(0, number, TILE_WIDTH) for number in numbers]
    for path in [*paths, *{path.parent for path in paths}]:
        flush_path(path)
