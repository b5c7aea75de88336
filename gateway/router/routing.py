"""The router: who is eligible (remembered while nothing changes), who is chosen, and the trace of it.

Everything that decides is a pure function in the modules beside this one. Here is what they are given: the registry's
nodes, leases, measurements, and verdicts of policy, each kept until one of the things that it depends on changes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import msgspec

from gateway.records import Records
from gateway.router.capabilities import LOCALITY, held
from gateway.router.choice import ASAP, Choice, Objective, choose
from gateway.router.cost import Seen
from gateway.router.eligibility import Candidate, Eligible, Wanted, eligible
from gateway.router.homes import Belongs, Homes
from gateway.router.leases import Leases
from gateway.router.measured import Load, Measured, spared
from gateway.router.placement import Placement
from gateway.router.trace import Trace, told
from gateway.servers import Servers
from gateway.state import AgentRecord, NodeRecord, ServerRecord
from trust.facts import Agent
from trust.policy.bundle import Compiled

MAX_ANSWERS: Final = 20_000
"""Questions whose eligible nodes are remembered."""
NEVER_US: Final = 1 << 62
NOBODY: Final[Mapping[str, str]] = MappingProxyType({})


class Moment(msgspec.Struct, frozen=True):
    """Monotonic and Unix microseconds."""

    mono_us: int
    wall_us: int


class Routed(msgspec.Struct, frozen=True):
    """Where work goes, and how that was decided: everything that its trace tells. ``choice`` is None if nobody is
    eligible; it has chosen nobody if nobody meets a strict objective."""

    wanted: Wanted
    found: Eligible
    open_to: Sequence[str]
    choice: Choice | None
    node: NodeRecord | None = None
    holds: frozenset[str] = frozenset()
    home: str = ""
    stays: bool = False

    @property
    def locality(self) -> str:
        """Where the node's data is, as far as more than a claim says so."""
        prefix = f"{LOCALITY}="
        return next((one.removeprefix(prefix) for one in sorted(self.holds) if one.startswith(prefix)), "")

    def trace(self, attempt: int) -> Trace:
        """Of a choice that was made."""
        if self.choice is None or self.node is None:
            raise LookupError("no node was chosen, so there is no trace of it")
        return told(self.wanted, self.found, self.open_to, self.choice, self.holds, self.home, self.stays, attempt)


class _Stand(msgspec.Struct, frozen=True):
    """Versions of everything that eligibility depends on; beyond ``until_us`` (Unix) a capability ends."""

    versions: tuple[int, ...]
    bundle: str
    until_us: int


Shows = Callable[[NodeRecord], Iterable[str]]
"""Which capabilities of a node the gateway finds out itself: they count while they are verified."""


