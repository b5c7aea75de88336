"""Delegation as the gateway sees it: it issues roots, and opens chains against what was revoked since."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from edge.clock import SystemClock, new_id
from gateway.records import Records
from gateway.registry import Registry
from gateway.standings import Standings
from gateway.state import AgentRecord, Root
from gateway.stops import Stops
from trust.facts import Agent, Mandate
from trust.identity import delegation
from trust.identity.chains import VerifiedChains
from trust.identity.delegation import Authority
from trust.identity.keys import PublicKey, SecretKey
from trust.identity.wit import Workload
from trust.ledger import entries
from trust.policy import grants
from trust.policy.inventory import Inventory
from trust.reasons import Reason, Unverifiable
from trust.standing.score import Standing, lowest

MAX_ROOTS: Final = 500
"""Of one agent, at the same time; whoever needs more narrows one of them."""
DEFAULT_LIFE_S: Final = 86_400


class NewRoot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``tools``: what the root allows, as ``server/tool`` → argument → constraint. ``lives_s``: seconds."""

    tools: dict[str, dict[str, Any]]
    max_depth: int = delegation.MAX_DEPTH
    lives_s: int = DEFAULT_LIFE_S


class Delegated(msgspec.Struct, frozen=True):
    """A chain that holds now: what it gives, and the agents that handed it on, first the one of the root."""

    authority: Authority
    delegators: tuple[Agent, ...]
    standing: Standing

    @property
    def mandate(self) -> Mandate:
        authority = self.authority
        return Mandate(authority.principal, authority.tokens, tuple(sorted(authority.tools)))


def delegated_by(agent: Agent) -> str:
    """How a refusal begins that is about a delegator and not about whoever asks."""
    return f"{agent.name}, who delegated this: "


class Delegations:
    """Of one trust domain."""

    def __init__(
        self,
        records: Records,
        registry: Registry,
        stops: Stops,
        standings: Standings,
        key: SecretKey,
        clock: SystemClock,
        trust_domain: str,
    ) -> None:
        self._records = records
        self._registry = registry
        self._stops = stops
        self._standings = standings
        self._key = key
        self._clock = clock
        self._trust_domain = trust_domain
        self._chains = VerifiedChains(key.public, trust_domain)

    async def issue(self, workload: Workload, asked: NewRoot, inventory: Inventory) -> str:
        """A root for an agent: its principal's authority over some tools, to use and to narrow for others."""
        agent = self._registry.agent(workload.name).agent
        self._stops.require(agent)
        tools = delegation.grants(asked.tools)
        grants.require_possible(tools, inventory)
        self._require_room(agent.name)
        now = int(self._clock.now())
        root = new_id("root")
        token = delegation.mint(
            trust_domain=self._trust_domain,
            principal=agent.owner,
            audience=delegation.audience(self._trust_domain),
            holder=workload.key,
            tools=tools,
            max_depth=asked.max_depth,
            now=now,
            expires_at=now + asked.lives_s,
            root=root,
            key=self._key,
        )
        entry = entries.Delegation(
            root=root,
            token=delegation.token_hash(token),
            agent=agent.name,
            principal=agent.owner,
            key=workload.key.thumbprint,
            tools=sorted(asked.tools),
            max_depth=asked.max_depth,
            expires_at=now + asked.lives_s,
        )
        async with self._records.deciding:
            self._stops.require(agent)
            await self._records.change(entry)
        return token

    def _require_room(self, agent: str) -> None:
        live = self.roots_of(agent)
        if len(live) >= MAX_ROOTS:
            left = int(min(root["expires_at"] for root in live) - self._clock.now()) + 1
            detail = f"{agent} has {len(live)} roots of delegation; the first of them ends in {left} s"
            raise Unverifiable(Reason.OVERLOADED, detail, left)

    def open(self, chain: str, agent: str) -> Delegated:
        """*chain* as it may be used by *agent* now, or :class:`Unverifiable`."""
        authority = self._chains.authority(chain, self._clock.now())
        if self._holder(authority.keys[-1]).agent.name != agent:
            raise Unverifiable(Reason.NOT_YOURS, "this chain ends at a key of another agent")
        self._stops.require_believed(
            [
                ("root", authority.root),
                ("principal", authority.principal),
                *(("token", token) for token in authority.tokens),
                *(("key", key) for key in authority.keys),
            ]
        )
        delegators: dict[str, Agent] = {}
        for key in authority.keys[:-1]:
            record = self._holder(key)
            if record.namespace != self._registry.agent(agent).namespace:
                raise Unverifiable(Reason.DELEGATION_INVALID, "authority is delegated within one namespace only")
            self._stops.require(record.agent, delegated_by(record.agent))
            if record.agent.name != agent:
                delegators[record.agent.name] = record.agent
        standings = [self._standings.standing(name) for name in (agent, *delegators)]
        return Delegated(authority, tuple(delegators.values()), lowest(standings))

    def _holder(self, key: str) -> AgentRecord:
        return self._registry.holder(key)

    def roots_of(self, agent: str) -> list[dict[str, Any]]:
        """Roots of *agent* that still hold: not over, not revoked, and for a key that it still has."""
        now = self._clock.now()
        return [
            {"root": r.root, "token": r.token, "expires_at": r.expires_at}
            for r in self._records.cached(Root)
            if r.agent == agent and r.expires_at > now and self._holds(r)
        ]

    def _holds(self, root: Root) -> bool:
        try:
            self._stops.require_believed([("root", root.root), ("token", root.token), ("key", root.key)])
            return self._registry.holder(root.key).agent.name == root.agent
        except Unverifiable:
            return False

    def longest(self, key: PublicKey) -> int:
        """When the last root of *key* ends, Unix seconds; 0 if there is none."""
        return max((r.expires_at for r in self._records.cached(Root) if r.key == key.thumbprint), default=0)
