"""Pruning: old entries go, tile by tile; their hashes stay, so that everything after them is proved as before."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from trust.ledger import entries
from trust.ledger.merkle import TILE_WIDTH
from trust.ledger.tiles import read_entries, tile_path, write_atomically
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
        if any(entries.decode(data).stamp.wall_us >= before_us for data in bundle):
            break
        first += TILE_WIDTH
    return first


def prune(root: Path, size: int, before_us: int) -> int:
    """Forget them; the index of the first entry that is kept."""
    begin, first = first_kept(root), first_to_keep(root, size, before_us)
    if first > begin:
        write_atomically(root / MARK, f"{first}\n".encode(), flush=True)  # said before it is done: a crash leaves waste
    for number in range(begin // TILE_WIDTH, first // TILE_WIDTH):
        (root / tile_path("entries", number, TILE_WIDTH)).unlink(missing_ok=True)
    return first
