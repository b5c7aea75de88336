"""The console, assembled: signing in, what pages load, live signals, and each part's pages."""

from __future__ import annotations

from edge.http import Incoming, Response, StreamResponse, json_response
from gateway.api.access import Access, Services
from gateway.console.agents import AgentPages
from gateway.console.assets import FOR_EVER, Assets
from gateway.console.cards import Cards
from gateway.console.door import ROOT, Door
from gateway.console.entrance import Entrance
from gateway.console.gaps import GapPages
from gateway.console.ledger import LedgerPages
from gateway.console.nodes import NodePages
from gateway.console.oversight import OversightPage
from gateway.console.overview import OverviewPage
from gateway.console.pages import Pages, redirect
from gateway.console.policies import PoliciesPage
from gateway.console.queue import HERE as QUEUE
from gateway.console.queue import QueuePages
from gateway.console.runs import RunPages
from gateway.console.signals import Signals
from gateway.console.sql import SqlPage
from gateway.console.visits import LINK_S, Guest, Visits
from gateway.console.why import Whys
from gateway.console.you import YourPage
from gateway.state import Person
from trust.ledger.entries import AnyEntry, Approval, Deputy, Passkey
from trust.ledger.entries import Person as PersonEntry
from trust.reasons import Reason, Unverifiable
from trust.verdict import Refusal


class Console:
    """Every page below ``/console``. :meth:`close` ends the streams that are open."""

    def __init__(self, services: Services, secret: bytes, *, secure: bool) -> None:
        """*secret*: 32 bytes that outlive a restart. *secure*: browsers come over TLS. ``origin`` is known when the
        gateway listens."""
        self.origin = ""
        self._assets = Assets()
        self._visits = Visits(services.records, services.clock, secret, secure=secure)
        self._signals = Signals()
        self._services = services

    def add_to(self, access: Access) -> None:
        s = self._services
        door = self._door = Door(
            access.routes, Pages(self._assets), self._visits, s.records, s.control, lambda: self.origin
        )
        access.person("POST", "/v1/console/links", self._link, "own.change")
        access.person("POST", "/v1/people/{name}/sign-out", self._sign_out, "people.change", "person")
        door.anyone("GET", "/assets/{digest}/{name}", self._asset)
        door.page("", self._home, "approvals.see")
        door.page("/events", self._events, "own.see")
        Entrance(self._visits, s.passkeys, s.oidc).add_to(door)
        YourPage(s.passkeys).add_to(door)
        whys = Whys(s.ledgers.home, s.subjects.key_of)
        cards = Cards(s.desk, s.registry, s.standings, s.bundles, s.passkeys, whys)
        self._queue = QueuePages(s.desk, s.votes, cards, s.ledgers.index, s.clock, lambda: self._signals.tell("queue"))
        self._queue.add_to(door)
        OverviewPage(s).add_to(door)
        LedgerPages(s.ledgers, s.records, whys, s.clock).add_to(door)
        AgentPages(s).add_to(door)
        NodePages(s).add_to(door)
        self._policies = PoliciesPage(s, s.policies)
        self._policies.add_to(door)
        RunPages(s.ledgers, s.packer, whys, s.clock).add_to(door)
        GapPages(s.ledgers, s.clock).add_to(door)
        SqlPage(s.ledgers).add_to(door)
        OversightPage(s.desk, s.clock).add_to(door)
        s.ledgers.listen(lambda: self._signals.tell("ledger"))
        s.records.listen(self._on_change)

    def _on_change(self, entry: AnyEntry) -> None:
        if isinstance(entry, Approval | Deputy | Passkey | PersonEntry):
            self._queue.changed()

    def refusal(self, incoming: Incoming, no: Refusal, decision_id: str) -> Response:
        """A recorded refusal, as a page."""
        return self._door.refusal(incoming, no, decision_id)

    def close(self) -> None:
        self._signals.close()
        self._policies.close()

    async def _link(self, incoming: Incoming, person: Person) -> Response:
        """A one-time link for who brings a person's token."""
        code = self._visits.link(person)
        url = f"{self.origin}{ROOT}/enter?code={code}"
        return json_response({"url": url, "person": person.name, "seconds": LINK_S}, 201)

    async def _sign_out(self, _incoming: Incoming, _person: Person, name: str) -> Response:
        return json_response({"name": name, "ended": await self._visits.end_all(name)})

    async def _asset(self, _incoming: Incoming, digest: str, name: str) -> Response:
        found = self._assets.get(digest, name)
        if found is None:
            raise Unverifiable(Reason.NOT_FOUND, f"no asset {name} of this version; load the page again")
        headers = {"Content-Type": found[1], "Cache-Control": FOR_EVER, "X-Content-Type-Options": "nosniff"}
        return Response(body=found[0], headers=headers)

    async def _home(self, _incoming: Incoming, _guest: Guest) -> Response:
        """What waits, for everybody."""
        return redirect(f"{ROOT}{QUEUE}")

    async def _events(self, incoming: Incoming, guest: Guest) -> StreamResponse:
        return await self._signals.serve(incoming, guest.person.name)
