"""Nodes: registered by people, admitted by policy, joined under a lease; drained, quarantined, and what they proved."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from typing import Annotated, Final, get_args

import msgspec

from edge.clock import SystemClock
from edge.shared import Shared
from gateway.fold import namespace_of
from gateway.people import new_token, require_namespace
from gateway.records import Records
from gateway.registry import Registry, require_name, taken
from gateway.router.capabilities import Evidence, Level, held, level_of, require_given, words
from gateway.router.eligibility import Candidate
from gateway.router.routing import Moment, Router
from gateway.servers import Servers, require_sound
from gateway.state import NodeRecord, NodeState
from gateway.stops import thumbprint
from trust.canonical import sha256_hex
from trust.identity import did
from trust.ledger import entries
from trust.ledger.entries import AnyEntry
from trust.policy.bundle import Compiled
from trust.policy.inventory import Server, require_server_name
from trust.reasons import Reason, Unverifiable, visible
from trust.wire import OUTBOUND, NodeKind

Weight = Annotated[float, msgspec.Meta(gt=0, le=1000)]
Slots = Annotated[int, msgspec.Meta(ge=1, le=100_000)]
Said = dict[str, str | int | bool]
LEASES_S: Final = 1.0
_log = logging.getLogger("licet.gateway")
_AT_HOME: Final = re.compile(r"https?://(?:127\.0\.0\.1|localhost|\[::1\]):[0-9]{1,5}")
_ADDRESS: Final = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]+")
_ZONE: Final = re.compile(r"[A-Za-z0-9_.\-]{1,64}")


class NewNode(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``servers``: the only ones that it may offer. ``url``: where it is reached; without one, loopback only;
    ``outbound``: nowhere, it connects itself. ``capabilities`` are the operator's word for it;
    ``reference``: what it is called where it is managed, such as an Azure Arc resource id."""

    name: str
    servers: tuple[str, ...]
    url: str = ""
    outbound: bool = False
    kind: NodeKind = "on_prem"
    zone: str = "default"
    capabilities: Said = {}
    weight: Weight = 1.0
    slots: Slots = 16
    reference: Annotated[str, msgspec.Meta(max_length=512)] = ""
    namespace: str = ""


