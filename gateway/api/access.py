"""Who calls, what they sent, and the services that answer: what every part of the interface shares.

Workloads (sidecars and nodes) sign their requests (WIT and HTTP message signature). People bring a bearer
token. Enrolment brings a one-time token and proves the key that it wants bound.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import parse_qs

import msgspec

from edge import tls
from edge.clock import SystemClock
from edge.http import Incoming, StreamResponse
from edge.reverse import Accepted
from edge.routes import Routes
from gateway.anchors import Anchors
from gateway.approvals.desk import Desk
from gateway.approvals.votes import Votes
from gateway.bundles import Bundles
from gateway.callers import Callers, Sender
from gateway.certificates import Certificates
from gateway.control import ANYBODY, APPROVER, Act, Control, Of
from gateway.delegations import Delegations
from gateway.dispatch import Dispatcher
from gateway.evidence import Packer
from gateway.feed import Feed
from gateway.fleet import Fleet
from gateway.ledgers import Ledgers
from gateway.oidc import Oidc
from gateway.passkeys import Passkeys
from gateway.peers import Peers
from gateway.people import People
from gateway.proving import Prover
from gateway.recall import Recall
from gateway.records import Records
from gateway.registry import Registry
from gateway.router.routing import Router
from gateway.servers import Servers
from gateway.standings import Standings
from gateway.state import Person
from gateway.statements import Statements
from gateway.stops import Stops
from gateway.subjects import Subjects
from gateway.witness import Witness
from trust.canonical import read_object
from trust.identity.keys import SecretKey
from trust.ledger import entries
from trust.reasons import Reason, Unverifiable

Message = TypeVar("Message", bound=msgspec.Struct)
Handler = Callable[..., Awaitable[StreamResponse]]


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that one gateway consists of."""

    records: Records
    control: Control
    registry: Registry
    servers: Servers
    stops: Stops
    standings: Standings
    delegations: Delegations
    subjects: Subjects
    people: People
    bundles: Bundles
    feed: Feed
    desk: Desk
    votes: Votes
    passkeys: Passkeys
    oidc: Oidc | None
    fleet: Fleet
    router: Router
    accepted: Accepted
    prover: Prover
    statements: Statements
    dispatcher: Dispatcher
    callers: Callers
    certificates: Certificates | None
    witness: Witness
    recall: Recall
    ledgers: Ledgers
    anchors: Anchors
    policies: Path
    packer: Packer
    peers: Peers
    key: SecretKey
    clock: SystemClock
    trust_domain: str
    audience: str


class Access:
    """Adds routes behind the question who calls."""

    def __init__(self, services: Services) -> None:
        self._callers = services.callers
        self._people = services.people
        self._records = services.records
        self._control = services.control
        self.routes = Routes()

    def anyone(self, method: str, path: str, handler: Handler) -> None:
        self.routes.add(method, path, handler)

    def signed(
        self,
        method: str,
        path: str,
        handler: Handler,
        *,
        strong: bool = False,
        listening: bool = False,
        renewing: bool = False,
        certified: bool = True,
    ) -> None:
        """For workloads; *strong*: signed with the key, not within a session; *renewing*: its token may be over;
        *certified*: over TLS only with a certificate that names the same workload."""

        async def handle(incoming: Incoming, **parameters: str) -> StreamResponse:
            sender: Sender = await self._callers.identify(
                incoming, strong=strong, listening=listening, renewing=renewing
            )
            with _attributed(sender.workload.subject):
                if certified:
                    _require_certificate(incoming, sender)
                return await handler(incoming, sender, **parameters)

        self.routes.add(method, path, handle)

    def person(self, method: str, path: str, handler: Handler, act: Act, of: Of = "own") -> None:
        """For people who may do *act* to what it is *of*. That somebody acts in a role is recorded before it is done;
        what approvers do is an entry of its own."""

        async def handle(incoming: Incoming, **parameters: str) -> StreamResponse:
            person: Person = self._people.identify(incoming.bearer)
            with _attributed(f"person {person.name}"):
                role = self._control.require_for(person, act, of, parameters)
                if method != "GET" and role not in (ANYBODY, APPROVER):
                    await self._records.note(entries.Admin(f"{method} {incoming.path}", person.name, role))
                return await handler(incoming, person, **parameters)

        self.routes.add(method, path, handle)


@contextmanager
def _attributed(caller: str) -> Iterator[None]:
    """What is refused inside is recorded as refused to *caller*, who was identified."""
    try:
        yield
    except Unverifiable as bad:
        bad.caller = caller
        raise


def _require_certificate(incoming: Incoming, sender: Sender) -> None:
    secured, named = tls.peer(incoming)
    if secured and named != sender.workload.subject:
        shown = f"a certificate of {named}" if named else "no certificate"
        raise Unverifiable(Reason.UNAUTHENTICATED, f"{sender.workload.subject} came with {shown}")


def decode(incoming: Incoming, kind: type[Message]) -> Message:
    """The body as *kind*, or :class:`Unverifiable`."""
    read_object(incoming.body)  # refuses what is ambiguous; msgspec would take the last duplicate
    try:
        return msgspec.json.decode(incoming.body, type=kind)
    except msgspec.DecodeError as bad:
        raise Unverifiable(Reason.MALFORMED_REQUEST, str(bad)) from None


def seconds(incoming: Incoming) -> float:
    """The query's ``wait``, in seconds."""
    try:
        return max(0.0, float(parse_qs(incoming.query).get("wait", ["0"])[0]))
    except ValueError:
        raise Unverifiable(Reason.MALFORMED_REQUEST, "wait: expected seconds") from None
