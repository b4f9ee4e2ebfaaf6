"""Sets structlog up for a process. Events are `noun.past_verb`; each request and attempt has one canonical line."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import orjson
import structlog

from engine.settings import Settings
from engine.telemetry.redaction import Event, redact

LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
_lines: _Lines | None = None
_about: dict[str, Any] = {}


def configure(settings: Settings, role: str, *, to: Any = None) -> None:
    """Log to standard error: for people on a terminal, else as JSON lines. OUTRIDER_LOG_FORMAT takes precedence.

    A child logs `to` its worker instead, in the format that `format_of` has found there.
    """
    form = format_of(settings)
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    if form == "json":
        global _lines
        # Past the buffer: a child that is forked while its lines are written would write them again.
        lines = _lines = _Lines(to or getattr(sys.stderr.buffer, "raw", sys.stderr.buffer))
        structlog.configure(
            processors=[_Line(role)],
            wrapper_class=_direct(level),
            logger_factory=lambda *_: lines,
            cache_logger_on_first_use=True,
        )
    else:
        structlog.configure(
            processors=[
                _Named(role),
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                # Before the redaction. The console's own tracebacks would show local variables.
                structlog.processors.format_exc_info,
                redact,
                structlog.dev.ConsoleRenderer(colors=to is None and sys.stderr.isatty()),
            ],
            wrapper_class=structlog.make_filtering_bound_logger(level),
            logger_factory=lambda *_: _Printed(_Texts(to) if to else sys.stderr),
            cache_logger_on_first_use=True,
        )
    _adopt_foreign(level, settings.pipelines)
    # gRPC's core prints lines of its own to standard error. What matters in them is in the errors of the calls, too.
    # The core reads this once, when it is imported: that comes later, in the processes that need it.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def format_of(settings: Settings) -> str:
    return settings.log_format or ("console" if sys.stderr.isatty() else "json")


def pass_on(lines: bytes) -> None:
    """Write finished lines of a child to this process's log, after those that wait."""
    if _lines is not None:
        _lines.warning(lines.rstrip(b"\n"))
    else:
        _Printed(sys.stderr).write(lines.decode(errors="replace"))


def about(**fields: Any) -> None:
    """Add `fields` alone to each line from now on, whoever logs it. For a process that does one thing at a time."""
    global _about
    _about = fields


def forked() -> None:
    """In a forked child: leave to the parent the lines that wait, and the lock that one of its threads may hold."""
    if _lines is not None:
        _lines.forget()


def _direct(level: int) -> type[structlog.typing.FilteringBoundLogger]:
    """structlog's filtering logger with a shorter way from a call to its line: the layers between cost half of it."""

    def method(name: str) -> Callable[..., None]:
        def write(self: Any, event: str, **fields: Any) -> None:
            line: Any = {**self._context, **fields, "event": event}
            try:
                for process in self._processors:
                    line = process(self._logger, name, line)
            except structlog.DropEvent:
                # Raised by processors that capture events.
                return
            getattr(self._logger, name)(line)

        return write

    methods = {name: method(name) for name, number in LEVELS.items() if number >= level}
    return type("Direct", (structlog.make_filtering_bound_logger(level),), methods)


class _Named:
    """Adds the process's role to an event. A context variable would be unknown to other threads."""

    def __init__(self, role: str) -> None:
        self._role = role

    def __call__(self, _logger: Any, _method: str, event: Event) -> Event:
        event.setdefault("role", self._role)
        for name, value in _about.items():
            event.setdefault(name, value)
        return event


class _Line(_Named):
    """Renders an event as JSON. One processor does all, because separate ones cost a quarter of a no-op job."""

    def __call__(self, logger: Any, method: str, event: Event) -> Any:
        if "exc_info" in event:
            event = structlog.processors.format_exc_info(logger, method, event)  # before the redaction
        redact(logger, method, event)
        super().__call__(logger, method, event)
        event["level"] = method
        event["timestamp"] = datetime.now(UTC)
        return _dumps(event)


class _Foreign(logging.Handler):
    """Passes on the records of libraries that log through the standard library."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger()
        # structlog knows the five standard levels only.
        level = record.levelno // 10 * 10
        try:
            log.log(
                level,
                "library.logged",
                logger=record.name,
                message=record.getMessage(),
                exc_info=record.exc_info,
            )
        except Exception:  # noqa: BLE001 - a record that cannot be formatted is its library's fault
            self.handleError(record)


class _Sink:
    """A stream whose reader may go away. Text logged after that is lost, and the caller goes on."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: Any) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            # The text is lost, as said above. `suppress` would cost as much as the write.
            pass

    def flush(self) -> None: ...


class _Texts:
    """A stream of text over one of bytes."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        self._stream.write(text.encode(errors="replace"))

    def flush(self) -> None: ...


class _Printed(_Sink):
    """Takes texts for a terminal."""

    def msg(self, text: str) -> None:
        self.write(text + "\n")

    debug = info = warning = error = critical = msg


class _Lines(_Sink):
    """Takes finished lines. The lines of one turn of the event loop are one write at its end; a warning does not wait.

    A line of another thread is written at once, together with the waiting lines: the loop may never turn again.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._waiting: deque[bytes] = deque()
        self._writing = threading.Lock()

    def forget(self) -> None:
        self._waiting.clear()
        self._writing = threading.Lock()

    def debug(self, line: bytes) -> None:
        self._waiting.append(line)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._written()
            return
        if len(self._waiting) == 1:
            loop.call_soon(self._written)

    info = debug

    def warning(self, line: bytes) -> None:
        self._waiting.append(line)
        self._written()

    error = critical = warning

    def write(self, lines: bytes) -> None:
        try:
            while lines:
                taken = self._stream.write(lines)
                if taken is None:  # a full pipe that does not block: the rest is lost
                    return
                lines = lines[taken:]
        except (OSError, ValueError):
            # The reader has gone, and the rest is lost.
            pass

    def _written(self) -> None:
        with self._writing:
            lines = []
            # Checked again after each line: no other call writes a line that comes meanwhile.
            while self._waiting:
                lines.append(self._waiting.popleft())
            if lines:
                self.write(b"\n".join(lines) + b"\n")


def _adopt_foreign(level: int, pipelines: Sequence[str]) -> None:
    """Log what libraries log from warnings on, and what the packages of the modules `pipelines` log from `level` on."""
    root = logging.getLogger()
    root.handlers = [_Foreign()]
    root.setLevel(max(level, logging.WARNING))
    for module in pipelines:
        logging.getLogger(module.partition(".")[0]).setLevel(level)
    # It logs a traceback for each call that has no credentials, and the error of the call says the same.
    logging.getLogger("grpc._plugin_wrapping").setLevel(logging.CRITICAL)


def _dumps(event: Event) -> bytes:
    try:
        return orjson.dumps(event, default=str, option=orjson.OPT_UTC_Z)
    except TypeError:
        # Perhaps a key is not a string. To allow such keys at once would slow down every line.
        pass
    try:
        return orjson.dumps(event, default=str, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_UTC_Z)
    except (TypeError, ValueError):
        # A lone surrogate, or an integer beyond 64 bits.
        return json.dumps({name: _plain(value) for name, value in event.items()}, default=repr).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return str(value) if isinstance(value, UUID) else value
