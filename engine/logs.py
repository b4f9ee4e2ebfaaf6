"""structlog, set up once for a process: events are `noun.past_verb`, one canonical line a request and an attempt."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from functools import cache
from typing import Any, Final
from uuid import UUID

import orjson
import structlog

from engine.settings import Settings

SECRET: Final = re.compile(r"(?i)(authorization|password|secret|token|api_?key|database_url)")
CREDENTIALS: Final = re.compile(r"(?i)(\b\w+://[^\s:/@]*:)[^\s@]*@|(bearer\s+)[\w.~+/=-]+")
HIDDEN: Final = "[redacted]"

Event = MutableMapping[str, Any]


def configure(settings: Settings, role: str) -> None:
    """Log to standard error: for people on a terminal, else JSON lines (OUTRIDER_LOG_FORMAT decides if set)."""
    form = settings.log_format or ("console" if sys.stderr.isatty() else "json")
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,  # before the redaction, and without the locals that consoles show
        redact,
    ]
    sink: Any = _Sink(sys.stderr.buffer if form == "json" else sys.stderr)
    if form == "json":
        factory: Any = structlog.BytesLoggerFactory(sink)
        rendering: list[structlog.typing.Processor] = [
            structlog.processors.JSONRenderer(serializer=_dumps),
        ]
    else:
        factory = structlog.PrintLoggerFactory(sink)
        rendering = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    structlog.configure(
        processors=[*shared, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=factory,
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(role=role)
    _adopt_foreign(level)


def redact(_logger: Any, _method: str, event: Event) -> Event:
    """Hide fields that are named like secrets, and credentials inside text; write ids as text."""
    for name, value in event.items():
        if _secret(name):
            event[name] = HIDDEN
        elif isinstance(value, str):
            if "://" in value or "earer" in value.lower():
                event[name] = CREDENTIALS.sub(rf"\1\2{HIDDEN}", value)
        elif isinstance(value, UUID):
            event[name] = str(value)
    return event


@cache  # finite: the names that events are logged with
def _secret(name: str) -> bool:
    return SECRET.search(name) is not None


class _Foreign(logging.Handler):
    """Carries the records of libraries that log through the standard library."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger()
        level = record.levelno // 10 * 10  # structlog knows the five standard ones
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
    """A stream whose reader may go away: what is logged then is lost, and whoever logs goes on."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: Any) -> None:
        with suppress(OSError, ValueError):
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()


def _adopt_foreign(level: int) -> None:
    root = logging.getLogger()
    root.handlers = [_Foreign()]
    root.setLevel(max(level, logging.WARNING))


def _dumps(event: Any, **_: Any) -> bytes:
    try:
        return orjson.dumps(event, default=str, option=orjson.OPT_NON_STR_KEYS)
    except (TypeError, ValueError):  # a lone surrogate, an integer beyond 64 bits
        return json.dumps(event, default=repr).encode()
