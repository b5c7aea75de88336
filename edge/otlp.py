"""The one door to OpenTelemetry: spans and metrics to a collector, over OTLP (HTTP). Imported only where asked for.

Whether something is traced is the operator's choice: a caller's ``traceparent`` names the trace, and its sampling flag
is not obeyed, or an agent could switch off what watches it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final

from opentelemetry import trace as api
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from edge.metrics import HELP
from edge.tally import BUCKETS_S, Tally
from edge.tracing import Attributes, Marks
from trust.trace import Trace

EVERY_MS: Final = 10_000
TIMEOUT_S: Final = 5
FLUSH_MS: Final = 2_000


class _Ids(RandomIdGenerator):
    """The ids that the ledger has, for the span that it names; random ones for the parts below it."""

    def __init__(self) -> None:
        self.span = self.trace = 0

    def generate_span_id(self) -> int:
        found, self.span = self.span, 0
        return found or super().generate_span_id()

    def generate_trace_id(self) -> int:
        found, self.trace = self.trace, 0
        return found or super().generate_trace_id()


class Otlp:
    """Of one process: *service* (licet-sidecar, …), *name* (which one), *endpoint* (the collector's base URL)."""

    def __init__(self, endpoint: str, service: str, name: str, version: str, tally: Tally) -> None:
        resource = Resource.create({"service.name": service, "service.instance.id": name, "service.version": version})
        base = endpoint.rstrip("/")
        self._ids = _Ids()
        self._spans = TracerProvider(
            sampler=ALWAYS_ON, resource=resource, id_generator=self._ids, shutdown_on_exit=False
        )
        exporter = OTLPSpanExporter(endpoint=f"{base}/v1/traces", timeout=TIMEOUT_S)
        self._spans.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1_000))
        self._tracer = self._spans.get_tracer("licet", version)
        metrics = OTLPMetricExporter(endpoint=f"{base}/v1/metrics", timeout=TIMEOUT_S)
        self._meters = MeterProvider(
            [PeriodicExportingMetricReader(metrics, EVERY_MS)], resource=resource, shutdown_on_exit=False
        )
        self._count(tally)

    # Spans

    def marks(self, received_ns: int = 0) -> Marks:
        return Marks(received_ns or time.time_ns())

    def told(self, name: str, trace: Trace, marks: Marks, attributes: Attributes, *, failed: bool) -> None:
        trace_id = int(trace.trace_id, 16)
        if trace.parent_id:
            parent = SpanContext(trace_id, int(trace.parent_id, 16), True, TraceFlags(TraceFlags.SAMPLED))
            context = api.set_span_in_context(NonRecordingSpan(parent))
        else:
            context = api.set_span_in_context(api.INVALID_SPAN)
        self._ids.trace, self._ids.span = trace_id, int(trace.span_id or "0", 16)
        span = self._tracer.start_span(
            name, context=context, kind=SpanKind.SERVER, attributes=attributes, start_time=marks.begin_ns
        )
        self._ids.trace = self._ids.span = 0
        if failed:
            span.set_status(Status(StatusCode.ERROR))
        inside, begin = api.set_span_in_context(span), marks.begin_ns
        for part, end in marks.parts:
            self._tracer.start_span(part, context=inside, start_time=begin).end(end)
            begin = end
        span.end(max(begin, time.time_ns()))

    # Metrics

    def _count(self, tally: Tally) -> None:
        """Every number of *tally*; a duration as its buckets, their count and their sum."""
        meter = self._meters.get_meter("licet")
        for name, what in HELP.items():
            if name.endswith("_seconds"):
                meter.create_observable_counter(f"{name}.bucket", [_buckets(tally, name)], description=what)
                meter.create_observable_counter(f"{name}.sum", [_sums(tally, name)], "s", what)
            else:
                meter.create_observable_counter(name, [_counts(tally, name)], description=what)
        for name, (what, read) in tally.watched.items():
            meter.create_observable_gauge(name, [_reading(read)], description=what)

    def close(self) -> None:
        """Tell what is left, for a moment at most: nothing may hold up a stop."""
        self._spans.force_flush(FLUSH_MS)
        self._spans.shutdown()
        self._meters.shutdown(FLUSH_MS)


_Observe = Callable[[CallbackOptions], Iterable[Observation]]


def _counts(tally: Tally, name: str) -> _Observe:
    return lambda _: [Observation(n, dict(labels)) for (of, labels), n in list(tally.counts.items()) if of == name]


def _sums(tally: Tally, name: str) -> _Observe:
    return lambda _: [
        Observation(known.total_s, dict(labels)) for (of, labels), known in list(tally.durations.items()) if of == name
    ]


def _buckets(tally: Tally, name: str) -> _Observe:
    ends = [*map(str, BUCKETS_S), "+Inf"]
    return lambda _: [
        Observation(count, {**dict(labels), "le": end})
        for (of, labels), known in list(tally.durations.items())
        if of == name
        for end, count in zip(ends, known.counts, strict=True)
    ]


def _reading(read: Callable[[], float]) -> _Observe:
    return lambda _: [Observation(read())]
