"""RFC 6962 Merkle tree hashes, kept by tiles of 256.

A tree of *n* leaves is cut into tiles: tile (level 0, N) holds leaves 256·N … 256·N+255, tile (level L, N)
holds the roots of 256 full tiles of the level below. A log of *n* entries is then described by the partial
tiles at its right edge, one list per level, and everything else never changes again. Because 256 is a power
of two, the root over such an edge is RFC 6962's: an incomplete subtree stands in the last place of the level
above exactly like one more leaf.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

TILE_WIDTH: Final = 256
HASH_BYTES: Final = 32
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()


def leaf_hash(data: bytes) -> bytes:
    return hashlib.sha256(b"\0" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


def subtree_root(hashes: Sequence[bytes]) -> bytes:
    """The root over *hashes* as leaves that are already hashed; RFC 6962, section 2.1."""
    if not hashes:
        return EMPTY_ROOT
    level = list(hashes)
    while len(level) > 1:
        paired = [node_hash(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        if len(level) % 2:
            paired.append(level[-1])
        level = paired
    return level[0]


class Edge:
    """The right edge of a growing tree: per level, the hashes of its last, partial tile."""

    def __init__(self) -> None:
        self.size = 0
        self.levels: list[list[bytes]] = [[]]

    def append(self, leaf: bytes) -> list[tuple[int, int, list[bytes]]]:
        """Add one leaf hash; the tiles that became full: (level, number, its 256 hashes)."""
        full: list[tuple[int, int, list[bytes]]] = []
        level, item = 0, leaf
        while True:
            if level == len(self.levels):
                self.levels.append([])
            tile = self.levels[level]
            tile.append(item)
            if len(tile) < TILE_WIDTH:
                break
            full.append((level, self.size // TILE_WIDTH ** (level + 1), tile))
            item = subtree_root(tile)
            self.levels[level] = []
            level += 1
        self.size += 1
        return full

    def root(self) -> bytes:
        """The root of the whole tree."""
        root: bytes | None = None
        for tile in self.levels:
            if tile:
                root = subtree_root(tile if root is None else [*tile, root])
        return EMPTY_ROOT if root is None else root