class Router:
    """One per gateway."""

    def __init__(
        self, records: Records, servers: Servers, lease_ttl_s: float, shows: Shows, mesh: Callable[[], Compiled | None]
    ) -> None:
        """*mesh*: the policies of the mesh, which alone say which node may run what."""
        self.shows = shows
        self._mesh = mesh
        self._store = records.store
        self._servers = servers
        self.leases = Leases(int(lease_ttl_s * 1e6))
        self.measured = Measured()
        self.placement = Placement()
        self.homes = Homes()
        self._stand = _Stand((), "", 0)
        self._candidates: dict[str, Candidate] = {}
        self._found: dict[tuple[str, Wanted], Eligible] = {}
        self._open: dict[tuple[str, Wanted], tuple[int, tuple[str, ...]]] = {}

    def candidates(self, now: Moment) -> list[Candidate]:
        """Every registered node as it is now, in the order of their names."""
        self._look(self._mesh(), now)
        return list(self._candidates.values())

    def route(
        self,
        bundle: Compiled,
        agent: Agent,
        wanted: Wanted,
        seed: int,
        now: Moment,
        *,
        without: Mapping[str, str] = NOBODY,
        only: str = "",
        belongs: Belongs | None = None,
    ) -> Routed:
        """The node for one attempt. *without*: those that are not tried again, and why; *only*: the one that knows what
        it did."""
        self._look(self._mesh(), now)
        key = (agent.name, wanted)
        found = self._found.get(key)
        if found is None:
            found = self._remember(key, self._eligible(bundle, agent, wanted))
        ejected = self.measured.ejected(now.mono_us)
        if without or only:
            found = _less(found, without, only)
            open_to = _open(found.nodes, ejected)
        else:
            known = self._open.get(key)
            if known is None or known[0] != self.measured.ejections:
                known = self._open[key] = (self.measured.ejections, _open(found.nodes, ejected))
            open_to = known[1]
        if not open_to:
            return Routed(wanted, found, open_to, None)
        home, stays = self.homes.home(belongs, open_to) if belongs is not None else ("", False)
        choice = choose(open_to, self.seer(wanted.work.name, now), seed, objective(wanted), home, stays)
        if choice.chosen < 0:
            return Routed(wanted, found, open_to, choice)
        chosen = self._candidates[choice.node]
        return Routed(wanted, found, open_to, choice, chosen.node, chosen.holds, home, stays)

    def quarantined(self, name: str) -> bool:
        """Whether what runs on a node must be ended."""
        node = self._store.get(NodeRecord, name)
        return node is None or node.state == "quarantined"

    def seer(self, work: str, now: Moment) -> Callable[[str], Seen]:
        """What is known of nodes now, for this kind of work."""
        return self.measured.seer(work, now.mono_us)

    def _eligible(self, bundle: Compiled, agent: Agent, wanted: Wanted) -> Eligible:
        work = wanted.work
        judged, mesh = bundle.inventory.servers[work.server], self._mesh()

        def offered(one: Candidate) -> bool:
            return self._servers.offers_exactly(one.node.name, judged, work.tool)

        def permitted(one: Candidate) -> bool:
            return mesh is not None and self.placement.permits(mesh, agent, work, one.node, one.holds)

        asking = self._store.get(AgentRecord, agent.name)
        within = ("", asking.namespace if asking is not None else "")
        there = [one for one in self._candidates.values() if one.node.namespace in within]
        return eligible(there, wanted, offered, permitted)

    def _remember(self, key: tuple[str, Wanted], found: Eligible) -> Eligible:
        if len(self._found) >= MAX_ANSWERS:
            self._found.clear()
            self._open.clear()
        self._found[key] = found
        return found

    def _look(self, bundle: Compiled | None, now: Moment) -> None:
        """Look at every node again if anything changed that eligibility depends on."""
        self.leases.expire(now.mono_us)
        version = self._store.version
        versions = (version(NodeRecord), version(ServerRecord), version(AgentRecord), self.leases.version)
        digest = bundle.digest if bundle is not None else ""
        if self._stand.versions == versions and self._stand.bundle == digest and now.wall_us < self._stand.until_us:
            return
        nodes = list(self._store.all(NodeRecord))
        ends = [one.until_us for node in nodes for one in node.evidence if one.until_us > now.wall_us]
        self._stand = _Stand(versions, digest, min(ends, default=NEVER_US))
        self._candidates = {node.name: self._candidate(bundle, node, now) for node in nodes}
        self._found.clear()
        self._open.clear()

    def _candidate(self, bundle: Compiled | None, node: NodeRecord, now: Moment) -> Candidate:
        holds = held(node.capabilities, node.evidence, node.suspended, now.wall_us, self.shows(node))
        self.measured.know(node.name, f"{node.kind}|{node.zone}|{'|'.join(sorted(holds))}", node.slots, node.weight)
        admitted = bundle is not None and self.placement.admits(bundle, node, holds).outcome == "permit"
        return Candidate(node, self.leases.holds(node.name, node.epoch), admitted, holds)


def objective(wanted: Wanted) -> Objective:
    place = wanted.place
    return Objective(place.slo_ms * 1000, place.strict) if place.slo_ms else ASAP


def _open(nodes: tuple[str, ...], ejected: dict[str, Load]) -> tuple[str, ...]:
    """Those that are not passed over for their failures."""
    left_out = spared(nodes, ejected)
    return tuple(node for node in nodes if node not in left_out) if left_out else nodes


def _less(found: Eligible, without: Mapping[str, str], only: str) -> Eligible:
    """Without nodes that this action does not try again, or that are not the one which knows of it."""
    eliminated = Counter(found.eliminated)
    nodes = []
    for node in found.nodes:
        if node in without:
            eliminated[without[node]] += 1
        elif only not in ("", node):
            eliminated["does_not_know_of_it"] += 1
        else:
            nodes.append(node)
    return Eligible(tuple(nodes), dict(sorted(eliminated.items())))
