"""Turns durable entries into tiles and a signed checkpoint: every second, or every 1,000 entries."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

from trust.identity.keys import SecretKey
from trust.ledger import checkpoint
from trust.ledger.checkpoint import Checkpoint
from trust.ledger.merkle import leaf_hash
from trust.ledger.tiles import TileWriter, write_atomically
from trust.ledger.writer import Clock

INTERVAL_S: Final = 1.0
MAX_UNSEALED: Final = 1000


class Sealer:
    """Works in its own thread, so that proving never delays recording."""

    def __init__(
        self,
        root: Path,
        tiles: TileWriter,
        *,
        origin: str,
        key: SecretKey,
        clock: Clock,
        before_seal: Callable[[], None],
        on_error: Callable[[Exception], object],
    ) -> None:
        self._root = root
        self._tiles = tiles
        self._origin = origin
        self._key = key
        self._clock = clock
        self._before_seal = before_seal
        self._on_error = on_error
        self._written: deque[bytes] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"sealer {origin}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, entries: list[bytes]) -> None:
        """Called by the writer when *entries* are durable, in order."""
        self._written.extend(entries)
        if len(self._written) >= MAX_UNSEALED:
            self._wake.set()

    def close(self) -> None:
        """Seal what is there, then end."""
        self._closing = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        closing = False
        while not closing:
            self._wake.wait(INTERVAL_S)
            self._wake.clear()
            closing = self._closing  # read before sealing, so that the last entries are sealed too
            try:
                self._before_seal()
                self._seal()
            except Exception as cause:
                self._on_error(cause)
                return

    def _seal(self) -> None:
        """Tiles first, then the checkpoint that vouches for them, durably."""
        while self._written:
            entry = self._written.popleft()
            self._tiles.append(entry, leaf_hash(entry))
        self._tiles.write_partial()
        self._tiles.flush()
        edge = self._tiles.edge
        claim = Checkpoint(self._origin, edge.size, edge.root(), self._clock.wall_us() // 1000)
        write_atomically(self._root / "checkpoint", checkpoint.seal(claim, self._key), flush=True)