class Joining(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a node says when it joins: where it is reached, what it offers, what it claims of itself, and what issuers
    vouch for."""

    url: str
    servers: list[Server]
    claims: Said = {}
    vouchers: Annotated[list[str], msgspec.Meta(max_length=16)] = []


class Held(msgspec.Struct, frozen=True):
    """A capability, how it is known, and until when (Unix microseconds; 0: as long as it is registered)."""

    word: str
    level: Level
    until_us: int


class Measurement(msgspec.Struct, frozen=True):
    """How long one kind of work is expected to take there."""

    work: str
    ms: float


class Shown(msgspec.Struct, frozen=True):
    """A node for people. ``state``: as it was put, or ``lost`` (not heard of), or ``not admitted`` (policy says no).
    ``key``: the thumbprint of its key."""

    name: str
    kind: str
    zone: str
    state: str
    reason: str
    url: str
    epoch: int
    lease_ms: int
    servers: list[str]
    capabilities: list[Held]
    suspended: list[str]
    weight: float
    slots: int
    outstanding: int
    ejected_ms: int
    work: list[Measurement]
    did: str = ""
    key: str = ""
    reference: str = ""
    namespace: str = ""


class Fleet:
    """Commands that look, record and let the fold apply."""

    def __init__(
        self,
        records: Records,
        registry: Registry,
        servers: Servers,
        router: Router,
        policies: Callable[[], Compiled | None],
        trust_domain: str,
        clock: SystemClock,
        shared: Shared | None,
    ) -> None:
        self._shared = shared
        self._records = records
        self._store = records.store
        self._registry = registry
        self._servers = servers
        self._router = router
        self._policies = policies
        self._trust_domain = trust_domain
        self._clock = clock
        records.listen(self._on_change)

    def _on_change(self, entry: AnyEntry) -> None:
        """Whichever gateway a node joined at has just heard of it."""
        if isinstance(entry, entries.Node) and entry.event == "joined":
            self._router.leases.renew(entry.node, entry.epoch, self.now().mono_us)

    def now(self) -> Moment:
        return Moment(self._clock.mono_ns() // 1000, self._clock.wall_us())

    def shown(self) -> list[Shown]:
        """Every registered node, for people."""
        return [self._shown(one) for one in self.candidates()]

    def _shown(self, one: Candidate) -> Shown:
        node, now = one.node, self.now()
        load, holds = self._router.measured.load(node.name), one.holds
        capabilities = [
            Held(
                word, level_of(word, holds), max((e.until_us for e in node.evidence if e.capability == word), default=0)
            )
            for word in sorted({*words(node.capabilities), *words(node.claims), *(w for w in holds if "@" not in w)})
        ]
        state: str = node.state
        if state == "ready":
            state = "lost" if not one.alive else "ready" if one.admitted else "not admitted"
        return Shown(
            name=node.name,
            kind=node.kind,
            zone=node.zone,
            state=state,
            reason=node.reason,
            url=node.url,
            epoch=node.epoch,
            lease_ms=self._router.leases.left_us(node.name, node.epoch, now.mono_us) // 1000,
            servers=list(node.servers),
            capabilities=capabilities,
            suspended=list(node.suspended),
            weight=node.weight,
            slots=node.slots,
            outstanding=self._router.measured.outstanding(node.name),
            ejected_ms=max(0, load.ejected_until_us - now.mono_us) // 1000,
            work=[
                Measurement(work, round(us / 1000, 3))
                for work, us in self._router.measured.expectations(node.name, now.mono_us)
            ],
            did=did.of(self._trust_domain, "node", node.name),
            key=thumbprint(node.key) if node.key else "",
            reference=node.reference,
            namespace=node.namespace,
        )

    def candidates(self) -> list[Candidate]:
        """Every registered node as it is now, in the order of their names."""
        return self._router.candidates(self.now())

    # Registration

    async def register(self, new: NewNode, by: str) -> str:
        """The one-time enrolment token; shown once."""
        require_name(new.name)
        _require_place(new)
        require_given(new.capabilities)
        token = new_token()
        async with self._records.deciding:
            if self._store.get(NodeRecord, new.name) is not None:
                raise taken("node", new.name)
            await self._records.change(
                entries.Node(
                    "registered",
                    new.name,
                    by,
                    node_kind=new.kind,
                    zone=new.zone,
                    capabilities=dict(new.capabilities),
                    weight=new.weight,
                    slots=new.slots,
                    url=OUTBOUND if new.outbound else new.url,
                    servers=[require_server_name(server) for server in new.servers],
                    token_sha256=sha256_hex(token.encode()),
                    reference=new.reference,
                    namespace=require_namespace(new.namespace),
                )
            )
        return token

    async def join(self, name: str, asked: Joining) -> tuple[int, bool]:
        """A node starts, or its servers changed: it gets a new epoch, if policy admits it as it is now.
        (epoch, whether a server is new to all)."""
        require_given(asked.claims)
        async with self._records.deciding:
            node = self._registry.node(name)
            _require_bound(node, asked)
            for server in asked.servers:
                require_sound(server)
                self._servers.require_free(node, server.name)
            self._require_admitted(node, asked)
            epoch = node.epoch + 1
            await self._records.change(
                entries.Node("joined", name, name, url=asked.url, epoch=epoch, claims=dict(asked.claims))
            )
            seen = [await self._servers.offer(self._registry.node(name), server) for server in asked.servers]
        await self._heard_of(name, epoch)
        return epoch, any(seen)

    def _require_admitted(self, node: NodeRecord, asked: Joining) -> None:
        bundle = self._policies()
        if bundle is None:
            raise Unverifiable(Reason.NO_BUNDLE, "no policies are active, so no node is admitted")
        servers = tuple(sorted(server.name for server in asked.servers))
        as_now = msgspec.structs.replace(node, url=asked.url, servers=servers, claims=dict(asked.claims))
        bound = tuple(one for one in node.evidence if one.level == "bound")  # the rest it has to show anew
        holds = held(node.capabilities, bound, node.suspended, self._clock.wall_us(), self._router.shows(node))
        finding = self._router.placement.admits(bundle, as_now, holds)
        if finding.outcome != "permit":
            why = "; ".join(finding.sentences) or ", ".join(finding.policies) or 'no policy permits Action::"admit"'
            raise Unverifiable(finding.reason or Reason.NO_POLICY_PERMITS, f"{node.name} is not admitted: {why}")

    async def renew(self, name: str, epoch: int) -> bool:
        """Extend the lease of *epoch*; False if another epoch holds it."""
        node = self._store.get(NodeRecord, name)
        if node is None or node.epoch != epoch:
            return False
        await self._heard_of(name, epoch)
        return True

    async def _heard_of(self, name: str, epoch: int) -> None:
        self._router.leases.renew(name, epoch, self.now().mono_us)
        if self._shared is not None:
            await self._shared.renew(name, epoch)

    async def hear_leases(self) -> None:
        """Take over, each second, for ever, of which nodes other gateways heard."""
        while self._shared is not None:
            try:
                self._take_over(await self._shared.leases())
            except Exception:
                _log.exception("leases of other gateways were not taken over; it is tried again")
            await asyncio.sleep(LEASES_S)

    def _take_over(self, told: dict[str, tuple[int, float]]) -> None:
        now_us = self.now().mono_us
        nodes = {name: self._store.get(NodeRecord, name) for name in told}
        self._router.leases.hear(
            {
                name: (epoch, now_us - int(max(0.0, age_s) * 1e6))
                for name, (epoch, age_s) in told.items()
                if (node := nodes[name]) is not None and node.epoch == epoch
            }
        )

    # State

    async def put(self, name: str, state: NodeState, by: str, reason: str) -> NodeRecord:
        """``draining``: finishes what runs and gets nothing more; ``quarantined``: what runs is ended too."""
        async with self._records.deciding:
            node = self.known(name)
            if state not in get_args(NodeState) or state == "pending":
                expected = "expected ready, draining or quarantined"
                raise Unverifiable(Reason.MALFORMED_REQUEST, f"state {visible(str(state))}: {expected}")
            if node.state == "pending":
                raise Unverifiable(
                    Reason.MALFORMED_REQUEST, f"{name} has not enrolled yet, so there is nothing to stop"
                )
            below, before = namespace_of(self._store, by), node.put_in
            if below and node.state != "ready" and before != below:
                raise Unverifiable(
                    Reason.NOT_YOURS, f"{name} was put into this state by the mesh, which alone ends that"
                )
            taken_over = before and not below  # the mesh does what a namespace did, which could take that back
            if node.state == state and not taken_over:
                raise Unverifiable(Reason.MALFORMED_REQUEST, f"{name} is {state} already")
            await self._records.change(entries.Node("state", name, by, state=state, reason=reason))
        return self.known(name)

    # Evidence

    async def prove(self, asked: NodeRecord, proved: Evidence, by: str, how: str) -> None:
        """A capability of a node, as it was when it was *asked*, was found to be there; if it was suspended, it counts
        again once it is verified: another voucher makes nobody nearer. Nothing, if the node began anew meanwhile."""
        name = asked.name
        async with self._records.deciding:
            node = self.known(name)
            if (node.epoch, node.key) != (asked.epoch, asked.key):
                return
            if proved.capability in node.suspended and proved.level == "verified":
                await self._records.change(entries.Node("restored", name, by, capability=proved.capability, reason=how))
            await self._records.change(
                entries.Node(
                    "proved",
                    name,
                    by,
                    capability=proved.capability,
                    level=proved.level,
                    until_us=proved.until_us,
                    reason=how,
                )
            )

    async def suspend(self, name: str, capability: str, by: str, why: str) -> None:
        """A capability of a node does not count any more until it is proved again."""
        async with self._records.deciding:
            if capability not in self.known(name).suspended:
                await self._records.change(entries.Node("suspended", name, by, capability=capability, reason=why))

    async def restore(self, name: str, capability: str, by: str, why: str) -> None:
        """An operator says that what did not count any more counts again."""
        async with self._records.deciding:
            suspended = self.known(name).suspended
            if capability not in suspended:
                found = ", ".join(suspended) or "nothing"
                wrong = f"{visible(capability)} of {name} is not suspended; suspended: {found}"
                raise Unverifiable(Reason.MALFORMED_REQUEST, wrong)
            await self._records.change(entries.Node("restored", name, by, capability=capability, reason=why))

    # Questions

    def known(self, name: str) -> NodeRecord:
        """For whoever asks about a node, and is not it."""
        record = self._store.get(NodeRecord, name)
        if record is None:
            registered = ", ".join(one.name for one in list(self._store.all(NodeRecord))[:10]) or "none"
            raise Unverifiable(Reason.NOT_FOUND, f'no node "{visible(name)}" is registered; registered: {registered}')
        return record


def _require_place(new: NewNode) -> None:
    if new.outbound and new.url:
        raise Unverifiable(Reason.MALFORMED_REQUEST, "either a url or outbound: a node that connects has no address")
    if new.url and _ADDRESS.fullmatch(new.url) is None:
        raise Unverifiable(Reason.MALFORMED_REQUEST, f"url {visible(new.url)}: expected http://host:port, no more")
    if _ZONE.fullmatch(new.zone) is None:
        raise Unverifiable(Reason.MALFORMED_REQUEST, f"zone {visible(new.zone)}: expected 1 to 64 of A-Z a-z 0-9 _ . -")


def _require_bound(node: NodeRecord, asked: Joining) -> None:
    """A node offers what an operator said that it may, from where it was said to be."""
    for server in asked.servers:
        if server.name not in node.may_offer:
            allowed = ", ".join(node.may_offer) or "nothing"
            raise Unverifiable(Reason.NOT_YOURS, f"{node.name} may offer {allowed}, not {visible(server.name)}")
    at_home = _AT_HOME.fullmatch(asked.url) is not None
    if asked.url != node.may_live_at and not (at_home and not node.may_live_at):
        where = {OUTBOUND: "on its own connections", "": "at an http address on loopback"}
        expected = where.get(node.may_live_at, f"at {node.may_live_at}")
        found = "on connections of its own" if asked.url == OUTBOUND else f"at {visible(asked.url)}"
        raise Unverifiable(Reason.NOT_YOURS, f"{node.name} is expected {expected}, not {found}")
