"""Claim: a worker takes due jobs straight from the outbox, a batch at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, LiteralString, NamedTuple

import orjson
from psycopg import AsyncConnection

from engine.db import array, fetchall
from engine.model import Attempt, Job

PRIORITIES: Final = (1, 2, 3, 4)


class Lane(NamedTuple):
    """One queue of jobs in order of `position`; the scan starts above `low`."""

    preset: str
    priority: int
    low: int = 0


def lanes_of(presets: Sequence[str], marks: Mapping[Any, int]) -> list[Lane]:
    """Every lane of these presets, the most urgent first, each above its mark by (preset, priority)."""
    return [
        Lane(preset, priority, marks.get((preset, priority), 0))
        for priority in PRIORITIES
        for preset in presets
    ]


# Lanes are scanned in the order given, and each only as far as rows are still wanted. `position > low` lets the
# scan start behind the dead entries that a held snapshot keeps in the index: without it a claim slows 24-fold.
# `= ANY(ARRAY(…))` fixes the plan to one index look-up an id. A worker without a live row claims nothing.
CLAIM: LiteralString = """
WITH claimed AS (
    UPDATE outbox
    SET status = 'leased', attempt = attempt + 1, version = version + 1, worker_id = %(worker_id)s,
        claimed_at = clock_timestamp()
    WHERE job_id = ANY (ARRAY(
        SELECT due.job_id
        FROM workers w
        CROSS JOIN unnest(%(presets)s::text[], %(priorities)s::smallint[], %(lows)s::bigint[])
                   AS lane(preset, priority, low)
        CROSS JOIN LATERAL (
            SELECT job_id FROM outbox
            WHERE status = 'ready' AND preset = lane.preset AND priority = lane.priority AND position > lane.low
            ORDER BY position
            LIMIT %(limit)s
            FOR UPDATE SKIP LOCKED) due
        WHERE w.id = %(worker_id)s AND w.expires_at > clock_timestamp()
        LIMIT %(limit)s))
    RETURNING job_id, attempt, version, errors, crashes, position, run_at, claimed_at
), audit AS (
    INSERT INTO job_state_records (job_id, seq, from_state, to_state, attempt, reason, metadata)
    SELECT job_id, version, 'PENDING', 'PROCESSING', attempt, 'claimed', %(metadata)s::jsonb FROM claimed
)
SELECT c.job_id, c.attempt, c.errors, c.crashes, c.position, c.run_at, c.claimed_at,
       j.user_id, j.preset, j.content, j.metadata::text, j.priority, j.max_attempts, j.timeout_seconds,
       j.created_at, j.traceparent
FROM claimed c JOIN jobs j ON j.id = c.job_id
"""


async def claim(
    conn: AsyncConnection[Any], worker_id: int, lanes: Sequence[Lane], limit: int
) -> list[Attempt]:
    """Lease up to `limit` ready jobs of `lanes` to the worker, each the start of a new attempt.

    Empty also when the worker's own row is gone. Rows that others are taking are skipped.
    """
    parameters = {
        "worker_id": worker_id,
        "presets": array(lane.preset for lane in lanes),
        "priorities": array(lane.priority for lane in lanes),
        "lows": array(lane.low for lane in lanes),
        "limit": limit,
        "metadata": f'{{"worker": {worker_id}}}',
    }
    rows = await fetchall(conn, CLAIM, parameters)
    return [_attempt(worker_id, row) for row in rows]


def _attempt(worker_id: int, row: tuple[Any, ...]) -> Attempt:
    job_id, number, errors, crashes, position, run_at, claimed_at, *asked = row
    user_id, preset, content, metadata, priority, max_attempts, timeout_seconds, created_at, traceparent = (
        asked
    )
    parsed, fault = ({}, None) if metadata == "{}" else _parsed(metadata)
    return Attempt(
        Job(job_id, user_id, preset, content, parsed, priority, created_at, traceparent),
        number,
        worker_id,
        errors,
        crashes,
        max_attempts,
        timeout_seconds,
        position,
        run_at,
        claimed_at,
        fault,
    )


def _parsed(metadata: str) -> tuple[dict[str, Any], str | None]:
    """The metadata, or why it cannot be read: one bad row, written by SQL, must not cost its batch."""
    try:
        return orjson.loads(metadata), None
    except orjson.JSONDecodeError as error:
        return {}, str(error)
