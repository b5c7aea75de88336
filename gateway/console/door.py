"""The console's door: who is signed in, what the page may be, and what a form must bring along."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, quote

import msgspec

from edge.http import Incoming, Response, StreamResponse
from edge.routes import Routes
from gateway.console.pages import Pages, redirect
from gateway.console.visits import Guest, Visits, require_own_form, require_own_look
from gateway.control import MESH, Act, Control, Kind, Of
from gateway.records import Records
from gateway.state import Person
from trust.ledger import entries
from trust.reasons import TABLE, Reason, Unverifiable
from trust.verdict import Refusal

ROOT: Final = "/console"
MAX_FIELDS: Final = 100
Handler = Callable[..., Awaitable[StreamResponse]]


class Section(msgspec.Struct, frozen=True):
    """One place in the navigation, and who sees it."""

    path: str
    title: str
    act: Act
    of: Of


class Door:
    """Adds pages and forms behind the question who is signed in."""

    def __init__(
        self,
        routes: Routes,
        pages: Pages,
        visits: Visits,
        records: Records,
        control: Control,
        origin: Callable[[], str],
    ) -> None:
        self._control = control
        self._origin = origin
        self._routes = routes
        self._pages = pages
        self._visits = visits
        self._records = records
        self.sections: list[Section] = []

    def anyone(self, method: str, path: str, handler: Handler) -> None:
        self._add(method, path, handler)

    def _add(self, method: str, path: str, handler: Handler) -> None:
        """Under the console's own name only: a browser sends the cookies of 127.0.0.1 to every port there, and behind
        another port may be an agent."""

        async def handle(incoming: Incoming, **parameters: str) -> StreamResponse:
            origin = self._origin()
            if incoming.authority == origin.partition("://")[2]:
                return await handler(incoming, **parameters)
            if method == "GET":
                return redirect(origin + incoming.target)
            raise Unverifiable(Reason.NOT_YOURS, f"the console is at {origin}{ROOT}")

        self._routes.add(method, ROOT + path, handle)

    def section(self, path: str, title: str, act: Act, of: Of = "own") -> None:
        """A place in the navigation."""
        self.sections.append(Section(ROOT + path, title, act, of))

    def page(self, path: str, handler: Handler, act: Act, of: Of = "own") -> None:
        """For who is signed in and may do *act* to what it is *of*; who is not signed in is sent to do so."""

        async def handle(incoming: Incoming, **parameters: str) -> StreamResponse:
            guest = self._visits.guest(incoming)
            if guest is None:
                return redirect(f"{ROOT}/sign-in?next={quote(incoming.target, safe='')}")
            require_own_look(incoming)
            self._require(guest, act, of, parameters)
            return await handler(incoming, guest, **parameters)

        self._add("GET", path, handle)

    def form(self, path: str, handler: Handler, act: Act, of: Of = "own") -> None:
        """What a page sends. That somebody did it is recorded before it is done."""

        async def handle(incoming: Incoming, **parameters: str) -> StreamResponse:
            guest = self._visits.guest(incoming)
            if guest is None:
                raise Unverifiable(Reason.UNAUTHENTICATED, "nobody is signed in here any more; sign in again")
            fields = form(incoming)
            require_own_form(incoming, guest, fields.pop("csrf", ""))
            role = self._require(guest, act, of, parameters)
            await self._records.note(entries.Admin(f"POST {incoming.path}", guest.person.name, role))
            return await handler(incoming, guest, fields, **parameters)

        self._add("POST", path, handle)

    def _require(self, guest: Guest, act: Act, of: Of, named: Mapping[str, str]) -> str:
        try:
            return self._control.require_for(guest.person, act, of, named)
        except Unverifiable as bad:
            bad.caller = f"person {guest.person.name}"
            raise

    def _shows(self, person: Person, section: Section) -> bool:
        return bool(self._control.may(person, section.act, MESH if section.of == "mesh" else person.namespace))

    def may(self, guest: Guest, act: Act, kind: Kind, name: str) -> bool:
        """Whether a page shows the button for it."""
        whose = self._control.whose(kind, name)
        return whose is not None and bool(self._control.may(guest.person, act, whose))

    def sees(self, guest: Guest, kind: Kind, name: str) -> bool:
        """Whether what is called so is there for who looks."""
        whose = self._control.whose(kind, name)
        return self._control.sees(guest.person, whose or "")

    def show(
        self, template: str, incoming: Incoming, guest: Guest | None, status: int = 200, **values: Any
    ) -> Response:
        """A page with everything that stands around it."""
        seen = [s for s in self.sections if guest is not None and self._shows(guest.person, s)]
        here = incoming.path
        own = guest.person.namespace if guest is not None else ""
        reads = guest is not None and bool(self._control.may(guest.person, "ledger.read", own))
        return self._pages.page(template, status, guest=guest, sections=seen, here=here, reads=reads, **values)

    def refusal(self, incoming: Incoming, no: Refusal, decision_id: str) -> Response:
        """A refusal as a page; it is recorded already."""
        row = TABLE[no.reason]
        guest = self._visits.guest(incoming)
        values = {"sentence": row.sentence, "detail": no.detail, "reason": str(no.reason), "decision_id": decision_id}
        return self.show("refusal", incoming, guest, row.status, **values)


def form(incoming: Incoming) -> dict[str, str]:
    """The fields of a form, each at most once, or :class:`Unverifiable`."""
    kind = (incoming.header("content-type") or "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise Unverifiable(Reason.MALFORMED_REQUEST, "expected application/x-www-form-urlencoded")
    return pairs(incoming.body.decode("utf-8", "replace"))


def pairs(text: str) -> dict[str, str]:
    """The pairs of a query or a form; empty values are left out."""
    try:
        found = parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict")
    except (ValueError, UnicodeDecodeError) as bad:
        raise Unverifiable(Reason.MALFORMED_REQUEST, f"not a form: {bad}") from None
    if len({name for name, _ in found}) != len(found):
        raise Unverifiable(Reason.MALFORMED_REQUEST, "a field stands more than once")
    return {name: value for name, value in found if value}
