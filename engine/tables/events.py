"""The outbox_events table: result and dead-letter messages, written with the result and deleted once published.

`topic` is the kind of an event, not the name of a Pub/Sub topic, so that renaming a topic keeps its events.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, LiteralString, NamedTuple

from psycopg import AsyncConnection
from psycopg.types.json import Jsonb

from engine.pubsub.messages import Message
from engine.storage.literals import bare_array
from engine.storage.statements import fetchall, timed

Topic = Literal["results", "dead-letters"]
TOPICS: Final[tuple[Topic, ...]] = ("results", "dead-letters")

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
    CROSS JOIN LATERAL (
        SELECT 'results', 'ResultMessage', json_build_object(
                   'job_id', e.job_id, 'user_id', e.user_id, 'preset', j.preset, 'status', lower(e.state::text),
                   'output', e.output, 'error', e.error, 'attempt', e.attempt,
                   'execution_time_ms', round(extract(epoch FROM e.ran) * 1000),
                   'completed_at', to_char(e.finished_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
                   'schema_version', 1)
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
"""

# Reserves as many events as fit into one request, but at least one. The index finds them in the order of ids, above
# `low`: otherwise dead entries that a held snapshot keeps would be read again and again. Rows are compared, because
# `topic = … AND id > …` lets the planner walk the primary key, past every event of the other topic and every
# quarantined event.
RESERVE: LiteralString = """
WITH due AS MATERIALIZED (
    SELECT id, octet_length(payload) + octet_length(attributes::text) AS bytes
    FROM outbox_events
    WHERE (topic, id) > (%(topic)s::text, %(low)s::bigint) AND (topic, id) <= (%(topic)s::text, 9223372036854775807)
      AND quarantined_at IS NULL AND (publish_until IS NULL OR publish_until < clock_timestamp())
    ORDER BY topic, id
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
), fitting AS (
    SELECT id FROM (SELECT id, bytes, sum(bytes) OVER (ORDER BY id) AS total FROM due) s
    WHERE total <= %(max_bytes)s OR total = bytes
)
UPDATE outbox_events SET publish_until = clock_timestamp() + %(seconds)s * interval '1 second'
WHERE id = ANY (ARRAY(SELECT id FROM fitting))
RETURNING id, payload, attributes
"""

PUBLISHED: LiteralString = "DELETE FROM outbox_events WHERE id = ANY (%s::bigint[])"

RELEASE: LiteralString = """
UPDATE outbox_events SET publish_until = NULL WHERE id = ANY (%s::bigint[]) AND quarantined_at IS NULL
"""

QUARANTINE: LiteralString = """
UPDATE outbox_events SET quarantined_at = clock_timestamp(), reason = %s, publish_until = NULL WHERE id = %s
"""

WRITE: LiteralString = "INSERT INTO outbox_events (topic, payload, attributes) VALUES (%s, %s, %s)"


class Event(NamedTuple):
    """An event that this process has reserved for publishing."""

    id: int
    topic: Topic
    message: Message

    @property
    def lane(self) -> Topic:
        return self.topic

    @property
    def position(self) -> int:
        return self.id


@timed("reserve events")
async def reserve(
    conn: AsyncConnection[Any], topic: Topic, *, low: int, limit: int, max_bytes: int, seconds: float
) -> list[Event]:
    """Reserve up to `limit` events with ids above `low` for `seconds`. Afterwards any relay may reserve them."""
    asked = {"topic": topic, "low": low, "limit": limit, "max_bytes": max_bytes, "seconds": seconds}
    rows = await fetchall(conn, RESERVE, asked)
    return sorted(Event(id_, topic, Message(bytes(payload), attributes)) for id_, payload, attributes in rows)


@timed("delete published")
async def published(conn: AsyncConnection[Any], events: Sequence[Event]) -> None:
    """Delete published events. Another relay may have deleted some of them already."""
    await conn.execute(PUBLISHED, [bare_array(event.id for event in events)])


async def release(conn: AsyncConnection[Any], events: Sequence[Event]) -> None:
    """End the reservation of events that could not be published."""
    await conn.execute(RELEASE, [bare_array(event.id for event in events)])


async def quarantine(conn: AsyncConnection[Any], event: Event, reason: str) -> None:
    """Quarantine an event that the broker will never accept. The row stays for an operator to inspect."""
    await conn.execute(QUARANTINE, [reason, event.id])


async def write(conn: AsyncConnection[Any], topic: Topic, message: Message) -> None:
    """Write an event. A relay publishes the event once the caller's transaction has committed."""
    await conn.execute(WRITE, [topic, message.data, Jsonb(message.attributes)])
