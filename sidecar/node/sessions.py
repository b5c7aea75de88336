"""MCP sessions of tool servers: each belongs to the agent that opened it, and nobody else speaks in it."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from sidecar.node.upstream import Replied
from trust import mcp
from trust.action import Payload
from trust.identity.ticket import Ticket
from trust.reasons import Reason, Unverifiable

MAX_SESSIONS: Final = 10_000
"""The one that was used longest ago is forgotten first; its agent opens another."""


class Sessions:
    """Of one node, in memory: after a restart its clients open new ones."""

    def __init__(self) -> None:
        self._owner: OrderedDict[tuple[str, str], str] = OrderedDict()

    def require_own(self, ticket: Ticket, payload: Payload) -> None:
        """Refuse a message in a session that *ticket*'s agent has not opened here, or has ended."""
        session = dict(payload.headers).get(mcp.SESSION_HEADER)
        if session is None:
            return
        if self._owner.get((ticket.server, session)) != ticket.agent:
            raise Unverifiable(Reason.NOT_FOUND, f"{ticket.agent} has no such session with {ticket.server}")
        if payload.method == "DELETE":
            del self._owner[(ticket.server, session)]
        else:
            self._owner.move_to_end((ticket.server, session))

    def note(self, ticket: Ticket, payload: Payload, replied: Replied) -> None:
        """Remember whose session the server just opened; forget one that it does not know any more."""
        sent = dict(payload.headers).get(mcp.SESSION_HEADER)
        if replied.status == 404 and sent is not None:
            self._owner.pop((ticket.server, sent), None)
        session = replied.headers.get(mcp.SESSION_HEADER)
        if session is None or (ticket.server, session) in self._owner:
            return
        self._owner[(ticket.server, session)] = ticket.agent
        if len(self._owner) > MAX_SESSIONS:
            self._owner.popitem(last=False)
