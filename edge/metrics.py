"""Metrics as Prometheus reads them: what a tally has counted, when somebody asks for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from itertools import accumulate
from typing import Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from edge.http import Incoming, Response
from edge.tally import BUCKETS_S, Labels, Tally, Told

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
    the port. ``of_workers``: what the workers of this part have counted, by number, if there are several."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self.of_workers: Callable[[], Awaitable[dict[str, Told]]] | None = None

    async def serve(self, _incoming: Incoming) -> Response:
        told = {"": self._tally.told()} if self.of_workers is None else await self.of_workers()
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collector(told))
        body = generate_latest(registry)
        return Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST, "Cache-Control": "no-store"})


class _Collector:
    def __init__(self, told: dict[str, Told]) -> None:
        self._told = told

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Any] = {}
        for worker, told in self._told.items():
            of: Labels = (("worker", worker),) if worker else ()
            _add(families, of, told)
        yield from families.values()


def _add(families: dict[str, Any], of: Labels, told: Told) -> None:
    for name, labels, number in told.counts:
        keys, texts = _split(of + labels)
        families.setdefault(name, CounterMetricFamily(name, HELP[name], labels=keys)).add_metric(texts, number)
    ends = [*map(str, BUCKETS_S), "+Inf"]
    for name, labels, counts, total_s in told.durations:
        keys, texts = _split(of + labels)
        buckets = list(zip(ends, map(float, accumulate(counts)), strict=True))
        families.setdefault(name, HistogramMetricFamily(name, HELP[name], labels=keys)).add_metric(
            texts, buckets, total_s
        )
    for name, what, value in told.watched:
        keys, texts = _split(of)
        families.setdefault(name, GaugeMetricFamily(name, what, labels=keys)).add_metric(texts, value)


def _split(labels: Labels) -> tuple[list[str], list[str]]:
    return [key for key, _ in labels], [text for _, text in labels]
