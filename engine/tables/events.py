"""The outbox_events table: result and dead-letter messages, written with the result and deleted once published.

`topic` is the kind of an event, not the name of a Pub/Sub topic, so that renaming a topic keeps its events.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, Literal, LiteralString, NamedTuple

from psycopg import AsyncConnection
from psycopg.types.json import Jsonb

from engine.pubsub.messages import Message
from engine.storage.literals import array, bare_array
from engine.storage.statements import fetchall, timed

Topic = Literal["results", "dead-letters"]
TOPICS: Final[tuple[Topic, ...]] = ("results", "dead-letters")

MAX_BYTES: Final = 10 * 1024 * 1024
"""A payload that is larger is larger than what Pub/Sub takes by any reading of its limit of 10 MB."""

# A reader's gRPC refuses what is larger than 4 MiB unless it is told otherwise, and a message travels in an envelope
# with its attributes. So a message has at most 3.5 MiB: a larger output is replaced by a link. The other members have
# 64 KiB of that; an error has at most 2000 characters, an owner 255.
_LARGE: LiteralString = "output.bytes > 3670016 - 65536"
_RESULT: LiteralString = """json_build_object(
                   'job_id', e.job_id, 'user_id', e.user_id, 'preset', j.preset, 'status', lower(e.state::text),
                   'output', CASE WHEN {large} THEN NULL ELSE e.output END, 'error', e.error, 'attempt', e.attempt,
                   'execution_time_ms', round(extract(epoch FROM e.ran) * 1000),
                   'completed_at', to_char(e.finished_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
                   'schema_version', 1"""

IS_SET_BACK: LiteralString = "(failures > 0 OR (reason IS NOT NULL AND publish_until IS NOT NULL))"
"""Whether an event has failed alone and waits for its next try. Without failures, others failed as well."""

# The last part of the moves that write a result. It follows a CTE `ended` (job_id, user_id, attempt, version, state,
# output json, error jsonb, reason, ran interval, finished_at). Without `publish_results` the scan of `ended` never
# starts.
RESULT_EVENTS: LiteralString = """
, events AS (
    INSERT INTO outbox_events (topic, payload, attributes)
    SELECT message.topic, convert_to(message.body::text, 'UTF8'),
           jsonb_strip_nulls(jsonb_build_object(
               'message_id', concat(e.job_id, ':', e.version, ':', message.type), 'type', message.type,
               'job_id', e.job_id, 'schema_version', '1', 'traceparent', j.traceparent))
    FROM ended e
    JOIN jobs j ON j.id = e.job_id
    CROSS JOIN LATERAL (SELECT octet_length(e.output::text) AS bytes) AS output
    CROSS JOIN LATERAL (
        SELECT 'results', 'ResultMessage',
               CASE WHEN {large}
                    THEN {result}, 'output_bytes', output.bytes,
                   'links', json_build_object('self', '/pipeline/job/' || e.job_id))
                    ELSE {result}) END
        UNION ALL
        SELECT 'dead-letters', 'DeadLetterMessage', json_build_object(
                   'job_id', e.job_id, 'user_id', e.user_id, 'preset', j.preset, 'reason', e.reason,
                   'error', e.error, 'attempts', e.attempt,
                   'failed_at', to_char(e.finished_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
                   'raw', NULL, 'schema_version', 1)
        WHERE e.state = 'FAILED'
    ) AS message(topic, type, body)
    WHERE %(publish_results)s
)
""".replace("{result}", _RESULT).replace("{large}", _LARGE)

# Reserves as many events as fit into one request, but at least one. One that has failed alone goes alone, so that the
# others do not fail with it. The index finds them in the order of ids, above `low`: otherwise dead entries that a held
# snapshot keeps would be read again and again. Rows are compared, because `topic = … AND id > …` lets the planner walk
# the primary key, past every event of the other topic and every quarantined event.
RESERVE: LiteralString = """
WITH due AS MATERIALIZED (
    SELECT id, octet_length(payload) + octet_length(attributes::text) AS bytes, failures
    FROM outbox_events
    WHERE (topic, id) > (%(topic)s::text, %(low)s::bigint) AND (topic, id) <= (%(topic)s::text, 9223372036854775807)
      AND quarantined_at IS NULL AND (publish_until IS NULL OR publish_until < clock_timestamp())
      AND octet_length(payload) <= %(max_row_bytes)s::integer
    ORDER BY topic, id
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
), fitting AS (
    SELECT id, total
    FROM (SELECT id, bytes, sum(bytes) OVER (ORDER BY id) AS total, max(failures) OVER (ORDER BY id) AS failures
          FROM due) s
    WHERE total <= %(max_bytes)s AND failures = 0 OR total = bytes
)
UPDATE outbox_events
SET publish_until = clock_timestamp()
        + (%(seconds)s + (SELECT max(total) FROM fitting) / %(bytes_per_second)s::float8) * interval '1 second'
WHERE id = ANY (ARRAY(SELECT id FROM fitting))
RETURNING id, CASE WHEN octet_length(payload) <= %(most)s::integer THEN payload END, attributes, failures,
          publish_until, octet_length(payload)
"""

# A fact about the message, whoever has reserved the row meanwhile.
PUBLISHED: LiteralString = "DELETE FROM outbox_events WHERE id = ANY (%s::bigint[])"

# What a relay decides about rows that were not published holds for its own reservation alone: after the end of that,
# another relay may have the row on its way.
RELEASE: LiteralString = """
UPDATE outbox_events e SET publish_until = NULL
FROM unnest(%s::bigint[], %s::timestamptz[]) AS x(id, publish_until)
WHERE e.id = x.id AND e.publish_until = x.publish_until AND e.quarantined_at IS NULL
"""

SET_BACK: LiteralString = """
UPDATE outbox_events
SET publish_until = clock_timestamp() + %s * interval '1 second', failures = %s, reason = %s
WHERE id = %s AND publish_until = %s AND quarantined_at IS NULL
"""

QUARANTINE: LiteralString = """
UPDATE outbox_events SET quarantined_at = clock_timestamp(), reason = %s, publish_until = NULL
WHERE id = %s AND publish_until = %s AND quarantined_at IS NULL
"""

WRITE: LiteralString = "INSERT INTO outbox_events (topic, payload, attributes) VALUES (%s, %s, %s)"


class Event(NamedTuple):
    """An event that this process has reserved for publishing, until `until`.

    `failures` counts the tries that failed for this event alone. An event whose payload is larger than MAX_BYTES comes
    without its payload. `size` is the payload's length.
    """

    id: int
    topic: Topic
    message: Message
    failures: int
    until: datetime
    size: int

    @property
    def lane(self) -> Topic:
        return self.topic

    @property
    def position(self) -> int:
        return self.id

    @property
    def weight(self) -> int:
        return self.message.weight


@timed("reserve events")
async def reserve(
    conn: AsyncConnection[Any],
    topic: Topic,
    *,
    low: int,
    limit: int,
    max_bytes: int,
    seconds: float,
    max_row_bytes: int = 2**31 - 1,
    bytes_per_second: float = math.inf,
) -> list[Event]:
    """Reserve up to `limit` events with ids above `low`. Afterwards any relay may reserve them.

    The reservation lasts `seconds`, and as much longer as a line of `bytes_per_second` needs for all of them.
    """
    asked = {
        "topic": topic,
        "low": low,
        "limit": limit,
        "max_bytes": max_bytes,
        "max_row_bytes": max_row_bytes,
        "seconds": seconds,
        "bytes_per_second": bytes_per_second,
        "most": MAX_BYTES,
    }
    rows = await fetchall(conn, RESERVE, asked)
    return sorted(
        (
            Event(id_, topic, Message(bytes(payload or b""), attributes), failures, until, size)
            for id_, payload, attributes, failures, until, size in rows
        ),
        key=lambda event: event.id,
    )


@timed("delete published")
async def published(conn: AsyncConnection[Any], events: Sequence[Event]) -> None:
    """Delete published events. Another relay may have deleted some of them already."""
    await conn.execute(PUBLISHED, [bare_array(event.id for event in events)])


async def release(conn: AsyncConnection[Any], events: Sequence[Event]) -> None:
    """End the reservation of events that could not be published."""
    await conn.execute(
        RELEASE, [bare_array(event.id for event in events), array(event.until for event in events)]
    )


async def set_back(
    conn: AsyncConnection[Any], event: Event, *, seconds: float, failures: int, reason: str
) -> None:
    """Let an event wait for `seconds` before it is tried again, so that the others go first."""
    await conn.execute(SET_BACK, [seconds, failures, reason, event.id, event.until])


async def quarantine(conn: AsyncConnection[Any], event: Event, reason: str) -> bool:
    """Quarantine an event that the broker will never accept. The row stays for an operator to inspect.

    False if the reservation has ended, and the event is another relay's now.
    """
    cursor = await conn.execute(QUARANTINE, [reason, event.id, event.until])
    return cursor.rowcount == 1


async def write(conn: AsyncConnection[Any], topic: Topic, message: Message) -> None:
    """Write an event. A relay publishes the event once the caller's transaction has committed."""
    await conn.execute(WRITE, [topic, message.data, Jsonb(message.attributes)])
