"""The messages published through Pub/Sub: JSON in UTF-8, with attributes for subscribers that only route.

The statement that writes a result builds the job's result and dead-letter messages (engine/tables/events.py). This
module builds the others.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

import orjson

SCHEMA_VERSION: Final = 1
SCHEMA_VERSION_TEXT: Final = str(SCHEMA_VERSION)
JOB: Final = "JobMessage"
DEAD_LETTER: Final = "DeadLetterMessage"
UNDECODABLE: Final = "undecodable message"

ENCODING: Final = orjson.OPT_UTC_Z
NONE: Final[Mapping[str, str]] = {}

MAX_RAW_BYTES: Final = 2_621_440
"""In base64 3.3 MiB: with the other members, the message stays below the 3.5 MiB that every reader takes. Unless it is
told otherwise, gRPC refuses an answer of more than 4 MiB, and a message travels in one with its attributes."""
MAX_RAW_ATTRIBUTES: Final = 64 * 1024
"""Bytes as JSON. Pub/Sub allows 100 attributes of 1280 bytes each, and JSON may take six bytes for one."""
MAX_ERROR: Final = 2000
OVERHEAD_BYTES: Final = 32
"""Of each message or attribute, at most, in protobuf."""
WAKE_UP_BYTES: Final = 512
"""Of a wake-up with its attributes, about."""


class Message(NamedTuple):
    """One message to publish. The attribute `message_id` is the same each time the message is sent."""

    data: bytes
    attributes: Mapping[str, str]

    @property
    def weight(self) -> int:
        """The bytes that the message takes in a request, about.

        SQL may have written attributes that are no object of strings.
        """
        attributes = self.attributes.items() if isinstance(self.attributes, Mapping) else ()
        named = sum(len(name) + len(str(value)) + OVERHEAD_BYTES for name, value in attributes)
        return len(self.data) + named + OVERHEAD_BYTES


class WakeUp(NamedTuple):
    """The wake-up of a ready job. `(job_id, position, attempt)` names this turn of the job.

    `ready` is since when the job has been ready, on the monotonic clock. `until` is when the reservation ends, by the
    database's clock.
    """

    job_id: UUID
    position: int
    attempt: int
    user_id: str
    preset: str
    priority: int
    created_at: datetime
    traceparent: str | None
    ready: float = 0.0
    until: datetime | None = None

    @property
    def lane(self) -> tuple[str, int]:
        return self.preset, self.priority

    @property
    def weight(self) -> int:
        """As a message's, known before the message is made."""
        return WAKE_UP_BYTES

    @property
    def message(self) -> Message:
        """The message to publish. Its `attempt` is the number that the next attempt will have, for information only."""
        job_id = str(self.job_id)
        body = {
            "job_id": job_id,
            "user_id": self.user_id,
            "preset": self.preset,
            "attempt": self.attempt + 1,
            "created_at": self.created_at.astimezone(UTC),
            "schema_version": SCHEMA_VERSION,
        }
        attributes = _attributes(f"{job_id}:{self.position}", JOB, job_id, self.traceparent)
        return Message(orjson.dumps(body, option=ENCODING), attributes)


class Undecodable(ValueError):
    """The bytes are not a JobMessage."""


def job_id_of(data: bytes) -> UUID:
    """The id of the job that a JobMessage names. Workers read nothing else of the message. Raises Undecodable."""
    try:
        body = orjson.loads(data)
        return UUID(body["job_id"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Undecodable(f"{type(error).__name__}: {error}") from error


def undecodable(
    transport_id: str,
    data: bytes,
    error: Undecodable,
    failed_at: datetime,
    attributes: Mapping[str, str] = NONE,
) -> Message:
    """The dead letter of a message that could not be read. `transport_id` is the broker's id of that message.

    `raw` has its first MAX_RAW_BYTES; if there are more, `raw_bytes` and `raw_sha256` tell of all. `raw_attributes` has
    as many of its attributes as fit into MAX_RAW_ATTRIBUTES.
    """
    body: dict[str, Any] = {
        "job_id": None,
        "user_id": None,
        "preset": None,
        "reason": UNDECODABLE,
        "error": {"type": type(error).__name__, "message": str(error)[:MAX_ERROR], "attempt": 0},
        "attempts": 0,
        "failed_at": failed_at,
        "raw": base64.b64encode(data[:MAX_RAW_BYTES]).decode(),
        "schema_version": SCHEMA_VERSION,
    }
    if len(data) > MAX_RAW_BYTES:
        body |= {"raw_bytes": len(data), "raw_sha256": hashlib.sha256(data).hexdigest()}
    if attributes:
        body["raw_attributes"] = _fitting(attributes)
    named = _attributes(f"{transport_id}:{DEAD_LETTER}", DEAD_LETTER, "", None)
    return Message(orjson.dumps(body, option=ENCODING), named)


def _fitting(attributes: Mapping[str, str]) -> dict[str, str]:
    """The attributes in the order of their names, until the next one would not fit."""
    kept: dict[str, str] = {}
    left = MAX_RAW_ATTRIBUTES
    for name in sorted(attributes):
        left -= len(orjson.dumps({name: attributes[name]}))
        if left < 0:
            break
        kept[name] = attributes[name]
    return kept


def _attributes(message_id: str, kind: str, job_id: str, traceparent: str | None) -> dict[str, str]:
    attributes = {
        "message_id": message_id,
        "type": kind,
        "job_id": job_id,
        "schema_version": SCHEMA_VERSION_TEXT,
    }
    if traceparent:
        attributes["traceparent"] = traceparent
    return attributes
