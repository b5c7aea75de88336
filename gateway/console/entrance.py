"""Coming in and going: by a one-time link, a passkey, or at an issuer of single sign-on."""

from __future__ import annotations

from typing import Final

from edge.http import Incoming, Response
from gateway.console.door import ROOT, Door, form, pairs
from gateway.console.pages import redirect
from gateway.console.visits import Guest, Visits, cookie, require_own_form
from gateway.oidc import FLOW_S, Oidc
from gateway.passkeys import Passkeys
from trust.reasons import Reason, Unverifiable

_FLOW: Final = "licet-sign-in"


class Entrance:
    """Of one console; *oidc* if there is an issuer."""

    def __init__(self, visits: Visits, passkeys: Passkeys, oidc: Oidc | None) -> None:
        self._visits = visits
        self._passkeys = passkeys
        self._oidc = oidc

    def add_to(self, door: Door) -> None:
        self._door = door
        door.anyone("GET", "/sign-in", self._sign_in)
        door.anyone("POST", "/sign-in/passkey", self._by_passkey)
        door.anyone("GET", "/sign-in/oidc", self._to_issuer)
        door.anyone("GET", "/sign-in/oidc/back", self._from_issuer)
        door.anyone("GET", "/enter", self._ask_to_enter)
        door.anyone("POST", "/enter", self._enter)
        door.form("/sign-out", self._leave, "own.change")

    async def _sign_in(self, incoming: Incoming) -> Response:
        following = own_path(pairs(incoming.query).get("next", ""))
        if self._visits.guest(incoming) is not None:
            return redirect(following)
        issuer = self._oidc.name if self._oidc is not None else ""
        asked = self._passkeys.to_sign_in()
        return self._door.show("sign_in", incoming, None, next=following, issuer=issuer, asked=asked)

    async def _ask_to_enter(self, incoming: Incoming) -> Response:
        """A button, because whatever looks at links in advance must not use one up."""
        code = pairs(incoming.query).get("code", "")
        return self._door.show("enter", incoming, None, person=self._visits.whose(code), code=code)

    async def _enter(self, incoming: Incoming) -> Response:
        require_own_form(incoming, None, "")
        return redirect(ROOT, await self._visits.enter(form(incoming).get("code", "")))

    async def _by_passkey(self, incoming: Incoming) -> Response:
        require_own_form(incoming, None, "")
        fields = form(incoming)
        person, key, count = await self._passkeys.sign_in(fields.get("passkey", ""))
        set_cookie = await self._visits.open(person.name, "passkey", key.credential, count)
        return redirect(own_path(fields.get("next", "")), set_cookie)

    async def _to_issuer(self, incoming: Incoming) -> Response:
        following = own_path(pairs(incoming.query).get("next", ""))
        where, flow = await self._issuer().begin(following)
        return redirect(where, self._flow(flow, FLOW_S))

    def _flow(self, value: str, seconds: int) -> str:
        """Lax: it must come along when the issuer sends the browser back."""
        flags = f"Path=/; HttpOnly; SameSite=Lax; Max-Age={seconds}{self._visits.flags}"
        return f"{self._visits.prefix}{_FLOW}={value}; {flags}"

    async def _from_issuer(self, incoming: Incoming) -> Response:
        """A page that goes on by itself: the cookie of a visit is strict, and a browser that comes from the issuer
        would not bring it along at once."""
        flow = cookie(incoming.header("cookie") or "", self._visits.prefix + _FLOW)
        person, following = await self._issuer().finish(flow, pairs(incoming.query))
        set_cookie = await self._visits.open(person.name, "oidc")
        page = self._door.show("entered", incoming, None, person=person.name, next=own_path(following))
        page.headers.add("Set-Cookie", set_cookie)
        page.headers.add("Set-Cookie", self._flow("", 0))
        return page

    def _issuer(self) -> Oidc:
        if self._oidc is None:
            raise Unverifiable(Reason.NOT_FOUND, "no issuer is configured: [gateway.oidc]")
        return self._oidc

    async def _leave(self, _incoming: Incoming, guest: Guest, _fields: dict[str, str]) -> Response:
        return redirect(f"{ROOT}/sign-in", await self._visits.leave(guest))


def own_path(text: str) -> str:
    """*text* if it is a page of the console, else its home: a sign-in must not lead anywhere else."""
    path = text.partition("?")[0]
    ours = path == ROOT or path.startswith(f"{ROOT}/")
    safe = text.isascii() and text.isprintable() and "\\" not in text and ".." not in path and "//" not in path
    return text if ours and safe and not path.startswith((f"{ROOT}/enter", f"{ROOT}/sign-in")) else ROOT
