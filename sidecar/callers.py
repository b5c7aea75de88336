"""Who asks a sidecar: its own agent by a local token, a client by an access token, a guest by its signature."""

from __future__ import annotations

import base64
import hmac
from typing import Final

from edge.http import Incoming
from sidecar.guests import Guests
from sidecar.ingress.oauth import OAuth
from sidecar.mandates import Mandates
from sidecar.pipeline import Caller
from sidecar.served import Served
from trust.policy.inventory import require_server_name
from trust.reasons import Reason, Unverifiable, visible

DELEGATION_HEADER: Final = "licet-delegation"


class Callers:
    """Of one sidecar. Whoever has the local token is the agent."""

    def __init__(self, own: Served, token: str, mandates: Mandates, oauth: OAuth | None, guests: Guests) -> None:
        self._own = own
        self._token = token
        self._mandates = mandates
        self._oauth = oauth
        self._guests = guests

    async def identify(self, incoming: Incoming, server: str | None) -> tuple[Served, Caller]:
        """Whose request *incoming* is, or :class:`Unverifiable`; *server*: the MCP server that it is for."""
        chain = _brought(incoming)
        if incoming.header("signature-input") is not None:
            return await self._guests.identify(incoming, chain)
        if self._oauth is not None and server is not None and incoming.bearer.count(".") == 2:
            return self._own, await self._by_access_token(self._oauth, incoming.bearer, server, chain)
        return self._own, self._local(incoming, chain)

    async def _by_access_token(self, oauth: OAuth, token: str, server: str, chain: str) -> Caller:
        facts = self._own.view.facts
        if facts is None:
            raise Unverifiable(Reason.STALE_FACTS, "the gateway has not been heard yet")
        bearer = await oauth.identify(token, require_server_name(server), facts.agent.owner)
        return Caller(f"oauth:{visible(bearer.client or bearer.subject, 64)}", chain)

    def _local(self, incoming: Incoming, chain: str) -> Caller:
        """The agent by its local token, or a program of its own by one that stands for a delegation chain."""
        offered = _offered(incoming)
        if hmac.compare_digest(offered, self._token.encode()):
            return Caller("bound", chain)
        own = self._mandates.chain_of(offered)
        if own is None:
            raise Unverifiable(Reason.UNAUTHENTICATED, "send Authorization: Bearer with the token of LICET_TOKEN")
        if chain and chain != own:
            raise Unverifiable(Reason.NOT_YOURS, "this token stands for one delegation chain; bring no other")
        return Caller("mandate", own)

    def knows(self, incoming: Incoming) -> bool:
        """Whether *incoming* has the agent's own token; asked by who checks an installation."""
        return hmac.compare_digest(_offered(incoming), self._token.encode())


def _brought(incoming: Incoming) -> str:
    """The delegation chain that came along."""
    brought = incoming.header(DELEGATION_HEADER) or ""
    if not brought.isascii():
        raise Unverifiable(Reason.DELEGATION_INVALID, "delegation: not ASCII")
    return brought


def _offered(incoming: Incoming) -> bytes:
    """The token as Bearer, or as the password of Basic, which is what a token inside a URL becomes."""
    if incoming.bearer:
        return incoming.bearer.encode()
    scheme, _, value = (incoming.header("authorization") or "").partition(" ")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).partition(b":")[2]
        except ValueError:
            return b""
    return b""
