"""The page of who is signed in: their roles, and the passkeys that they sign in and approve with."""

from __future__ import annotations

from typing import Final

from edge.http import Incoming, Response
from gateway.console.door import ROOT, Door
from gateway.console.pages import redirect
from gateway.console.visits import Guest
from gateway.passkeys import Passkeys

HERE: Final = "/you"


class YourPage:
    """For everybody who is signed in."""

    def __init__(self, passkeys: Passkeys) -> None:
        self._passkeys = passkeys

    def add_to(self, door: Door) -> None:
        self._door = door
        door.page(HERE, self._show, "own.see")
        door.form(f"{HERE}/passkeys", self._add, "own.change")
        door.form(f"{HERE}/passkeys/remove", self._remove, "own.change")

    async def _show(self, incoming: Incoming, guest: Guest) -> Response:
        known = self._passkeys.of(guest.person.name)
        shown = not known or guest.how == "passkey"
        asked = self._passkeys.to_add(guest.person) if shown else ""
        return self._door.show("you", incoming, guest, passkeys=known, shown=shown, asked=asked)

    async def _add(self, _incoming: Incoming, guest: Guest, fields: dict[str, str]) -> Response:
        await self._passkeys.add(guest.person, guest.how, fields.get("name", ""), fields.get("passkey", ""))
        return redirect(f"{ROOT}{HERE}")

    async def _remove(self, _incoming: Incoming, guest: Guest, fields: dict[str, str]) -> Response:
        await self._passkeys.remove(guest.person.name, fields.get("credential", ""), guest.person, guest.how)
        return redirect(f"{ROOT}{HERE}")
