"""What the router knows of nodes beyond the registry: leases, load, recent failures. Soft state, in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from gateway.router.choice import Candidate
from gateway.state import NodeRecord
from gateway.store import Store

FAILURES_TO_EJECT: Final = 3
EJECTION_S: Final = 10.0


class Nodes:
    """*mono* arguments are monotonic seconds."""

    def __init__(self, store: Store, lease_ttl_s: float) -> None:
        self._store = store
        self._ttl = lease_ttl_s
        self._renewed: dict[tuple[str, int], float] = {}
        self._outstanding: dict[str, int] = {}
        self._failures: dict[str, int] = {}
        self._ejected_until: dict[str, float] = {}
        self._cache: tuple[int, list[NodeRecord]] = (-1, [])

    def renew(self, name: str, epoch: int, mono: float) -> bool:
        """Extend the lease of *epoch*; False if another epoch holds it."""
        node = self._store.get(NodeRecord, name)
        if node is None or node.epoch != epoch:
            return False
        self._renewed[(name, epoch)] = mono
        return True

    def candidates(self, mono: float) -> list[Candidate]:
        return [
            Candidate(
                node,
                self._ttl - (mono - self._renewed.get((node.name, node.epoch), -self._ttl)),
                self._outstanding.get(node.name, 0),
                self._ejected_until.get(node.name, 0.0) > mono,
            )
            for node in self._records()
        ]

    def _records(self) -> list[NodeRecord]:
        version = self._store.version(NodeRecord)
        if self._cache[0] != version:
            self._cache = (version, list(self._store.all(NodeRecord)))
        return self._cache[1]

    @contextmanager
    def working(self, name: str) -> Iterator[None]:
        """Counts one action in flight on *name*."""
        self._outstanding[name] = self._outstanding.get(name, 0) + 1
        try:
            yield
        finally:
            self._outstanding[name] -= 1

    def failed(self, name: str, mono: float) -> None:
        self._failures[name] = self._failures.get(name, 0) + 1
        if self._failures[name] >= FAILURES_TO_EJECT:
            self._ejected_until[name] = mono + EJECTION_S

    def succeeded(self, name: str) -> None:
        self._failures.pop(name, None)
        self._ejected_until.pop(name, None)
