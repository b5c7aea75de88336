"""The Policies page: what is active and by whom, what each policy decided, and what the next activation changes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final, Literal

import msgspec

from edge.http import Incoming, Response
from gateway.api.access import Services
from gateway.candidate import Candidate, compared
from gateway.console.door import Door
from gateway.console.visits import Guest
from gateway.coverage import Coverage, Coverages
from gateway.questions import Filter, among
from trust.ledger.rows import Row
from trust.policy.bundle import Compiled

HERE: Final = "/policies"
WEEK_US: Final = 7 * 86_400 * 1_000_000
ACTIVATIONS: Final = 20
_DECIDED: Final = """
SELECT policy, count(*), max(wall_us) FROM policy p WHERE wall_us >= ?1 AND (?2 = '' OR EXISTS (
  SELECT 1 FROM entry e WHERE e.source = p.source AND e.place = p.place
  AND e.agent IN (SELECT value FROM json_each(iif(?2 = '', '[]', ?2))))) GROUP BY 1
"""


Covered = Literal["", "unknown", "case", "none", "idle"]


class Policy(msgspec.Struct, frozen=True):
    """One policy as it stands; how many entries of a week name it, and the last one's time (Unix microseconds).
    ``covered``: by a case that would miss it; empty while that is being found out."""

    name: str
    effect: str
    place: str
    says: str
    approval: str
    shadow: bool
    covered: Covered
    entries: int
    last_us: int


class PoliciesPage:
    """Of one gateway, whose author keeps policies in *directory*."""

    def __init__(self, services: Services, directory: Path) -> None:
        self._s = services
        self._directory = directory
        self._coverages = Coverages(services.ledgers.home / "bundles")

    def add_to(self, door: Door) -> None:
        self._door = door
        door.section(HERE, "Policies", "policies.see")
        door.page(HERE, self._show, "policies.see")

    async def _show(self, incoming: Incoming, guest: Guest) -> Response:
        namespace = guest.person.namespace
        compiled = self._s.bundles.of(namespace).compiled
        index = self._s.ledgers.index
        activations: list[Row] = []
        if not namespace:  # the index does not know whose they are
            asked = Filter(kind="bundle", origin=f"{self._s.trust_domain}/gateway/*", limit=ACTIVATIONS)
            activations = (await index.find(asked)).rows
        policies: list[Policy] = []
        missing = (
            "what an activation in a namespace changes is told when it is done"
            if namespace
            else "no policies are active"
        )
        candidate = Candidate(str(self._directory), missing=missing)
        if compiled is not None:
            since = self._s.clock.wall_us() - WEEK_US
            own = among(namespace, index.agents_of) if namespace else ""
            counted = {name: (count, last) for name, count, last in await index.ask(_DECIDED, (since, own))}
            coverage = self._coverages.of(compiled.digest)
            policies = [_policy(compiled, name, counted, coverage) for name in compiled.read.sources]
            if not namespace:
                candidate = await asyncio.to_thread(compared, self._directory, compiled.content.sources)
        return self._door.show(
            "policies", incoming, guest, status_=self._s.bundles.status(namespace), policies=policies,
            activations=activations, candidate=candidate,
        )  # fmt: skip

    def close(self) -> None:
        self._coverages.close()


def _covered(name: str, coverage: Coverage | None) -> Covered:
    if coverage is None:
        return ""
    if not coverage.known:
        return "unknown"
    return "idle" if name in coverage.idle else "none" if name in coverage.unguarded else "case"


def _policy(
    compiled: Compiled,
    name: str,
    counted: dict[str, tuple[int, int]],
    coverage: Coverage | None,
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
        covered=_covered(name, coverage),
        entries=entries,
        last_us=last_us,
    )
