"""The spans of a job's life, each with its name and attributes.

They follow OpenTelemetry's conventions for messaging: `outrider` is the messaging system, and presets are its
destinations. engine/telemetry/otel.py creates the spans, and is imported only if OTEL_* variables ask for spans:
otherwise every span is one object that does nothing. web/middleware.py creates the span of an HTTP request.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module

import structlog

from engine.model import Attempt
from engine.telemetry.spans import OFF, Exporting, Span, Start, Value

_start: Start | None = None


def enabled() -> bool:
    """Whether spans are exported."""
    return _start is not None


def start(name: str, kind: str, attributes: Mapping[str, Value], came: str | None) -> Span:
    """A span that belongs to the context `came`. The caller chooses name and attributes."""
    return OFF if _start is None else _start(name, kind, attributes, [came])


def enqueue(jobs: int) -> Span:
    """The span from a submission to its commit, within the request's span."""
    if _start is None:
        return OFF
    return _start("enqueue", "producer", _messaging("enqueue", "send", jobs))


def publish(topic: str, contexts: Iterable[str | None], messages: int) -> Span:
    """The span of one publish request."""
    if _start is None:
        return OFF
    attributes = _messaging("publish", "send", messages) | {
        "messaging.system": "gcp_pubsub",
        "messaging.destination.name": topic,
    }
    return _start(f"publish {topic}", "client", attributes, contexts)


def claimed(began: int, attempts: Sequence[Attempt]) -> None:
    """Record the span of a finished claim, from `began` in nanoseconds since 1970. An empty claim has no span."""
    if _start is not None and attempts:
        contexts = (attempt.job.traceparent for attempt in attempts)
        _start("claim", "client", _messaging("claim", "receive", len(attempts)), contexts, began).end()


def attempt(claimed: Attempt) -> Span:
    """The span of an attempt, from its start until its outcome is recorded."""
    if _start is None:
        return OFF
    job = claimed.job
    attributes = _messaging("attempt", "process") | {
        "messaging.destination.name": job.preset,
        "messaging.message.id": str(job.id),
        "outrider.attempt": claimed.number,
    }
    return _start(f"attempt {job.preset}", "consumer", attributes, [job.traceparent])


def ended(span: Span, outcome: str, error: str | None) -> None:
    """End the span of an attempt."""
    if span is OFF:
        return
    span.note("outrider.outcome", outcome)
    if error is not None:
        span.fail(error)
    span.end()


def step(name: str) -> Span:
    """A span within the current one."""
    return OFF if _start is None else _start(name, "internal", {})


def record(contexts: Iterable[str | None], outcomes: int) -> Span:
    """The span of a write of outcomes. `contexts` belong to their attempts."""
    if _start is None:
        return OFF
    return _start("record", "client", _messaging("record", "settle", outcomes), contexts)


def _messaging(operation: str, kind: str, messages: int | None = None) -> dict[str, Value]:
    attributes: dict[str, Value] = {
        "messaging.system": "outrider",
        "messaging.operation.name": operation,
        "messaging.operation.type": kind,
    }
    return attributes if messages is None else attributes | {"messaging.batch.message_count": messages}


def asked_for() -> bool:
    """Whether OpenTelemetry's variables name a destination for spans."""
    said = {name: os.environ.get(f"OTEL_{name}", "").strip() for name in ("SDK_DISABLED", "TRACES_EXPORTER")}
    if said["SDK_DISABLED"].lower() == "true":
        return False
    if said["TRACES_EXPORTER"]:
        return "otlp" in (name.strip() for name in said["TRACES_EXPORTER"].split(","))
    endpoints = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    return any(os.environ.get(name, "").strip() for name in endpoints)


@contextmanager
def exporting(role: str) -> Iterator[None]:
    """Export the spans of this process by OTLP, if configured and installed. The end sends the remaining spans."""
    if not asked_for():
        yield
        return
    try:
        exporter: Exporting = import_module("engine.telemetry.otel").open_exporter(role)
    except Exception as error:  # noqa: BLE001 - jobs can run without traces
        fix = (
            "pip install 'outrider[otel]'" if isinstance(error, ImportError) else "check the OTEL_* variables"
        )
        structlog.get_logger().warning("traces.off", error=f"{type(error).__name__}: {error}", fix=fix)
        yield
        return
    with exporting_by(exporter):
        yield


@contextmanager
def exporting_by(exporter: Exporting) -> Iterator[None]:
    """Create spans by `exporter` within the block, then close the exporter."""
    global _start
    _start = exporter.start
    try:
        yield
    finally:
        _start = None
        exporter.close()
