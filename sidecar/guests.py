"""Agents that hold their key themselves and share this sidecar: known by their signature, each served on its own.

The operator names them in the configuration, and registered them at the gateway as reached through this sidecar. Their
signature travels on, so that the gateway believes the agent and not this process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from edge.clock import SystemClock
from edge.http import Incoming
from sidecar.identity import Identity
from sidecar.journal import Journal
from sidecar.memories import Spent
from sidecar.pipeline import Caller
from sidecar.served import Served
from sidecar.world import Ear, View, World
from trust.identity import httpsig, wit
from trust.identity.keys import b64url, unb64url
from trust.identity.wit import Workload
from trust.reasons import Reason, Unverifiable, visible
from trust.wire import Proof

FIRST_FACTS_S: Final = 3.0
"""How long the first request of a guest waits for the gateway's word about it."""


class Guests:
    """Those of one sidecar. *serve* makes what serves one of them."""

    def __init__(
        self,
        names: tuple[str, ...],
        identity: Identity,
        world: World,
        journal: Journal,
        clock: SystemClock,
        serve: Callable[[str, Callable[[], frozenset[bytes]], View], Served],
    ) -> None:
        self._names = names
        self._identity = identity
        self._world = world
        self._clock = clock
        self._serve = serve
        self._started = clock.now()
        self._journal = journal
        self._served: dict[str, Served] = {}
        self._ears: dict[str, asyncio.Task[None]] = {}

    @property
    def audience(self) -> str:
        """Whom a guest's requests must be made for."""
        return f"wimse://{self._identity.enrolment.trust_domain}/sidecar/{self._identity.name}"

    async def identify(self, incoming: Incoming, chain: str) -> tuple[Served, Caller]:
        """Which guest signed *incoming*, or :class:`Unverifiable`."""
        now = self._clock.now()
        request = httpsig.Request(incoming.method, incoming.authority, incoming.target, incoming.headers, incoming.body)
        claim = httpsig.read(request, audience=self.audience, now=now, not_before=self._started)
        token = incoming.header("workload-identity-token") or ""
        enrolment = self._identity.enrolment
        guest = wit.verify(token, now=now, trust_domain=enrolment.trust_domain, issuer=self._identity.gateway)
        if claim.session:
            raise Unverifiable(Reason.UNAUTHENTICATED, "sign with the key; this sidecar opens no sessions")
        httpsig.prove(claim, request, guest.key)
        with self._journal:
            self._journal.memories.nonces.require_fresh(claim.nonce, now)
            self._journal.tell(Spent(claim.nonce, claim.expires_at))
        served = await self._of(guest)
        body = incoming.body.decode("utf-8", "replace")
        return served, Caller("wit", chain, Proof(token, claim.base.decode("ascii"), b64url(claim.signature), body))

    async def _of(self, guest: Workload) -> Served:
        if guest.kind != "agent" or guest.name not in self._names:
            raise Unverifiable(Reason.NOT_YOURS, f"{visible(guest.name)} is no guest of this sidecar")
        served = await self.named(guest.name)
        facts = served.view.facts
        if facts is None or guest.revision < facts.epoch or b64url(guest.key.raw) not in facts.keys:
            raise Unverifiable(Reason.REVOKED, f"{guest.name} has another key now")
        if f"key:{guest.key.thumbprint}" in served.view.revoked:
            raise Unverifiable(Reason.REVOKED, f"the key {guest.key.thumbprint} was revoked")
        return served

    async def named(self, name: str) -> Served:
        """What serves the guest *name*, which somebody has identified."""
        served = self._served.get(name)
        if served is None:
            served = self._served[name] = self._welcome(name)
        if not await served.view.heard(FIRST_FACTS_S):
            raise Unverifiable(Reason.STALE_FACTS, f"the gateway says nothing about {name} to this sidecar")
        return served

    def _welcome(self, name: str) -> Served:
        ear = Ear(self._identity, name, self._clock)
        self._ears[name] = asyncio.create_task(ear.follow())

        def own_keys() -> frozenset[bytes]:
            return frozenset(map(unb64url, ear.facts.keys)) if ear.facts is not None else frozenset()

        return self._serve(name, own_keys, View(self._world, ear))

    async def close(self) -> None:
        for task in self._ears.values():
            task.cancel()
        if self._ears:
            await asyncio.wait(self._ears.values())
