"""The ledgers of workers: read by the first when all start, and looked after by it when a worker is not started again.

Fewer workers than before must not shed what the others recorded: it counts, unfinished calls get their outcome, and
the gateway gets the rest of these logs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from edge.clock import SystemClock
from edge.durable import DurableLedger
from sidecar.config import SidecarConfig
from sidecar.identity import Identity
from sidecar.recovery import Before
from sidecar.shipping import Shipper

KEYS: Final = "keys"
"""In the directory of a family: the idempotency keys of before it began."""


class Left:
    """Beside the first worker. *open_ledger* opens one, given its home and the instance that wrote it."""

    def __init__(self, config: SidecarConfig, open_ledger: Callable[[Path, str], DurableLedger]) -> None:
        self._config = config
        self._open = open_ledger
        self._ledgers: list[DurableLedger] = []
        self.shippers: list[Shipper] = []

    async def read(self, before: Before, identity: Identity, clock: SystemClock) -> None:
        """What other workers recorded becomes part of *before*; logs without a worker are kept open."""
        worker = self._config.worker
        numbers = sorted(int(path.name.removeprefix("worker-")) for path in self._config.home.glob("worker-*"))
        for number in numbers:
            runs = worker is not None and number <= worker.of
            if runs and worker is not None and (worker.family / KEYS).exists():
                continue  # it runs now, and the journal knows what it did
            ledger = self._open(self._config.worker_home(number), self._config.worker_instance(number))
            own = before.read(ledger.lines(), clock.now())
            if runs:
                await ledger.close()
                continue
            for outcome in own.unfinished:
                await ledger.append(outcome)
            self._ledgers.append(ledger)
            self.shippers.append(Shipper(identity, ledger.root, clock))

    async def close(self) -> None:
        """Write and seal what is there."""
        for ledger in self._ledgers:
            await ledger.close()
