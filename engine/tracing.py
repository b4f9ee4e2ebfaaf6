"""Traces: the W3C context that travels with a job, and the spans of its way, each with its name and attributes.

Spans follow OpenTelemetry's conventions for HTTP and messaging; `outrider` is the messaging system whose destinations
are presets. They are made by engine.otel, which is imported only where OTEL_* variables ask for it: else every span is
one object that does nothing. A context's `tracestate` is not kept: the standard lets it be dropped.
"""

from __future__ import annotations

import contextvars
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Final, Protocol, Self

import structlog

if TYPE_CHECKING:
    from aiohttp import web

    from engine.model import Attempt

TRACEPARENT: Final = re.compile(
    r"(?!ff)([0-9a-f]{2})-((?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16})-([0-9a-f]{2})(-.*)?"
)
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})

Value = str | int | float | bool


class Span:
    """A piece of work that is traced, until `end` or the end of a `with` block. This one is of work that is not."""

    traceparent: str | None = None

    def context(self) -> contextvars.Context | None:
        """Where the span is the current one, for what runs as a task or in a thread of its own."""
        return None

    def note(self, name: str, value: Value) -> None:
        """Add an attribute."""

    def fail(self, error: str) -> None:
        """Say that the work failed: an error's type, perhaps followed by ": " and its message."""

    def end(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None: ...


OFF: Final = Span()


class Start(Protocol):
    def __call__(
        self,
        name: str,
        kind: str,
        attributes: Mapping[str, Value],
        origins: Iterable[str | None] | None = None,
        began: int | None = None,
    ) -> Span:
        """A span that has begun now, or at `began` (nanoseconds since 1970).

        It belongs to the current span; or, with `origins`, to the only context among them. Several are linked.
        """


class Exporting(Protocol):
    @property
    def start(self) -> Start: ...

    def close(self) -> None:
        """Send what is left, within a bound."""


_start: Start | None = None


def accept(given: Sequence[str]) -> str | None:
    """The context in the `traceparent` headers of a request, in version 00; None unless there is one that is valid."""
    match = TRACEPARENT.fullmatch(given[0]) if len(given) == 1 else None
    if match is None:
        return None
    version, ids, flags, rest = match.groups()
    if version == "00":
        return None if rest else given[0]
    return f"00-{ids}-{int(flags, 16) & 1:02x}"  # all that this version knows of a later one


def kept(context: str | None) -> str | None:
    """The context that was kept with a job: SQL may have written anything there, and that is none."""
    return None if context is None or not TRACEPARENT.fullmatch(context) else context


def ids(context: str | None, span: Span = OFF) -> dict[str, str]:
    """For a log line: the span and its trace, or the trace of `context` where nothing is exported."""
    if own := span.traceparent:
        return {"trace_id": own[3:35], "span_id": own[36:52]}
    return {"trace_id": context[3:35]} if context else {}


def request(asked: web.BaseRequest, route: str | None, came: str | None) -> Span:
    """A request, until its answer; `came` is the caller's context."""
    if _start is None:
        return OFF
    method = asked.method if asked.method in METHODS else "HTTP"
    attributes = {
        "http.request.method": asked.method if method == asked.method else "_OTHER",
        "url.scheme": asked.scheme,
        "url.path": asked.path,
    }
    if route is None:
        return _start(method, "server", attributes, [came])
    return _start(f"{method} {route}", "server", attributes | {"http.route": route}, [came])


def answered(span: Span, status: int) -> None:
    span.note("http.response.status_code", status)
    if status >= 500:
        span.fail(str(status))


def enqueue(jobs: int) -> Span:
    """From a submission to its commit, within its request."""
    if _start is None:
        return OFF
    return _start("enqueue", "producer", _messaging("enqueue", "send", jobs))


def publish(topic: str, contexts: Iterable[str | None], messages: int) -> Span:
    """One publish request."""
    if _start is None:
        return OFF
    attributes = _messaging("publish", "send", messages) | {
        "messaging.system": "gcp_pubsub",
        "messaging.destination.name": topic,
    }
    return _start(f"publish {topic}", "client", attributes, contexts)


def claimed(began: int, attempts: Sequence[Attempt]) -> None:
    """A claim that is over, and has found some: an idle worker's leave no trace."""
    if _start is not None and attempts:
        contexts = (attempt.job.traceparent for attempt in attempts)
        _start("claim", "client", _messaging("claim", "receive", len(attempts)), contexts, began).end()


def attempt(claimed: Attempt) -> Span:
    """An attempt, from its start until its outcome is recorded."""
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
    """The end of an attempt."""
    if span is OFF:
        return
    span.note("outrider.outcome", outcome)
    if error is not None:
        span.fail(error)
    span.end()


def step(name: str) -> Span:
    """A part of what runs now."""
    return OFF if _start is None else _start(name, "internal", {})


def record(contexts: Iterable[str | None], outcomes: int) -> Span:
    """The write of outcomes of attempts, whose contexts they are."""
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
    """Whether OpenTelemetry's variables name somewhere to send spans to."""
    said = {name: os.environ.get(f"OTEL_{name}", "").strip() for name in ("SDK_DISABLED", "TRACES_EXPORTER")}
    if said["SDK_DISABLED"].lower() == "true":
        return False
    if said["TRACES_EXPORTER"]:
        return "otlp" in (name.strip() for name in said["TRACES_EXPORTER"].split(","))
    endpoints = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    return any(os.environ.get(name, "").strip() for name in endpoints)


@contextmanager
def exporting(role: str) -> Iterator[None]:
    """Export the spans of this process by OTLP, where that is asked for and installed; at the end, what is left."""
    if not asked_for():
        yield
        return
    try:
        exporter: Exporting = import_module("engine.otel").open_exporter(role)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with it, jobs can run without traces
        mend = (
            "pip install 'outrider[otel]'" if isinstance(error, ImportError) else "see the OTEL_* variables"
        )
        structlog.get_logger().warning("traces.off", error=f"{type(error).__name__}: {error}", mend=mend)
        yield
        return
    with exporting_by(exporter):
        yield


@contextmanager
def exporting_by(exporter: Exporting) -> Iterator[None]:
    """Make spans by `exporter`, and close it."""
    global _start
    _start = exporter.start
    try:
        yield
    finally:
        _start = None
        exporter.close()
