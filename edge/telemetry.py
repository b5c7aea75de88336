"""What one process tells of itself: a tally that is always kept, and spans if somebody collects them."""

from __future__ import annotations

from edge.metrics import Metrics
from edge.tally import Tally
from edge.tracing import NoTracer, Tracer


class Telemetry:
    """``tracer`` is made by :meth:`open`, when everything that is watched is there."""

    def __init__(self) -> None:
        self.tally = Tally()
        self.metrics = Metrics(self.tally)
        self.tracer: Tracer = NoTracer()

    def open(self, endpoint: str, service: str, name: str, version: str) -> None:
        """Tell the collector at *endpoint*, if there is one."""
        if endpoint:
            from edge.otlp import Otlp  # it takes a third of a second to import, and most do without

            self.tracer = Otlp(endpoint, service, name, version, self.tally)

    def close(self) -> None:
        self.tracer.close()
