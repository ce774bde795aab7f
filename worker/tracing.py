"""OpenTelemetry traces through Kafka headers; off unless `RISKSTREAM_TRACES` says otherwise. The SDK's home.

A chunk is one span, with a child for each stage of the path and links to the traces of its records: a batch
has no single parent. An alert is a span of its own in the trace of the record that it rests on, and its Kafka
headers carry that span on (W3C `traceparent`). Its value is the same bytes as without.

While off nothing of OpenTelemetry is imported and no header is written. No span holds an identifier, a value
or an exception's text; `tracestate` is other people's and is not passed on.
"""

import contextlib
import importlib.util
import queue
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from worker import metrics
from worker.config import Settings
from worker.decode import Record
from worker.errors import FatalError
from worker.partition import Place
from worker.publish import Headers, Outgoing

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Link, Span, SpanContext, Tracer

HEADER = "traceparent"

_TRACEPARENT = re.compile(rb"((?!ff)[0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")

LINKS = 128
"""Links of a chunk's span, at most; the SDK drops what is beyond it."""

QUEUE = 2048
"""Spans that wait for the collector; what comes when it is full is dropped and counted."""

BATCH = 256
"""Spans in one export."""

EXPORT_S = 3.0
"""How long the collector may take for one export, and the worker's end may wait for the last ones."""

OFF: contextlib.AbstractContextManager[None] = contextlib.nullcontext()


class _Chunk:
    """The open spans of a chunk: its own, and those of its alerts, which end once they are confirmed."""

    def __init__(self, span: "Span", began_ns: int) -> None:
        self.span = span
        self.began_ns = began_ns
        self.alerts: list[Span] = []


class _State:
    """What `start` has made; nothing of it while traces are off."""

    tracer: "Tracer | None" = None
    provider: Any = None


_state = _State()
_current: ContextVar[_Chunk | None] = ContextVar("chunk", default=None)


def installed() -> bool:
    """Whether the extra is there."""
    try:
        return importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ImportError:
        return False


def start(settings: Settings, exporter: "SpanExporter | None" = None) -> None:
    """Trace from now on, if the settings say so.

    Raises:
        FatalError: the extra is not installed.
    """
    if settings.traces == "off":
        return
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    except ImportError:
        raise FatalError(
            "RISKSTREAM_TRACES is otlp and OpenTelemetry is not installed: pip install 'riskstream[tracing]'"
        ) from None
    resource = Resource({"service.name": "riskstream", "service.instance.id": settings.instance})
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(settings.traces_ratio)),
        resource=resource,
        shutdown_on_exit=False,
    )
    provider.add_span_processor(_processor(exporter or _otlp(settings)))
    _state.provider, _state.tracer = provider, provider.get_tracer("riskstream")


def stop() -> None:
    """Trace no more; export what waits, within `EXPORT_S`."""
    provider, _state.provider, _state.tracer = _state.provider, None, None
    if provider is not None:
        provider.shutdown()


def _otlp(settings: Settings) -> "SpanExporter":
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(endpoint=settings.traces_endpoint, timeout=EXPORT_S)


def chunk(place: Place, records: Sequence[Record]) -> contextlib.AbstractContextManager[None]:
    """The span of a chunk, with links to its records' traces."""
    return OFF if _state.tracer is None else _chunk(_state.tracer, place, records)


def stage(name: str) -> contextlib.AbstractContextManager[Any]:
    """The span of a stage within a chunk that is traced."""
    if _state.tracer is None or _current.get() is None:
        return OFF
    return _state.tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False)


def alert(message: Outgoing, record: Record) -> Outgoing:
    """The alert with the trace of the record that it rests on in its headers."""
    tracer, within = _state.tracer, _current.get()
    if tracer is None or within is None:
        return message
    from opentelemetry import trace

    parent = _context_of(record)
    span = tracer.start_span(
        f"alert {message.topic}",
        context=None if parent is None else trace.set_span_in_context(trace.NonRecordingSpan(parent)),
        kind=trace.SpanKind.PRODUCER,
        attributes={
            "messaging.system": "kafka",
            "messaging.operation.type": "send",
            "messaging.destination.name": message.topic,
            "messaging.kafka.offset": record.offset,
        },
        links=[trace.Link(within.span.get_span_context())],
        start_time=within.began_ns,
    )
    within.alerts.append(span)
    return message._replace(headers=(*message.headers, (HEADER, _traceparent(span.get_span_context()))))


