"""Guarding data: a server that takes calls only from the node that a ticket was made for, once, and checks that itself.

For servers with ``bound = true`` the gateway signs a ticket for each call, for the key of one node, saying what that
node holds and how that is known; the node signs that it brings exactly these bytes under it. So whoever reaches the
server's address from elsewhere, with a ticket or without, gets nothing::

    guard = Guard(gateway_key, server="records", requires=["data_locality=berlin@bound"])
    ticket = guard.admit(request.headers, await request.read())     # or Unverifiable, which says why
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Final, Protocol

from trust import wire
from trust.identity import ticket
from trust.identity.keys import PublicKey
from trust.identity.replay import Nonces
from trust.identity.ticket import Ticket
from trust.mcp import read_message
from trust.reasons import Reason, Unverifiable

WITHOUT_TICKET: Final = frozenset({"initialize", "notifications/initialized", "ping", "server/discover", "tools/list"})
"""MCP methods by which a node finds out what is offered. Everything else is for tickets."""


class Spent(Protocol):
    """Remembers what was used until it ends anyway."""

    def spend(self, nonce: str, expires_at: float, now: float) -> None:
        """Remember *nonce*, or :class:`Unverifiable` if it was spent before."""


class Guard:
    """Of one server. *gateway*: the key that signs tickets (in its DID document); *requires*: capabilities that the
    node must hold, as :mod:`gateway.router.capabilities` writes them. *spent* remembers tickets; several processes of
    one server need one that they share, or each takes a ticket once. *now*: Unix seconds."""

    def __init__(
        self,
        gateway: PublicKey,
        *,
        server: str,
        requires: Collection[str] = (),
        spent: Spent | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._gateway = gateway
        self._server = server
        self._requires = frozenset(requires)
        self._now = now
        self._spent: Spent = Nonces() if spent is None else spent

    def admit(self, headers: Mapping[str, str], body: bytes) -> Ticket | None:
        """For an MCP server: the ticket of a call, None for a message by which a node finds out what is offered, and
        :class:`Unverifiable` for everything else. Messages are read as strictly as everywhere in the mesh."""
        message = read_message(body)
        return None if message.method in WITHOUT_TICKET else self.require(headers, body)

    def require(self, headers: Mapping[str, str], body: bytes) -> Ticket:
        """The ticket under which *body* is brought; :class:`Unverifiable` if there is none that holds. Header names
        are lowercase, or *headers* does not mind."""
        token, use = headers.get(wire.TICKET_HEADER), headers.get(wire.USE_HEADER)
        if not token or not use:
            expected = f"expected the headers {wire.TICKET_HEADER} and {wire.USE_HEADER}, which a node adds"
            raise Unverifiable(Reason.UNAUTHENTICATED, f"no ticket: {expected}")
        now = self._now()
        found = ticket.open_used(token, use, body, gateway=self._gateway, now=now)
        if found.server != self._server:
            raise Unverifiable(Reason.TICKET_INVALID, f"ticket: made for {found.server}, and this is {self._server}")
        lacking = self._requires - set(found.holds)
        if lacking:
            raise Unverifiable(Reason.TICKET_INVALID, f"ticket: {found.node} lacks {min(lacking)}")
        self._spent.spend(found.id, found.deadline, now)
        return found
