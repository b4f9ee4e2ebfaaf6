"""Spans by OpenTelemetry, sent by OTLP over HTTP. OTEL_* variables set sampler, limits, batches and collector.

Imported only if `engine.telemetry.tracing` finds that the environment asks for spans.
"""

from __future__ import annotations

import contextvars
import logging
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextvars import Token
from typing import Final, Self

import structlog
from opentelemetry import trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from engine import version
from engine.telemetry import spans
from engine.telemetry.spans import Value
from engine.telemetry.traceparent import kept

FLUSH_SECONDS: Final = 2.0
"""How long the end of the process waits for the last spans to be sent."""
CHATTY: Final = ("opentelemetry.exporter", "opentelemetry.sdk._shared_internal", "opentelemetry.util.re")
"""Loggers that report each failed request and each full queue, and quote headers that they cannot read."""


class Span(spans.Span):
    def __init__(self, span: trace.Span) -> None:
        ids = span.get_span_context()
        self.traceparent = f"00-{ids.trace_id:032x}-{ids.span_id:016x}-{ids.trace_flags & 1:02x}"
        self._span = span
        self._token: Token[Context] | None = None

    def context(self) -> contextvars.Context:
        context = contextvars.copy_context()
        context.run(attach, trace.set_span_in_context(self._span))
        return context

    def note(self, name: str, value: Value) -> None:
        self._span.set_attribute(name, value)

    def fail(self, error: str) -> None:
        kind, _, message = error.partition(": ")
        self._span.set_attribute("error.type", kind)
        self._span.set_status(Status(StatusCode.ERROR, message or None))

    def end(self) -> None:
        self._span.end()

    def __enter__(self) -> Self:
        self._token = attach(trace.set_span_in_context(self._span))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._token is not None:
            detach(self._token)
        if kind is not None:
            self.fail(kind.__name__)
        self.end()


class Spans:
    """Creates the spans of this process."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("outrider", version.installed())

    def start(
        self,
        name: str,
        kind: str,
        attributes: Mapping[str, Value],
        origins: Iterable[str | None] | None = None,
        began: int | None = None,
    ) -> spans.Span:
        parent: Context | None = None
        links: list[Link] = []
        if origins is not None:
            # Not the current context: one of the batch's items started the task that writes the batch.
            parent = Context()
            contexts = [known for origin in dict.fromkeys(origins) if (known := _remote(origin))]
            sampled = [context for context in contexts if context.trace_flags.sampled]
            # If no origin is sampled, the span must not be sampled either, so it becomes the child of an origin.
            if len(contexts) == 1 or (contexts and not sampled):
                parent = trace.set_span_in_context(NonRecordingSpan(contexts[0]), parent)
            else:
                links = [Link(context) for context in sampled]
        span_kind = SpanKind[kind.upper()]
        return Span(self._tracer.start_span(name, parent, span_kind, attributes, links, began))

    def close(self) -> None:
        # In a thread, because no version of the SDK bounds all of its waits.
        last = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        last.start()
        last.join(FLUSH_SECONDS)
        if last.is_alive():
            structlog.get_logger().warning("traces.lost", error=f"not sent within {FLUSH_SECONDS:g} s")


class Heard(logging.Handler):
    """Keeps the latest message that is logged, and passes nothing on."""

    latest = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.latest = record.getMessage()


class Quiet(SpanExporter):
    """An exporter that logs the first failure, and the first success after failures."""

    def __init__(self, exporter: SpanExporter, role: str) -> None:
        self._exporter = exporter
        self._owner = os.getpid()
        self._parents: SpanExporter | None = None
        # The exporter logs from a thread that knows no role.
        self._log = structlog.get_logger().bind(role=role)
        self._failing = False
        self._heard = Heard()
        for name in CHATTY:
            logger = logging.getLogger(name)
            logger.handlers, logger.propagate = [self._heard], False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if os.getpid() != self._owner:
            # A forked child shares the connection of its parent's exporter, so it neither uses nor closes that.
            self._parents, self._exporter = self._exporter, OTLPSpanExporter()
            self._owner = os.getpid()
        result = self._exporter.export(spans)
        failing = result is not SpanExportResult.SUCCESS
        if failing and not self._failing:
            self._log.warning("traces.lost", spans=len(spans), error=self._heard.latest)
        elif self._failing and not failing:
            self._log.info("traces.found", spans=len(spans))
        self._failing = failing
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return bool(self._exporter.force_flush(timeout_millis))


def open_exporter(role: str) -> Spans:
    """Spans for the collector that the environment names. Pipelines find the same provider as the global one."""
    provider = TracerProvider(resource=_resource(role), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(Quiet(OTLPSpanExporter(), role)))
    trace.set_tracer_provider(provider)
    return Spans(provider)


def _resource(role: str) -> Resource:
    """The service's attributes from the environment, with our own name if the environment gives none."""
    own = {
        "service.namespace": "outrider",
        "service.name": f"outrider-{role}",
        "service.version": version.installed(),
    }
    said = Resource.create()
    named = {
        key: value for key, value in said.attributes.items() if not str(value).startswith("unknown_service")
    }
    return Resource(own).merge(Resource(named, said.schema_url))


def _remote(traceparent: str | None) -> SpanContext | None:
    """The span context of a job's traceparent, or None."""
    # A relay passes the text on as it stands in the database.
    traceparent = kept(traceparent)
    if traceparent is None:
        return None
    trace_id, span_id, flags = traceparent[3:35], traceparent[36:52], traceparent[53:55]
    return SpanContext(
        int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16))
    )