def sent(topic: str, headers: Headers) -> Headers:
    """The headers of a record that is sent, with a trace that begins there."""
    if _state.tracer is None:
        return headers
    from opentelemetry.trace import SpanKind

    attributes = {
        "messaging.system": "kafka",
        "messaging.operation.type": "send",
        "messaging.destination.name": topic,
    }
    span = _state.tracer.start_span(f"send {topic}", kind=SpanKind.PRODUCER, attributes=attributes)
    span.end()
    return (*headers, (HEADER, _traceparent(span.get_span_context())))


@contextlib.contextmanager
def _chunk(tracer: "Tracer", place: Place, records: Sequence[Record]) -> Iterator[None]:
    from opentelemetry.trace import SpanKind

    began_ns = time.time_ns()
    span_of = tracer.start_as_current_span(
        f"process {place.topic}",
        kind=SpanKind.CONSUMER,
        attributes={
            "messaging.system": "kafka",
            "messaging.operation.type": "process",
            "messaging.destination.name": place.topic,
            "messaging.destination.partition.id": str(place.partition),
            "messaging.batch.message_count": len(records),
            "messaging.kafka.offset": records[0].offset,
        },
        links=_links(records),
        start_time=began_ns,
        record_exception=False,
        set_status_on_exception=False,
    )
    with span_of as span:
        within = _Chunk(span, began_ns)
        token = _current.set(within)
        try:
            yield
        finally:
            _current.reset(token)
            for one in within.alerts:
                one.end()


def _links(records: Sequence[Record]) -> "list[Link]":
    from opentelemetry.trace import Link

    contexts = (context for record in records if (context := _context_of(record)) is not None)
    return [Link(context) for context, _ in zip(contexts, range(LINKS), strict=False)]


def _context_of(record: Record) -> "SpanContext | None":
    """What a record's `traceparent` names; None without one and with one that is malformed."""
    from opentelemetry.trace import SpanContext, TraceFlags

    value = next((content for name, content in record.headers if name == HEADER), None)
    found = None if not value else _TRACEPARENT.fullmatch(value)
    if found is None or (found[1] == b"00" and found[5]):
        return None
    trace_id, span_id, flags = (int(found[i], 16) for i in (2, 3, 4))
    context = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags & 1))
    return context if context.is_valid else None


def _traceparent(context: "SpanContext") -> bytes:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}".encode()


def _processor(exporter: "SpanExporter") -> Any:
    """Hands spans to the exporter in a thread of its own; never waits, never raises."""
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.sdk.trace.export import SpanExportResult

    class Processor(SpanProcessor):
        def __init__(self) -> None:
            self._queue: queue.Queue[ReadableSpan | None] = queue.Queue(QUEUE)
            self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
            self._thread.start()

        def on_end(self, span: "ReadableSpan") -> None:
            if not span.context.trace_flags.sampled:
                return
            try:
                self._queue.put_nowait(span)
            except queue.Full:
                metrics.trace_spans.labels("dropped").inc()

        def _run(self) -> None:
            while (span := self._queue.get()) is not None:
                spans = [span]
                ended = False
                while len(spans) < BATCH and not self._queue.empty():
                    following = self._queue.get()
                    ended = following is None
                    if following is None:
                        break
                    spans.append(following)
                self._export(spans)
                if ended:
                    break

        def _export(self, spans: "list[ReadableSpan]") -> None:
            try:
                well = exporter.export(spans) is SpanExportResult.SUCCESS
            except Exception:  # an exporter's fault must not end the thread that empties the queue
                well = False
            metrics.trace_spans.labels("exported" if well else "failed").inc(len(spans))

        def shutdown(self) -> None:
            with contextlib.suppress(queue.Full):
                self._queue.put(None, timeout=EXPORT_S / 2)
            self._thread.join(EXPORT_S)
            exporter.shutdown()

    return Processor()
