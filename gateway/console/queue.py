"""The queue: what waits for people, the card that explains it, and the forms by which they decide."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Final

import msgspec

from edge.clock import SystemClock
from edge.http import Incoming, Response
from gateway.approvals.desk import Desk
from gateway.approvals.votes import Ballot, Votes
from gateway.console.cards import Card, Cards
from gateway.console.door import ROOT, Door, pairs
from gateway.console.pages import redirect
from gateway.console.visits import Guest
from gateway.index import Index
from gateway.state import ApprovalRecord, Person
from trust.canonical import read_object
from trust.identity.passkeys import assertion
from trust.ledger.entries import ONCE, Scope
from trust.reasons import Reason, Unverifiable, visible

HERE: Final = "/queue"
PAST: Final = "/history"
FULL: Final = 10
"""Requests that stand on the page with everything; what comes after those is listed."""
LISTED: Final = 100
PAGE: Final = 50
REST_S: Final = 1.0
LOOKS_S: Final = 120.0
"""For how long who opened a request counts as looking at it."""
_NUMBERS: Final = 4


class QueuePages:
    """For everybody who is signed in; who may not decide sees why."""

    def __init__(
        self, desk: Desk, votes: Votes, cards: Cards, index: Index, clock: SystemClock, tell: Callable[[], None]
    ) -> None:
        """*tell*: every open page that there is something new."""
        self._index = index
        self._tell = tell
        self._news = 0
        self._untold = False
        self._resting = False
        self._desk = desk
        self._votes = votes
        self._cards = cards
        self._clock = clock
        self._drawn: dict[str, tuple[int, asyncio.Task[Response]]] = {}
        self._looking: dict[tuple[str, str], float] = {}
        self._blank = secrets.token_hex(32)

    def add_to(self, door: Door) -> None:
        self._door = door
        door.section(HERE, "Queue", "approvals.see")
        door.section(PAST, "History", "approvals.see")
        door.page(HERE, self._queue, "approvals.see")
        door.page(f"{HERE}-cards", self._live, "approvals.see")
        door.page(f"{HERE}/{{approval}}", self._one, "approvals.see", "approval")
        door.form(f"{HERE}/{{approval}}/vote", self._vote, "approvals.decide", "approval")
        door.form(f"{HERE}/{{approval}}/edit", self._edit, "approvals.decide", "approval")
        door.form(f"{HERE}/{{approval}}/revoke", self._revoke, "approvals.decide", "approval")
        door.page(PAST, self._history, "approvals.see")

    def changed(self) -> None:
        """Something about some request, or about who may decide, is new: pages hear of it at once, but not more often
        than once a second, however much happens."""
        self._untold = True
        if not self._resting:
            self._announce()

    def _announce(self) -> None:
        self._untold, self._resting = False, True
        self._news += 1
        self._tell()
        asyncio.get_running_loop().call_later(REST_S, self._rested)

    def _rested(self) -> None:
        self._resting = False
        if self._untold:
            self._announce()

    async def _queue(self, incoming: Incoming, guest: Guest) -> Response:
        return await self._show("queue", incoming, guest)

    async def _live(self, incoming: Incoming, guest: Guest) -> Response:
        """The same without what stands around it, for a page that is there already. Many pages of one person ask for it
        at each news, so it is drawn once; only the token of its forms is each page's own."""
        news, drawing = self._drawn.get(guest.person.name, (-1, None))
        failed = drawing is not None and drawing.done() and drawing.exception() is not None
        if drawing is None or failed or news != self._news:
            unnamed = msgspec.structs.replace(guest, csrf=self._blank)
            drawing = asyncio.create_task(self._show("queue_cards", incoming, unnamed))
            self._drawn[guest.person.name] = self._news, drawing
        drawn = await asyncio.shield(drawing)
        body = drawn.body if isinstance(drawn.body, bytes) else b""
        return Response(body=body.replace(self._blank.encode(), guest.csrf.encode()), headers=drawn.headers)

    async def _show(self, template: str, incoming: Incoming, guest: Guest) -> Response:
        """In a thread: a long page must hold up nobody, least of all a kill."""
        full, rest = await self._waiting(guest)
        done = pairs(incoming.query).get("done", "")
        said = self._desk.find(done) if self._door.sees(guest, "approval", done) else None
        return await asyncio.to_thread(
            self._door.show,
            template, incoming, guest, cards=full, rest=rest[:LISTED], more=max(0, len(rest) - LISTED), said=said,
            now_s=int(self._clock.now()),
        )  # fmt: skip

    async def _waiting(self, guest: Guest) -> tuple[list[Card], list[ApprovalRecord]]:
        """What this person can decide on first, and of that what ends first; that it was looked at is recorded once."""
        mine, others = self._desk.waiting_for(guest.person)
        ordered = mine + others
        for record in ordered[:FULL]:
            if not record.viewed_at_us:
                await self._votes.viewed(record.id, guest.person)
        return [self._card(self._desk.get(one.id), guest.person) for one in ordered[:FULL]], ordered[FULL:]

    def _card(self, record: ApprovalRecord, person: Person) -> Card:
        """With who else opened it just now: two people need not read the same thing."""
        since = self._clock.mono() - LOOKS_S
        looking = (name for (one, name), at in self._looking.items() if one == record.id and at > since)
        others = sorted({*looking} - {person.name})
        return msgspec.structs.replace(self._cards.of(record, person), looking=tuple(others))

    def _looks(self, approval: str, name: str) -> None:
        now = self._clock.mono()
        self._looking = {one: at for one, at in self._looking.items() if at > now - LOOKS_S} | {(approval, name): now}
        self.changed()

    async def _one(self, incoming: Incoming, guest: Guest, approval: str) -> Response:
        record = await self._votes.viewed(approval, guest.person)
        if record.state == "pending":
            self._looks(approval, guest.person.name)
        card = await self._cards.explained(self._card(record, guest.person))
        ended = (await self._ended([record])).get(record.claim, "")
        return self._door.show("request", incoming, guest, card=card, ended=ended, now_s=int(self._clock.now()))

    async def _vote(self, _incoming: Incoming, guest: Guest, fields: dict[str, str], approval: str) -> Response:
        ballot = Ballot(
            decision=fields.get("decision", ""),
            presented=fields.get("presented", ""),
            reason=fields.get("reason", ""),
            seat=fields.get("seat", ""),
            tell="hush" not in fields,
            block="block" in fields,
            scope=_scope(fields) if fields.get("decision") == "approve" else ONCE,
            signed=assertion(fields["passkey"]) if "passkey" in fields else None,
        )
        await self._votes.vote(approval, guest.person, ballot)
        return redirect(f"{ROOT}{HERE}?done={approval}")

    async def _edit(self, _incoming: Incoming, guest: Guest, fields: dict[str, str], approval: str) -> Response:
        arguments = read_object(fields.get("arguments", "").encode())
        seen, reason = fields.get("presented", ""), fields.get("reason", "")
        await self._votes.edit(approval, guest.person, arguments, seen, reason)
        return redirect(f"{ROOT}{HERE}/{approval}")

    async def _revoke(self, _incoming: Incoming, guest: Guest, fields: dict[str, str], approval: str) -> Response:
        await self._votes.revoke(approval, guest.person, fields.get("reason", ""))
        return redirect(f"{ROOT}{HERE}/{approval}")

    async def _history(self, incoming: Incoming, guest: Guest) -> Response:
        """What was decided, the latest first."""
        fields = pairs(incoming.query)
        state, before = fields.get("state", ""), fields.get("before", "")
        found = self._desk.past(state, before, PAGE + 1, guest.person)
        following = found[PAGE - 1].id if len(found) > PAGE else ""
        ended = await self._ended(found[:PAGE])
        past = [self._cards.past(one, guest.person, ended.get(one.claim, "")) for one in found[:PAGE]]
        return self._door.show("history", incoming, guest, requests=past, state=state, next=following, states=STATES)

    async def _ended(self, records: list[ApprovalRecord]) -> dict[str, str]:
        """How the actions that used these approvals ended, by their sidecars' word."""
        claims = [one.claim for one in records if one.claim]
        marks = ", ".join("?" for _ in claims)
        sql = f"SELECT action_id, decision FROM entry WHERE kind = 'outcome' AND step = 10 AND action_id IN ({marks})"  # noqa: S608
        return dict(await self._index.ask(sql, tuple(claims))) if claims else {}


STATES: Final = ("approved", "consumed", "denied", "expired", "cancelled")


def _scope(fields: dict[str, str]) -> Scope:
    """How far the form says that a yes goes."""
    match fields.get("scope", "once"):
        case "once":
            return ONCE
        case "uses":
            return Scope("uses", _number(fields, "uses", 100), _number(fields, "minutes", 480))
        case "tool":
            return Scope("tool", 0, _number(fields, "minutes", 480))
        case other:
            raise Unverifiable(Reason.MALFORMED_REQUEST, f"scope {visible(other)}: expected once, uses or tool")


def _number(fields: dict[str, str], name: str, most: int) -> int:
    text = fields.get(name, "0")
    if not text.isdecimal() or len(text) > _NUMBERS or int(text) > most:
        raise Unverifiable(Reason.MALFORMED_REQUEST, f"{name}: expected a number up to {most}")
    return int(text)
