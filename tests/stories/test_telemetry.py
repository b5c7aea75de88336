"""What the mesh tells of itself: spans of the ten steps under the agent's own trace, and numbers for Prometheus."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families

from edge.tally import BUCKETS_S, Tally
from edge.tracing import UNSEEN, NoTracer
from sidecar.config import ToolServer
from tests.mesh import Mesh, policy_files
from tests.stories.test_mcp_clients import TOOL_MANIFEST, TOOL_POLICY
from trust.ledger.entries import Intent, Refusal
from trust.trace import Trace, continued, traceparent

READ, NOTES = "workbench/read_file", {"path": "notes.txt"}
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
INCOMING = {"traceparent": f"00-{TRACE}-{PARENT}-00"}  # not sampled: the caller does not decide that


@dataclass
class Collector:
    """A collector of OTLP over HTTP, as the specification has it."""

    spans: list[Any] = field(default_factory=list)
    metrics: set[str] = field(default_factory=set)
    url: str = ""

    async def traces(self, request: web.Request) -> web.Response:
        body = await request.read()
        data = gzip.decompress(body) if request.headers.get("Content-Encoding") == "gzip" else body
        for resource in ExportTraceServiceRequest.FromString(data).resource_spans:
            service = {one.key: one.value.string_value for one in resource.resource.attributes}["service.name"]
            for scope in resource.scope_spans:
                self.spans += [(service, span) for span in scope.spans]
        return web.Response(body=b"", content_type="application/x-protobuf")

    async def numbers(self, request: web.Request) -> web.Response:
        for resource in ExportMetricsServiceRequest.FromString(await request.read()).resource_metrics:
            self.metrics |= {metric.name for scope in resource.scope_metrics for metric in scope.metrics}
        return web.Response(body=b"", content_type="application/x-protobuf")

    def named(self, name: str) -> list[Any]:
        return [span for _, span in self.spans if span.name == name]


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    made = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", made.traces)
    app.router.add_post("/v1/metrics", made.numbers)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


@pytest.mark.slow
async def test_the_ten_steps_are_spans_under_the_agents_trace(tmp_path: Path, collector: Collector) -> None:
    async with Mesh(tmp_path, otlp=collector.url) as mesh:
        (mesh.sandbox / "notes.txt").write_text("hello")
        done = await mesh.call_with(READ, NOTES, INCOMING)
        assert done.status == 200
        refused = await mesh.call_with(READ, {"path": "server.pem"}, INCOMING)
        assert refused.status == 403
        deeds = [e.deed for e in mesh.entries() if isinstance(e, Intent | Refusal) and e.deed]
        await asyncio.to_thread(mesh.sidecar.telemetry.tracer._spans.force_flush)  # type: ignore[attr-defined]
        await asyncio.to_thread(mesh.gateway.telemetry.tracer._spans.force_flush)  # type: ignore[attr-defined]
        await asyncio.to_thread(mesh.node.telemetry.tracer._spans.force_flush)  # type: ignore[attr-defined]
    ours = [(service, span) for service, span in collector.spans if span.trace_id.hex() == TRACE]
    by_id = {span.span_id: span for _, span in ours}
    acts = collector.named("licet act")
    assert [span.parent_span_id.hex() for span in acts] == [PARENT, PARENT]
    assert {span.span_id.hex() for span in acts} == {deed.span_id for deed in deeds}  # as the ledger has them
    assert {deed.trace_id for deed in deeds} == {TRACE}

    def below(parent: Any) -> list[str]:
        found = [span for _, span in ours if span.parent_span_id == parent.span_id]
        return [span.name for span in sorted(found, key=lambda span: span.start_time_unix_nano)]

    allowed = next(span for span in acts if any(a.value.string_value == "allow" for a in span.attributes))
    denied = next(span for span in acts if span is not allowed)
    (route,) = collector.named("licet route")
    assert [name for name in below(allowed) if name != "licet route"] == [
        "1 receive", "2 identify", "3 recall", "4 evaluate", "5 decide", "6 record", "8 route", "10 answer",
    ]  # fmt: skip
    assert below(denied) == [
        "1 receive", "2 identify", "3 recall", "4 evaluate", "5 decide", "6 record", "10 answer",
    ]  # fmt: skip
    assert route.parent_span_id == allowed.span_id
    assert {"8 believe", "8 decide again", "8 choose a node", "8 record", "9 execute"} <= set(below(route))
    (execute,) = collector.named("licet 9 execute")
    assert execute.parent_span_id == route.span_id
    assert below(execute) == ["9 open the ticket", "9 the tool answers"]
    assert {service for service, _ in ours} == {"licet-sidecar", "licet-gateway", "licet-node"}
    for span in by_id.values():
        assert span.end_time_unix_nano >= span.start_time_unix_nano
    text = str(collector.spans)
    assert "notes.txt" not in text  # arguments stay in the ledger
    assert "server.pem" not in text
    assert {"licet_actions", "licet_action_seconds.bucket", "licet_ledger_entries"} <= collector.metrics


@pytest.mark.slow
async def test_a_collector_that_is_away_holds_nothing_up(tmp_path: Path) -> None:
    async with Mesh(tmp_path, otlp="http://127.0.0.1:9") as mesh:
        (mesh.sandbox / "notes.txt").write_text("hello")
        assert [(await mesh.call(READ, NOTES)).status for _ in range(3)] == [200, 200, 200]


@pytest.mark.slow
async def test_without_a_collector_nothing_is_told_and_traces_are_still_recorded(mesh: Mesh) -> None:
    assert isinstance(mesh.sidecar.telemetry.tracer, NoTracer)
    assert mesh.sidecar.telemetry.tracer.marks() is UNSEEN
    await mesh.call_with(READ, NOTES, INCOMING)
    await mesh.call(READ, NOTES)
    first, second = (e.deed for e in mesh.entries() if isinstance(e, Intent))
    assert (first.trace_id, len(first.span_id)) == (TRACE, 16)
    assert second.trace_id != TRACE
    assert re.fullmatch("[0-9a-f]{32}", second.trace_id)


@pytest.mark.slow
async def test_the_trace_reaches_a_tool_server_over_http(tmp_path: Path, collector: Collector) -> None:
    """With its own span where the node has one, with the sidecar's where it has none."""
    heard: list[str] = []

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        asked = json.loads(await request.read())
        if asked["method"] == "tools/call":
            heard.append(request.headers.get("traceparent", ""))
        tool = {"name": "add", "description": "Add.", "inputSchema": {"type": "object", "properties": {}}}
        result = {"tools": [tool]} if asked["method"] == "tools/list" else {"content": []}
        return web.json_response({"jsonrpc": "2.0", "id": asked.get("id"), "result": result})

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    manifest = tmp_path / "third.toml"
    manifest.write_text(TOOL_MANIFEST)
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/mcp"
    files = {k: v for k, v in policy_files().items() if not k.startswith("cases/")} | {"third.cedar": TOOL_POLICY}
    for number, otlp in enumerate((None, collector.url)):
        third = ToolServer(name="third", url=url, manifest=manifest)
        async with Mesh(tmp_path / str(number), servers=(third,), otlp=otlp) as mesh:
            await mesh.activate(files)
            await mesh.ready()
            assert (await mesh.call_with("third/add", {}, INCOMING)).status == 200
            (intent,) = [e for e in mesh.entries() if isinstance(e, Intent)]
            assert heard[-1].startswith(f"00-{TRACE}-")
            assert (intent.deed.span_id in heard[-1]) is (otlp is None)
    await runner.cleanup()


