"""Visits to the console: opened by a link, a passkey or single sign-on, then a cookie that only the browser has.

A link is made by whoever has a person's token (``licet console``, ``licet up``), works once, for fifteen minutes. What
it opens is a visit: an entry in the ledger, so that a restart ends none and a removed person has none.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Final

import msgspec

from edge.clock import SystemClock
from edge.http import Incoming
from gateway.records import Records
from gateway.state import Passkey, Person, Visit
from trust.canonical import sha256_hex
from trust.ledger import entries
from trust.reasons import Reason, Unverifiable

LINK_S: Final = 15 * 60
VISIT_S: Final = 12 * 60 * 60
MAX_LINKS: Final = 5
"""Of one person; another one ends the oldest."""


class Guest(msgspec.Struct, frozen=True):
    """Who looks at a page; ``csrf`` stands in each of its forms."""

    person: Person
    visit: str
    how: str
    csrf: str
    credential: str = ""


class _Link(msgspec.Struct, frozen=True):
    person: str
    expires_at: float


class Visits:
    """Of one gateway. Links are in memory only: after a restart one asks for another."""

    def __init__(self, records: Records, clock: SystemClock, secret: bytes, *, secure: bool) -> None:
        self._secret = secret
        self._records = records
        self._clock = clock
        self._links: dict[str, _Link] = {}
        self.prefix = "__Host-" if secure else ""
        self._cookie = f"{self.prefix}licet"
        self.flags = "; Secure" if secure else ""

    def link(self, person: Person) -> str:
        """The code of a link that signs *person* in, once."""
        now = self._clock.now()
        self._links = {digest: link for digest, link in self._links.items() if link.expires_at > now}
        own = [digest for digest, link in self._links.items() if link.person == person.name]
        if len(own) >= MAX_LINKS:
            del self._links[own[0]]
        code = secrets.token_urlsafe(32)
        self._links[_digest(code)] = _Link(person.name, now + LINK_S)
        return code

    def whose(self, code: str) -> str:
        """Whom a link would sign in, or :class:`Unverifiable`; the link is not used up."""
        link = self._links.get(_digest(code))
        if link is None or link.expires_at <= self._clock.now():
            raise Unverifiable(
                Reason.UNAUTHENTICATED,
                "this link was used already, or is older than 15 minutes: licet console --as TOKEN-FILE makes one",
            )
        return link.person

    async def enter(self, code: str) -> str:
        """Use up a link; the ``Set-Cookie`` of the visit that it opens."""
        name = self.whose(code)
        del self._links[_digest(code)]
        return await self.open(name, "link")

    async def open(self, person: str, how: str, credential: str = "", count: int = 0) -> str:
        """The ``Set-Cookie`` of a new visit of *person*, whom *how* proved (a passkey: which, and its new count)."""
        secret = secrets.token_urlsafe(32)
        until = int(self._clock.now()) + VISIT_S
        entry = entries.SignIn("signed_in", person, _digest(secret), how, until, credential, count)
        async with self._records.deciding:
            # Between the proof and this an operator may have taken the passkey away.
            if credential and self._records.store.get(Passkey, credential) is None:
                raise Unverifiable(Reason.UNAUTHENTICATED, "this passkey was removed just now")
            await self._records.change(entry)
        return f"{self._cookie}={secret}; Path=/; HttpOnly; SameSite=Strict; Max-Age={VISIT_S}{self.flags}"

    async def end_all(self, person: str) -> int:
        """End every visit of *person*; how many that were."""
        async with self._records.deciding:
            found = [visit for visit in self._records.store.all(Visit) if visit.person == person]
            for visit in found:
                await self._records.change(entries.SignIn("signed_out", person, visit.visit))
        self._links = {digest: link for digest, link in self._links.items() if link.person != person}
        return len(found)

    async def leave(self, guest: Guest) -> str:
        """End a visit; the ``Set-Cookie`` that forgets it."""
        async with self._records.deciding:
            await self._records.change(entries.SignIn("signed_out", guest.person.name, guest.visit))
        return f"{self._cookie}=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0{self.flags}"

    def guest(self, incoming: Incoming) -> Guest | None:
        """Who is signed in, if anybody is."""
        secret = cookie(incoming.header("cookie") or "", self._cookie)
        visit = self._records.store.get(Visit, _digest(secret)) if secret else None
        if visit is None or visit.expires_at <= self._clock.now():
            return None
        person = self._records.store.get(Person, visit.person)
        return (
            Guest(person, visit.visit, visit.how, self._csrf(visit), visit.credential) if person is not None else None
        )

    def _csrf(self, visit: Visit) -> str:
        """Made with what no browser has: who gets hold of a cookie cannot make a form of ours from it."""
        return hmac.new(self._secret, visit.visit.encode(), hashlib.sha256).hexdigest()


def require_own_look(incoming: Incoming) -> None:
    """That a page is asked for by one of ours, or by a person who goes there: not as an image or a frame elsewhere."""
    site = incoming.header("sec-fetch-site")
    goes_there = incoming.header("sec-fetch-mode") == "navigate" and incoming.header("sec-fetch-dest") == "document"
    if site not in (None, "none", "same-origin") and not goes_there:
        raise Unverifiable(Reason.NOT_YOURS, f"a page of another place asks for this (Sec-Fetch-Site: {site})")


def require_own_form(incoming: Incoming, guest: Guest | None, token: str) -> None:
    """That a form comes from our own page, or :class:`Unverifiable`: by what the browser says of where it comes from,
    and by the token that only our page could know."""
    site = incoming.header("sec-fetch-site")
    if site not in (None, "same-origin"):
        raise Unverifiable(Reason.NOT_YOURS, f"a form from another place (Sec-Fetch-Site: {site})")
    if site is None and incoming.header("origin") is None:
        raise Unverifiable(Reason.NOT_YOURS, "a form without Origin and Sec-Fetch-Site: no browser sends it so")
    if guest is not None and not hmac.compare_digest(token.encode(), guest.csrf.encode()):
        raise Unverifiable(Reason.NOT_YOURS, "a form without the page's own token; load the page again")


def _digest(secret: str) -> str:
    return sha256_hex(secret.encode())


def cookie(header: str, name: str) -> str:
    """The value of the cookie *name* in a ``Cookie`` header; empty if it is not there."""
    for pair in header.split(";"):
        key, _, value = pair.strip().partition("=")
        if key == name:
            return value
    return ""
