"""Which workload sent a request: by its key and WIT (the strong form), or by a session that it opened."""

from __future__ import annotations

from typing import Final

import msgspec

from edge.clock import SystemClock
from edge.http import Incoming
from edge.shared import Shared
from gateway.registry import Registry
from gateway.sessions import Session, Sessions
from gateway.stops import Stops
from trust.identity import httpsig, wit
from trust.identity.httpsig import Claim
from trust.identity.keys import SecretKey, b64url
from trust.identity.replay import Nonces
from trust.identity.wit import Workload
from trust.ledger import entries
from trust.ledger.entries import AnyEntry
from trust.reasons import Reason, Unverifiable

MAX_CACHED_WITS: Final = 10_000
WIT_HEADER: Final = "workload-identity-token"


class Sender(msgspec.Struct, frozen=True):
    """Who sent a request, and what proves it."""

    workload: Workload
    claim: Claim

    @property
    def strong(self) -> bool:
        """Whether it was signed with the workload's own key."""
        return not self.claim.session

    @property
    def authn(self) -> str:
        """How it is recorded."""
        return "wit" if self.strong else f"session:{self.claim.session}"


class Callers:
    """Identifies what workloads send to one gateway process."""

    def __init__(
        self,
        registry: Registry,
        stops: Stops,
        key: SecretKey,
        clock: SystemClock,
        trust_domain: str,
        audience: str,
        shared: Shared | None = None,
    ) -> None:
        self._registry = registry
        self._stops = stops
        self._issuer = key.public
        self._clock = clock
        self._trust_domain = trust_domain
        self._audience = audience
        self._nonces = Nonces()
        self._shared = shared
        # A memory of one's own begins empty, so nothing from before it is believed; a shared one says when it began.
        self._not_before = clock.now() if shared is None else 0.0
        self._wits: dict[str, Workload] = {}
        self.sessions = Sessions(key, audience)

    def hear(self, entry: AnyEntry) -> None:
        """A node that joins began anew, and has none of its sessions any more."""
        if isinstance(entry, entries.Node) and entry.event == "joined":
            self.sessions.end(f"wimse://{self._trust_domain}/node/{entry.node}")

    async def identify(
        self, incoming: Incoming, *, strong: bool = False, listening: bool = False, renewing: bool = False
    ) -> Sender:
        """Who sent *incoming*, or :class:`Unverifiable`; with *strong*, only by its key. Who is only *listening* is
        told why it was stopped; nobody else who was revoked gets further. *renewing*: by a token that may be over, as
        after a night in which the machine was off."""
        request = httpsig.Request(incoming.method, incoming.authority, incoming.target, incoming.headers, incoming.body)
        now = self._clock.now()
        claim = httpsig.read(request, audience=self._audience, now=now, not_before=self._not_before)
        if claim.session and strong:
            raise Unverifiable(Reason.UNAUTHENTICATED, "this must be signed with the key, not within a session")
        if claim.session:
            session = await self._session(claim.session, now)
            workload = session.workload
            httpsig.prove(claim, request, session.secret)
        else:
            workload = self._workload(incoming.header(WIT_HEADER), now, renewing=renewing)
            httpsig.prove(claim, request, workload.key)
        self._nonces.spend(claim.nonce, claim.expires_at, now)
        if self._shared is not None:
            await self._shared.spend(claim.nonce, claim.created_at, claim.expires_at, now)
        self._registry.require_current(workload)
        if claim.session:
            self._stops.require_believed([("session", claim.session)])
        if workload.kind == "agent" and not listening:
            self._require_not_revoked(workload.name)
        return Sender(workload, claim)

    async def _session(self, name: str, now: float) -> Session:
        """The open session of this *name*, if any gateway opened it; or :class:`Unverifiable`."""
        if self._shared is None or self.sessions.knows(name):
            return self.sessions.get(name, now)
        told = await self._shared.recall(f"session:{name}")
        if told is not None and not self.sessions.knows(name):
            statement, _, token = told.partition("\n")
            self.sessions.learn(statement, self._workload(token, now), now)
        return self.sessions.get(name, now)

    def _require_not_revoked(self, name: str) -> None:
        """A killed agent may still ask how its approvals stand; a revoked one is nobody."""
        agent = self._registry.agent(name).agent
        self._stops.require_believed([("agent", name), ("principal", agent.owner)])

    def _workload(self, token: str | None, now: float, *, renewing: bool = False) -> Workload:
        if token is None:
            raise Unverifiable(Reason.UNAUTHENTICATED, "this needs a Workload-Identity-Token and a signature")
        known = self._wits.get(token)
        if known is not None and now < known.expires_at:
            return known
        workload = wit.verify(token, now=now, trust_domain=self._trust_domain, issuer=self._issuer, renewing=renewing)
        if len(self._wits) >= MAX_CACHED_WITS:
            self._wits.clear()
        self._wits[token] = workload
        return workload

    async def share(self, statement: str, entry: entries.Session, token: str) -> None:
        """Let the other gateways find an open session: all that they need proves itself."""
        if self._shared is not None:
            lives_s = entry.expires_at - self._clock.now()
            await self._shared.remember(f"session:{entry.session}", f"{statement}\n{token}", lives_s)

    def open_session(self, sender: Sender, client: str) -> tuple[str, entries.Session]:
        """The statement for *sender*, whose X25519 key is *client*, and the entry that must be durable first."""
        terms, statement = self.sessions.open(sender.workload, client, int(self._clock.now()))
        return statement, entries.Session(
            terms.session,
            terms.subject,
            b64url(sender.workload.key.raw),
            sender.claim.base.decode("ascii"),
            b64url(sender.claim.signature),
            terms.expires_at,
        )