@pytest.mark.slow
async def test_a_held_action_stays_in_the_trace_of_who_asked_for_it(mesh: Mesh) -> None:
    held = await mesh.call_with("workbench/delete_file", NOTES, INCOMING)
    await mesh.vote(held.json["approval"])
    assert (await mesh.claim(held.json["approval"])).status == 200
    (intent,) = [e for e in mesh.entries() if isinstance(e, Intent)]
    assert intent.deed.trace_id == TRACE
    assert intent.deed.span_id not in ("", PARENT)


def series(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value


@pytest.mark.slow
async def test_prometheus_reads_what_happened_and_no_names(mesh: Mesh) -> None:
    for _ in range(3):
        await mesh.call(READ, NOTES)
    await mesh.call(READ, {"path": "server.pem"})
    held = await mesh.call("workbench/delete_file", NOTES)
    await mesh.call("workbench/delete_file", {"path": "other.txt"})
    await mesh.vote(held.json["approval"])
    assert (await mesh.call("workbench/delete_file", NOTES)).status == 200  # finds what was approved: one action
    assert (await mesh.request("GET", f"{mesh.url}/nowhere")).status == 404
    told = {}
    for part, url in (
        ("sidecar", mesh.url),
        ("gateway", mesh.gateway_url),
        ("node", f"http://127.0.0.1:{mesh.node.port}"),
    ):
        answer = await mesh.request("GET", f"{url}/metrics")
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        told[part] = list(series(answer.body.decode()))
        for name in ("demo", "notes", "pem", "workbench", "node-1", "ada", "approver", "127.0.0.1"):
            assert name not in answer.body.decode(), (part, name)

    def value(part: str, name: str, **labels: str) -> float:
        (found,) = [v for n, has, v in told[part] if n == name and has == labels]
        return found

    assert value("sidecar", "licet_actions_total", decision="allow", reason="") == 4
    assert value("sidecar", "licet_actions_total", decision="deny", reason="policy_forbids") == 1
    assert value("sidecar", "licet_actions_total", decision="hold", reason="") == 2
    assert value("sidecar", "licet_refusals_total", reason="not_found") == 1
    assert value("sidecar", "licet_action_seconds_count", decision="allow") == 4
    assert value("sidecar", "licet_ready") == 1
    assert value("sidecar", "licet_ledger_entries") == mesh.sidecar.ledger.size
    assert value("gateway", "licet_dispatches_total", status="done") == 4
    assert value("gateway", "licet_approvals_pending") == 1
    assert value("gateway", "licet_nodes_alive") == 1
    assert value("node", "licet_executions_total", status="done") == 4


@given(st.text(max_size=80))
def test_what_is_no_traceparent_begins_a_trace(text: str) -> None:
    made = continued(text, "ab" * 24, 5)
    assert made == Trace("ab" * 16, "ab" * 8, "", 5)


hexes = st.text("0123456789abcdef", min_size=32, max_size=32).filter(lambda t: t.strip("0"))


@given(hexes, hexes.map(lambda t: t[:16]).filter(lambda t: t.strip("0")), st.sampled_from(["00", "01", "ff"]))
def test_a_traceparent_is_continued(trace: str, span: str, flags: str) -> None:
    made = continued(f"00-{trace}-{span}-{flags}", "cd" * 24, 0)
    assert (made.trace_id, made.parent_id, made.span_id) == (trace, span, "cd" * 8)
    assert continued(traceparent(trace, span), "cd" * 24, 0) == made
    assert traceparent("", span) == ""


@pytest.mark.parametrize(
    ("header", "valid"),
    [
        (f"00-{TRACE}-{PARENT}-01", True),
        (f"cc-{TRACE}-{PARENT}-01-what-a-later-version-adds", True),
        (f"00-{TRACE}-{PARENT}-01-more", False),
        (f"ff-{TRACE}-{PARENT}-01", False),
        (f"00-{'0' * 32}-{PARENT}-01", False),
        (f"00-{TRACE}-{'0' * 16}-01", False),
        (f"00-{TRACE.upper()}-{PARENT}-01", False),
        (f"00-{TRACE}-{PARENT}", False),
        (f"00-{TRACE}-{PARENT}-1", False),
    ],
)
def test_the_cases_of_the_specification(header: str, valid: bool) -> None:
    assert (continued(header, "ab" * 24, 0).trace_id == TRACE) is valid


@given(st.lists(st.floats(0, 100), max_size=50))
def test_every_duration_is_counted_once_and_in_its_bucket(seconds: list[float]) -> None:
    tally = Tally()
    for one in seconds:
        tally.took("licet_action_seconds", one)
    if not seconds:
        assert not tally.durations
        return
    known = tally.durations["licet_action_seconds", ()]
    assert sum(known.counts) == len(seconds)
    for place, end in enumerate(BUCKETS_S):
        assert sum(known.counts[: place + 1]) == sum(one <= end for one in seconds)
