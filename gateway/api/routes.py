"""All routes of one gateway, and its health."""

from __future__ import annotations

from edge.http import Incoming, Response, json_response
from edge.metrics import PATH, Metrics
from gateway.api.access import Access, Services
from gateway.api.administration import Administration
from gateway.api.decisions import Decisions
from gateway.api.ledger import Ledger
from gateway.api.nodes import NodesApi
from gateway.api.peers import PeersApi
from gateway.api.usage import UsageApi
from gateway.api.workloads import Workloads
from gateway.console.door import ROOT
from gateway.console.pages import redirect
from gateway.console.site import Console


class Api:
    """``routes`` answer what the gateway serves."""

    def __init__(self, services: Services, console: Console, metrics: Metrics) -> None:
        self.services = services
        access = Access(services)
        access.anyone("GET", "/", self._home)
        access.anyone("GET", "/livez", self._livez)
        access.anyone("GET", "/readyz", self._readyz)
        access.anyone("GET", PATH, metrics.serve)
        parts = (Workloads, Decisions, Administration, NodesApi, Ledger, UsageApi, PeersApi)
        for part in (*(made(services) for made in parts), console):
            part.add_to(access)
        self.routes = access.routes

    async def _home(self, incoming: Incoming) -> Response:
        if "text/html" in (incoming.header("accept") or ""):
            return redirect(ROOT)
        text = "Licet gateway. The console is at /console; or use `licet approvals` and `licet audit`.\n"
        return Response(text=text, headers={"Cache-Control": "no-store"})

    async def _livez(self, _incoming: Incoming) -> Response:
        """A ledger that cannot be written, and a state that could not follow it, stay so until a restart; a database
        that lost changes gets them back from gateways that start."""
        records = self.services.records
        live = records.fault is None and records.ledger.fault is None and not records.damaged
        return json_response({"live": live}, 200 if live else 503)

    async def _readyz(self, _incoming: Incoming) -> Response:
        records = self.services.records
        fault = records.fault or records.ledger.fault
        checks = {"bundle": self.services.bundles.sealed is not None, "ledger": fault is None}
        return json_response({"ready": all(checks.values()), "checks": checks}, 200 if all(checks.values()) else 503)
