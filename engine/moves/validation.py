"""The check that enqueue makes: whether a job can be stored, by the table in engine/limits.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final
from uuid import UUID

import orjson

from engine.errors import InvalidJob, Problem
from engine.limits import (
    CONTENT,
    DELAY_SECONDS,
    MAX_ATTEMPTS,
    METADATA,
    PRESET,
    PRIORITY,
    RUN_AT,
    TIMEOUT_SECONDS,
    USER_ID,
    Limit,
)
from engine.model import NewJob
from engine.telemetry.traceparent import accept
from engine.text import json_faults, text_fault

INTEGERS: Final = frozenset({"/priority", "/max_attempts", "/timeout_seconds"})


def check(new: NewJob) -> None:
    """Raise InvalidJob with every fault that breaks a limit or keeps `new` from being stored."""
    if problems := list(_problems(new)):
        raise InvalidJob(problems)


def _problems(new: NewJob) -> Iterator[Problem]:
    size = len(new.content.encode(errors="replace"))
    limits: tuple[tuple[str, Any, Limit], ...] = (
        ("/content", size, CONTENT),
        ("/user_id", len(new.user_id), USER_ID),
        ("/preset", new.preset, PRESET),
        ("/priority", new.priority, PRIORITY),
        ("/max_attempts", new.max_attempts, MAX_ATTEMPTS),
        ("/timeout_seconds", new.timeout_seconds, TIMEOUT_SECONDS),
        ("/run_at", new.run_at, RUN_AT),
        ("/delay_seconds", new.delay_seconds, DELAY_SECONDS),
    )
    for pointer, value, limit in limits:
        if value is None:
            continue
        if pointer in INTEGERS and type(value) is not int:
            yield Problem(pointer, "not an integer")
        elif value not in limit:
            yield Problem(pointer, limit.fault)
    if new.id is not None and not (isinstance(new.id, UUID) and new.id.version == 7):
        yield Problem("/id", "not a version 7 UUID")
    if new.delay_seconds is not None and new.run_at is not None:
        yield Problem("/delay_seconds", "not together with run_at")
    if new.traceparent is not None and accept([new.traceparent]) != new.traceparent:
        yield Problem("/traceparent", "not a W3C trace context")
    for pointer, text in (("/content", new.content), ("/user_id", new.user_id)):
        if fault := text_fault(text):
            yield Problem(pointer, fault)
    yield from metadata_problems(dict(new.metadata), "/metadata")


def metadata_problems(metadata: dict[str, Any], pointer: str) -> list[Problem]:
    """What keeps metadata from being stored: the size, or the first MAX_PROBLEMS faults that engine/text.py finds."""
    try:
        size = len(orjson.dumps(metadata))
    except orjson.JSONEncodeError:
        # json_faults finds the cause below, be it a value or the nesting.
        size = 0
    if size not in METADATA:
        return [Problem(pointer, METADATA.fault)]
    return list(json_faults(metadata, pointer))
