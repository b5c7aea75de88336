"""The Nodes pages: which there are, what each holds and how that is known, what runs there; drain, quarantine."""

from __future__ import annotations

from typing import Final

from edge.http import Incoming, Response
from gateway.api.access import Services
from gateway.console.door import ROOT, Door
from gateway.console.pages import redirect
from gateway.console.visits import Guest
from gateway.fleet import Shown
from gateway.state import NodeState
from trust.reasons import Reason, Unverifiable

HERE: Final = "/nodes"
_STATES: Final[dict[str, NodeState]] = {"drain": "draining", "quarantine": "quarantined", "resume": "ready"}


class NodePages:
    """Of one gateway."""

    def __init__(self, services: Services) -> None:
        self._s = services

    def add_to(self, door: Door) -> None:
        self._door = door
        door.section(HERE, "Nodes", "nodes.see")
        door.page(HERE, self._list, "nodes.see")
        door.page(HERE + "/{name}", self._one, "nodes.see", "node")
        door.form(HERE + "/{name}/{act}", self._put, "nodes.change", "node")

    async def _list(self, incoming: Incoming, guest: Guest) -> Response:
        return self._door.show("nodes", incoming, guest, nodes=self._seen(guest))

    def _seen(self, guest: Guest) -> list[Shown]:
        return [one for one in self._s.fleet.shown() if self._s.control.sees(guest.person, one.namespace)]

    async def _one(self, incoming: Incoming, guest: Guest, name: str) -> Response:
        node = self._s.fleet.known(name)
        shown = next(one for one in self._s.fleet.shown() if one.name == name)
        may = self._door.may(guest, "nodes.change", "node", name)
        return self._door.show("node", incoming, guest, one=shown, put=node.state, may=may)

    async def _put(self, _incoming: Incoming, guest: Guest, fields: dict[str, str], name: str, act: str) -> Response:
        if act not in _STATES:
            raise Unverifiable(Reason.NOT_FOUND, f"expected one of {', '.join(_STATES)}")
        await self._s.fleet.put(name, _STATES[act], guest.person.name, fields.get("reason", ""))
        return redirect(f"{ROOT}{HERE}/{name}")
