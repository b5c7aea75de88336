"""Metrics as Prometheus reads them: what a tally has counted, when somebody asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from edge.http import Incoming, Response
from edge.tally import BUCKETS_S, Tally

PATH: Final = "/metrics"
HELP: Final = {
    "licet_actions": "Actions that agents asked for, by decision and reason.",
    "licet_action_seconds": "From an action's arrival to its answer (of a stream: to its beginning).",
    "licet_notices": "Notices that something waits for people: told, failed for good, or dropped.",
    "licet_dispatches": "Actions that the gateway sent to nodes, by how they ended.",
    "licet_dispatch_seconds": "From sending an action to a node to its answer.",
    "licet_executions": "Actions that this node executed, by how they ended.",
    "licet_execution_seconds": "From opening a ticket to the tool's answer.",
    "licet_refusals": "Requests that were refused before or beside an action, by reason.",
}


class Metrics:
    """Answers ``GET /metrics``. No label holds a name, an argument or an address, so it may be read by whoever reaches
    the port."""

    def __init__(self, tally: Tally) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Collector(tally))

    async def serve(self, _incoming: Incoming) -> Response:
        body = generate_latest(self._registry)
        return Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST, "Cache-Control": "no-store"})


class _Collector:
    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        yield from self._counters()
        yield from self._histograms()
        for name, (what, read) in self._tally.watched.items():
            yield GaugeMetricFamily(name, what, value=read())

    def _counters(self) -> Iterator[Metric]:
        families: dict[str, Any] = {}
        for (name, labels), value in list(self._tally.counts.items()):
            family = families.setdefault(name, CounterMetricFamily(name, HELP[name], labels=[key for key, _ in labels]))
            family.add_metric([text for _, text in labels], value)
        yield from families.values()

    def _histograms(self) -> Iterator[Metric]:
        families: dict[str, Any] = {}
        for (name, labels), known in list(self._tally.durations.items()):
            family = families.setdefault(
                name, HistogramMetricFamily(name, HELP[name], labels=[key for key, _ in labels])
            )
            ends = [*map(str, BUCKETS_S), "+Inf"]
            buckets = list(zip(ends, map(float, accumulate(known.counts)), strict=True))
            family.add_metric([text for _, text in labels], buckets, known.total_s)
        yield from families.values()
