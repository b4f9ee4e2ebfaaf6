"""Publish: a relay reserves ready jobs, publishes their wake-ups, and marks them. A claim that comes between wins."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, LiteralString

from psycopg import AsyncConnection

from engine.pubsub.messages import WakeUp
from engine.storage.literals import array, bare_array
from engine.storage.statements import fetchall, timed
from engine.tables.outbox import Lane

# Lanes are scanned as in CLAIM, for the same reasons. The rows stay ready, so workers may claim them at any time.
# Suspects have no wake-up, because no message may bring them to a busy worker.
RESERVE: LiteralString = """
WITH due AS MATERIALIZED (
    SELECT due.job_id
    FROM unnest(%(presets)s::text[], %(priorities)s::smallint[], %(lows)s::bigint[])
         AS lane(preset, priority, low)
    CROSS JOIN LATERAL (
        SELECT job_id FROM outbox
        WHERE status = 'ready' AND preset = lane.preset AND priority = lane.priority AND position > lane.low
          AND suspicion = 0
          AND (publish_until IS NULL OR publish_until < clock_timestamp())
        ORDER BY position
        LIMIT %(limit)s
        FOR UPDATE SKIP LOCKED) due
    LIMIT %(limit)s
), reserved AS (
    UPDATE outbox
    SET publish_until = clock_timestamp()
            + (%(seconds)s + %(row_seconds)s * (SELECT count(*) FROM due)) * interval '1 second'
    WHERE job_id = ANY (ARRAY(SELECT job_id FROM due))
    RETURNING job_id, position, attempt, user_id, preset, priority,
              coalesce(extract(epoch FROM clock_timestamp() - ready_at)::float8, 0) AS age, publish_until
)
SELECT r.job_id, r.position, r.attempt, r.user_id, r.preset, r.priority, j.created_at, j.traceparent, r.age,
       r.publish_until
FROM reserved r JOIN jobs j ON j.id = r.job_id
"""

# Position and attempt name the turn of a job: a row that was claimed meanwhile, and perhaps released, is on another.
# Rows are locked in the order of ids, as in every statement that waits for several rows: otherwise two such statements
# could deadlock.
PUBLISHED: LiteralString = """
UPDATE outbox SET status = 'published', published_at = clock_timestamp(), publish_until = NULL
WHERE job_id = ANY (ARRAY(
    SELECT q.job_id
    FROM unnest(%(id)s::uuid[], %(position)s::bigint[], %(attempt)s::integer[]) AS x(id, position, attempt)
    JOIN outbox q ON q.job_id = x.id AND q.position = x.position AND q.attempt = x.attempt AND q.worker_id IS NULL
    ORDER BY q.job_id
    FOR UPDATE OF q))
"""
# A relay releases its own reservation alone: after the end of that, another relay may have the wake-up on its way.
RELEASE: LiteralString = """
UPDATE outbox SET publish_until = clock_timestamp() + %(seconds)s::float8 * interval '1 second'
WHERE job_id = ANY (ARRAY(
    SELECT q.job_id
    FROM unnest(%(id)s::uuid[], %(until)s::timestamptz[]) AS x(id, publish_until)
    JOIN outbox q ON q.job_id = x.id AND q.publish_until = x.publish_until AND q.worker_id IS NULL
    ORDER BY q.job_id
    FOR UPDATE OF q))
"""


@timed("reserve")
async def reserve(
    conn: AsyncConnection[Any], lanes: Sequence[Lane], *, limit: int, seconds: float, row_seconds: float = 0.0
) -> list[WakeUp]:
    """Reserve up to `limit` ready jobs of `lanes`, most urgent first. Workers may still claim them.

    After `seconds`, and `row_seconds` for each job, any relay may reserve the jobs again: a relay that dies blocks
    no job.
    """
    parameters = {
        "presets": array(lane.preset for lane in lanes),
        "priorities": array(lane.priority for lane in lanes),
        "lows": array(lane.low for lane in lanes),
        "limit": limit,
        "seconds": seconds,
        "row_seconds": row_seconds,
    }
    rows = await fetchall(conn, RESERVE, parameters)
    now = time.monotonic()
    found = [WakeUp._make((*row[:-2], now - row[-2], row[-1])) for row in rows]
    return sorted(found, key=lambda each: (each.priority, each.position))


@timed("mark published")
async def published(conn: AsyncConnection[Any], wake_ups: Sequence[WakeUp]) -> int:
    """Mark jobs whose wake-ups were published. Returns how many; workers have claimed the others already."""
    turns = {
        "id": bare_array(each.job_id for each in wake_ups),
        "position": bare_array(each.position for each in wake_ups),
        "attempt": bare_array(each.attempt for each in wake_ups),
    }
    return (await conn.execute(PUBLISHED, turns)).rowcount


@timed("release reserved")
async def release(
    conn: AsyncConnection[Any], wake_ups: Sequence[WakeUp], *, seconds: float | None = None
) -> None:
    """End the reservation of jobs whose wake-ups could not be published, so that a relay tries again.

    After `seconds`, if they are given: workers may claim the jobs meanwhile.
    """
    reservations = {
        "seconds": seconds,
        "id": bare_array(each.job_id for each in wake_ups),
        "until": array(each.until for each in wake_ups),
    }
    await conn.execute(RELEASE, reservations)
