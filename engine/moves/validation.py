"""The check that enqueue makes: whether a job can be stored, by the table in engine/limits.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
from engine.text import json_bytes, json_faults, stored_size, text_fault

NUMBERS: Final[tuple[tuple[str, tuple[type, ...], str, Limit], ...]] = (
    ("priority", (int,), "not an integer", PRIORITY),
    ("max_attempts", (int,), "not an integer", MAX_ATTEMPTS),
    ("timeout_seconds", (int,), "not an integer", TIMEOUT_SECONDS),
    ("delay_seconds", (int, float), "not a number", DELAY_SECONDS),
)
"""The optional fields that are numbers, with their types: no subclass, for a boolean is an integer's."""


def check(new: NewJob) -> None:
    """Raise InvalidJob with every fault that breaks a limit or keeps `new` from being stored.

    A value of another type than its field's is such a fault, never a TypeError.
    """
    if problems := list(_problems(new)):
        raise InvalidJob(problems)


def _problems(new: NewJob) -> Iterator[Problem]:
    yield from _text_problems(
        "/content", new.content, lambda text: len(text.encode(errors="replace")), CONTENT
    )
    yield from _text_problems("/user_id", new.user_id, len, USER_ID)
    yield from _text_problems("/preset", new.preset, lambda text: text, PRESET)
    for name, types, fault, limit in NUMBERS:
        value = getattr(new, name)
        if value is None:
            continue
        if type(value) not in types:
            yield Problem(f"/{name}", fault)
        elif value not in limit:
            yield Problem(f"/{name}", limit.fault)
    if new.run_at is not None and new.run_at not in RUN_AT:
        yield Problem("/run_at", RUN_AT.fault)
    if new.id is not None and not (isinstance(new.id, UUID) and new.id.version == 7):
        yield Problem("/id", "not a version 7 UUID")
    if new.delay_seconds is not None and new.run_at is not None:
        yield Problem("/delay_seconds", "not together with run_at")
    if new.traceparent is not None and not _is_traceparent(new.traceparent):
        yield Problem("/traceparent", "not a W3C trace context")
    if isinstance(new.metadata, Mapping):
        yield from metadata_problems(dict(new.metadata), "/metadata")
    else:
        yield Problem("/metadata", "not an object")


def _text_problems(
    pointer: str, text: object, measure: Callable[[str], object], limit: Limit
) -> Iterator[Problem]:
    if not isinstance(text, str):
        yield Problem(pointer, "not text")
        return
    if measure(text) not in limit:
        yield Problem(pointer, limit.fault)
    if fault := text_fault(text):
        yield Problem(pointer, fault)


def _is_traceparent(given: object) -> bool:
    return isinstance(given, str) and accept([given]) == given


def metadata_problems(metadata: dict[str, Any], pointer: str) -> list[Problem]:
    """What keeps metadata from being stored: the size, or the first MAX_PROBLEMS faults that engine/text.py finds.

    The size is that of the JSON as the database writes it back, but for the spaces.
    """
    try:
        written = orjson.dumps(metadata)
    except orjson.JSONEncodeError as error:
        # A value that is not JSON, or a wide integer, which may be a double.
        if problems := list(json_faults(metadata, pointer)):
            return problems
        try:
            written = json_bytes(metadata)
        except orjson.JSONEncodeError:
            return [Problem(pointer, f"not JSON: {error}")]
    if stored_size(written) not in METADATA:
        return [Problem(pointer, METADATA.fault)]
    return list(json_faults(metadata, pointer))
