"""One agent as a sidecar serves it: what is known of it, what it did, and the protocols that it speaks."""

from __future__ import annotations

from collections.abc import Callable

from edge.blobs import Blobs
from edge.clock import SystemClock
from edge.durable import DurableLedger
from edge.telemetry import Telemetry
from sidecar.chains import Chains
from sidecar.identity import Identity
from sidecar.ingress.actions import Actions
from sidecar.ingress.mcp import Mcp
from sidecar.ingress.repeats import Repeats
from sidecar.journal import Recall
from sidecar.pipeline import Pipeline
from sidecar.recovery import Past
from sidecar.reports import Reports
from sidecar.siblings import Siblings
from sidecar.subjects import Subjects
from sidecar.world import View


class Served:
    """Its own agent, or a guest. *run* is the run of whoever names none."""

    def __init__(
        self,
        agent: str,
        own_keys: Callable[[], frozenset[bytes]],
        identity: Identity,
        view: View,
        recall: Recall,
        past: Past,
        siblings: Siblings | None,
        ledger: DurableLedger,
        blobs: Blobs,
        clock: SystemClock,
        run: str,
        hold_wait_s: float,
        telemetry: Telemetry,
    ) -> None:
        self.agent = agent
        self.view = view
        self.chains = Chains(agent, own_keys, identity, view, clock)
        self._reports = Reports(agent, identity, past.refusals)
        self.pipeline = Pipeline(
            agent,
            identity,
            view,
            self.chains,
            Subjects(agent, identity, view, clock),
            self._reports,
            recall,
            ledger,
            blobs,
            clock,
            telemetry,
        )
        self.actions = Actions(agent, self.pipeline, run, Repeats(past.keys, clock.now), siblings)
        self.mcp = Mcp(self.pipeline, run, hold_wait_s)

    async def report(self) -> None:
        """Tell the gateway what was refused here since it last heard."""
        if self.view.facts is not None:
            await self._reports.tell(self.view.facts.heard)
