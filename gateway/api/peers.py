"""What the other gateways of a mesh ask: which logs are here, and what they say."""

from __future__ import annotations

from urllib.parse import parse_qs

import msgspec

from edge.http import Incoming, Response, json_response
from gateway.api.access import Access, Services
from gateway.peers import LOG, LOGS
from trust.ledger.shipment import SHIPMENT_TYPE
from trust.reasons import Reason, Unverifiable


class PeersApi:
    """Routes for whoever has a pass by the gateways' key."""

    def __init__(self, services: Services) -> None:
        self._peers = services.peers

    def add_to(self, access: Access) -> None:
        access.anyone("GET", LOGS, self._logs)
        access.anyone("GET", LOG, self._log)

    async def _logs(self, incoming: Incoming) -> Response:
        self._peers.require(incoming)
        return json_response(msgspec.to_builtins(self._peers.told()))

    async def _log(self, incoming: Incoming) -> Response:
        self._peers.require(incoming)
        asked = parse_qs(incoming.query)
        origin, first = (asked.get(name, [""])[0] for name in ("origin", "first"))
        if not first.isdecimal() or len(first) > 15:
            raise Unverifiable(Reason.MALFORMED_REQUEST, "first: expected the index of an entry")
        body = await self._peers.shipped(origin, int(first))
        return Response(body=body, headers={"Content-Type": SHIPMENT_TYPE})
