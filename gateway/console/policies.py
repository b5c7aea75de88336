"""The Policies page: what is active and by whom, what each policy decided, and what the next activation changes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

import msgspec

from edge.http import Incoming, Response
from gateway.api.access import Services
from gateway.candidate import Candidate, compared
from gateway.console.door import Door
from gateway.console.ledger import READERS
from gateway.console.visits import Guest
from gateway.people import AUTHOR
from gateway.questions import Filter
from trust.ledger.rows import Row
from trust.policy import cases
from trust.policy.bundle import Compiled

HERE: Final = "/policies"
WEEK_US: Final = 7 * 86_400 * 1_000_000
ACTIVATIONS: Final = 20
_DECIDED: Final = "SELECT policy, count(*), max(wall_us) FROM policy WHERE wall_us >= ? GROUP BY 1"


class Policy(msgspec.Struct, frozen=True):
    """One policy as it stands; how many entries of a week name it, and the last one's time (Unix microseconds).
    ``guarded``: a case would miss it; ``idle``: no tool of today is in its reach."""

    name: str
    effect: str
    place: str
    says: str
    approval: str
    shadow: bool
    guarded: bool
    idle: bool
    entries: int
    last_us: int


class PoliciesPage:
    """Of one gateway, whose author keeps policies in *directory*."""

    def __init__(self, services: Services, directory: Path) -> None:
        self._s = services
        self._directory = directory
        self._covered: tuple[str, frozenset[str], frozenset[str]] = ("", frozenset(), frozenset())

    def add_to(self, door: Door) -> None:
        self._door = door
        door.section(HERE, "Policies", *READERS, AUTHOR)
        door.page(HERE, self._show, *READERS, AUTHOR)

    async def _show(self, incoming: Incoming, guest: Guest) -> Response:
        compiled = self._s.bundles.compiled
        index = self._s.ledgers.index
        activations = await index.find(Filter(kind="bundle", origin=self._s.records.ledger.origin, limit=ACTIVATIONS))
        policies: list[Policy] = []
        candidate = Candidate(str(self._directory), missing="no policies are active")
        if compiled is not None:
            since = self._s.clock.wall_us() - WEEK_US
            counted = {name: (count, last) for name, count, last in await index.ask(_DECIDED, (since,))}
            unguarded, idle = await self._coverage(compiled)
            policies = [_policy(compiled, name, counted, unguarded, idle) for name in compiled.read.sources]
            candidate = await asyncio.to_thread(compared, self._directory, compiled.content.sources)
        rows: list[Row] = activations.rows
        return self._door.show(
            "policies", incoming, guest, status_=self._s.bundles.status(), policies=policies, activations=rows,
            candidate=candidate,
        )  # fmt: skip

    async def _coverage(self, compiled: Compiled) -> tuple[frozenset[str], frozenset[str]]:
        """(policies that no case would miss, policies out of reach), found once for each bundle: it takes its time."""
        if self._covered[0] != compiled.digest:
            unguarded, idle = await asyncio.to_thread(_covered, compiled)
            self._covered = (compiled.digest, unguarded, idle)
        return self._covered[1], self._covered[2]


def _covered(compiled: Compiled) -> tuple[frozenset[str], frozenset[str]]:
    written = cases.read_cases(compiled.content.sources.cases)
    return frozenset(cases.unguarded(compiled, written)), frozenset(cases.idle(compiled))


def _policy(
    compiled: Compiled,
    name: str,
    counted: dict[str, tuple[int, int]],
    unguarded: frozenset[str],
    idle: frozenset[str],
) -> Policy:
    nodes = compiled.read.nodes
    node = nodes.static_policies.get(name) or nodes.templates[name]
    source = compiled.read.sources[name]
    entries, last_us = counted.get(name, (0, 0))
    notes = node.annotations
    return Policy(
        name=name,
        effect=str(node.effect).lower(),
        place=f"{source.file}:{source.statement.place().line}",
        says=notes.get("reason", ""),
        approval=notes.get("approval", ""),
        shadow=notes.get("mode") == "shadow",
        guarded=name not in unguarded,
        idle=name in idle,
        entries=entries,
        last_us=last_us,
    )
