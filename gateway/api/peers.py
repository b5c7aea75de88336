"""What the other gateways of a mesh ask: which logs are here, and what they say."""

from __future__ import annotations

from typing import Final
from urllib.parse import parse_qs

import msgspec

from edge import reverse
from edge.client import Broken, Unreachable
from edge.http import Incoming, Response, StreamResponse, json_response, relay
from gateway.api.access import Access, Services
from gateway.peers import BROKE, LOG, LOGS, NOT_HERE, WORK, unpacked_work
from trust.ledger.shipment import SHIPMENT_TYPE
from trust.reasons import Reason, Unverifiable, visible


class PeersApi:
    """Routes for whoever has a pass by the gateways' key."""

    def __init__(self, services: Services) -> None:
        self._peers = services.peers
        self._accepted = services.accepted

    def add_to(self, access: Access) -> None:
        access.anyone("GET", LOGS, self._logs)
        access.anyone("GET", LOG, self._log)
        access.anyone("POST", WORK, self._work)

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

    async def _work(self, incoming: Incoming) -> StreamResponse:
        """Something for a node that is connected here."""
        self._peers.require(incoming)
        work, body = unpacked_work(incoming.body)
        if not self._accepted.has(work.node):
            return Response(status=404, headers={NOT_HERE: "yes"})
        url = f"http://{work.node}{reverse.HOST}{work.path}"
        try:
            reply = await self._accepted.client.request("POST", url, work.headers, body)
        except Unreachable:
            return Response(status=404, headers={NOT_HERE: "yes"})
        except Broken as bad:
            return Response(status=502, headers={BROKE: visible(str(bad), 200)})
        try:
            given = {name: value for name, value in reply.headers.items() if name.lower() not in _OF_A_CONNECTION}
            response, _ = await relay(incoming, reply.chunks(), reply.status, given)
            return response
        finally:
            reply.close()


_OF_A_CONNECTION: Final = {"connection", "content-length", "date", "keep-alive", "server", "transfer-encoding"}
