"""Traces come in by Kafka headers and go on by them; while off there is nothing of them."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from engines.engine import Engine
from tests.worker.bad_input import CANARY, CASES, MARK
from tests.worker.records import LocalPath, Record, worsening
from worker import config, metrics, tracing
from worker.embedded import free_port
from worker.publish import Outgoing

ON = config.load(traces="otlp")
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01".encode()


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    made = InMemorySpanExporter()
    tracing.start(ON, made)
    yield made
    tracing.stop()


def spans(exporter: InMemorySpanExporter) -> list[ReadableSpan]:
    """All that was exported; ends the tracing."""
    shutdown, exporter.shutdown = exporter.shutdown, lambda: None  # type: ignore[method-assign]
    tracing.stop()
    exporter.shutdown = shutdown  # type: ignore[method-assign]
    return list(exporter.get_finished_spans())


def with_trace(records: Sequence[Record], header: bytes = PARENT) -> list[Record]:
    return [one._replace(headers=(*one.headers, ("traceparent", header))) for one in records]


def alerts(path: LocalPath) -> list[Outgoing]:
    return [message for message in path.outbox.messages if message.topic == "risk-alerts"]


def trace_of(message: Outgoing) -> str | None:
    found = dict(message.headers).get("traceparent")
    return None if found is None else found.decode()


async def test_a_chunk_is_a_span_with_its_stages_and_links(
    engine: Engine, exporter: InMemorySpanExporter
) -> None:
    records = worsening("ill", 0, 12)

    await LocalPath(engine).process(with_trace(records))

    found = spans(exporter)
    (chunk,) = [span for span in found if span.name == "process vitals"]
    assert chunk.attributes is not None
    assert chunk.attributes["messaging.batch.message_count"] == len(records)
    assert chunk.attributes["messaging.destination.partition.id"] == "3"
    assert {f"{link.context.trace_id:032x}" for link in chunk.links} == {TRACE}
    stages = {span.name for span in found if span.parent and span.parent.span_id == chunk.context.span_id}
    assert {"decode", "apply", "news2", "infer", "decide", "explain", "write", "publish"} <= stages


async def test_an_alert_goes_on_with_its_record_s_trace(
    engine: Engine, exporter: InMemorySpanExporter
) -> None:
    path = LocalPath(engine)

    await path.process(with_trace(worsening("ill", 0, 12)))

    found = {span.context.span_id: span for span in spans(exporter)}
    assert alerts(path)
    for message in alerts(path):
        version, trace, span, flags = (trace_of(message) or "").split("-")
        assert (version, trace, flags) == ("00", TRACE, "01")
        alert = found[int(span, 16)]
        assert alert.parent is not None
        assert f"{alert.parent.span_id:016x}" == SPAN
    assert all(trace_of(m) is None for m in path.outbox.messages if m.topic == "risk-scores")


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"nonsense",
        PARENT + b"-more",
        PARENT.upper(),
        b"ff" + PARENT[2:],
        f"00-{'0' * 32}-{SPAN}-01".encode(),
        f"00-{TRACE}-{'0' * 16}-01".encode(),
        b"\xff\x00" * 30,
    ],
)
async def test_a_malformed_header_is_ignored(
    header: bytes, engine: Engine, exporter: InMemorySpanExporter
) -> None:
    path = LocalPath(engine)

    fates = await path.process(with_trace(worsening("ill", 0, 12), header))

    assert "dead_lettered" not in fates
    assert all(not span.links for span in spans(exporter) if span.name == "process vitals")
    assert all(TRACE not in (trace_of(message) or "") for message in alerts(path))


async def test_a_record_whose_trace_is_not_sampled_is_not_traced(
    engine: Engine, exporter: InMemorySpanExporter
) -> None:
    path = LocalPath(engine)

    await path.process(with_trace(worsening("ill", 0, 12), PARENT[:-1] + b"0"))

    assert {(trace_of(message) or "")[-2:] for message in alerts(path)} == {"00"}
    assert not [span for span in spans(exporter) if span.name.startswith("alert")]


async def test_the_values_are_the_same_bytes_with_and_without(engine: Engine) -> None:
    records = with_trace(worsening("ill", 0, 12))
    off, on = LocalPath(engine), LocalPath(engine)
    await off.process(records)
    tracing.start(ON, InMemorySpanExporter())
    try:
        await on.process(records)
    finally:
        tracing.stop()

    assert [m.value for m in on.outbox.messages] == [m.value for m in off.outbox.messages]
    assert all(trace_of(message) is None for message in off.outbox.messages)
    assert all(trace_of(message) is not None for message in alerts(on))


async def test_spans_name_no_patient(engine: Engine, exporter: InMemorySpanExporter) -> None:
    bad = [Record(100 + n, c.timestamp, c.key, c.value, c.headers) for n, c in enumerate(CASES)]

    await LocalPath(engine).process([*worsening(CANARY, 0, 12), *bad])

    found = spans(exporter)
    assert len(found) > 8
    assert MARK not in "".join(span.to_json() for span in found)


async def test_an_exception_s_text_stays_out_of_spans(engine: Engine, exporter: InMemorySpanExporter) -> None:
    path = LocalPath(engine)

    async def fail(messages: Sequence[Outgoing]) -> None:
        raise ValueError(CANARY)

    path.pipeline._publish = fail
    with pytest.raises(ValueError, match=CANARY):
        await path.process(worsening("ill", 0, 12))

    found = spans(exporter)
    assert {"publish", "process vitals"} & {span.name for span in found}
    assert MARK not in "".join(span.to_json() for span in found)


def test_while_off_nothing_of_it_is_imported() -> None:
    # Not worker.app: redis-py imports OpenTelemetry by itself where it is installed.
    code = (
        "import sys; from worker import config, pipeline, tracing, transport; tracing.start(config.load()); "
        "tracing.stop(); sys.exit('opentelemetry' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], env=_environment(), check=False).returncode == 0


def test_without_the_extra_the_start_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None; from worker import config, tracing\n"
        "try: tracing.start(config.load(traces='otlp'))\n"
        "except tracing.FatalError as error: sys.exit('riskstream[tracing]' not in str(error))\n"
        "sys.exit(2)"
    )
    assert subprocess.run([sys.executable, "-c", code], env=_environment(), check=False).returncode == 0


def _environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}


class Collector(HTTPServer):
    """Takes OTLP over HTTP and keeps the span names."""

    def __init__(self) -> None:
        self.names: list[str] = []
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
        for resource in request.resource_spans:
            self.server.names += [span.name for scope in resource.scope_spans for span in scope.spans]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


async def test_spans_reach_a_collector_over_http(engine: Engine) -> None:
    with Collector() as collector:
        serving = threading.Thread(target=collector.serve_forever, args=(0.05,))
        serving.start()
        endpoint = f"http://127.0.0.1:{collector.server_port}/v1/traces"
        tracing.start(config.load(traces="otlp", traces_endpoint=endpoint))
        try:
            await LocalPath(engine).process(worsening("ill", 0, 12))
        finally:
            tracing.stop()
            collector.shutdown()
            serving.join()

    assert {"process vitals", "infer", "publish", "alert risk-alerts"} <= set(collector.names)


async def test_a_dead_collector_is_counted_and_holds_nobody_up(engine: Engine) -> None:
    before = metrics.trace_spans.labels("failed")._value.get()
    endpoint = f"http://127.0.0.1:{free_port()}/v1/traces"
    tracing.start(config.load(traces="otlp"), OTLPSpanExporter(endpoint=endpoint, timeout=0.3))
    await LocalPath(engine).process(worsening("ill", 0, 12))

    started = time.perf_counter()
    tracing.stop()

    assert time.perf_counter() - started < 2 * tracing.EXPORT_S
    assert metrics.trace_spans.labels("failed")._value.get() > before


class Stuck(SpanExporter):
    """Comes back only when told to."""

    def __init__(self) -> None:
        self.release = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.release.wait()
        return SpanExportResult.SUCCESS


async def test_what_a_slow_collector_cannot_take_is_dropped_and_counted(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "QUEUE", 4)
    before, exporter = metrics.trace_spans.labels("dropped")._value.get(), Stuck()
    tracing.start(ON, exporter)

    path = LocalPath(engine)
    await path.process(worsening("ill", 0, 12), chunk=4)
    exporter.release.set()
    tracing.stop()

    assert alerts(path)
    assert metrics.trace_spans.labels("dropped")._value.get() > before
