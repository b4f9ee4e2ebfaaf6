"""Claim: a worker leases a batch of due jobs, straight from the outbox or as named by messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, LiteralString
from uuid import UUID

import orjson
from psycopg import AsyncConnection

from engine.errors import LeaseLost
from engine.model import MAX_SUSPICION, Attempt, Job, Reason
from engine.storage.literals import array, bare_array
from engine.storage.statements import fetchall, timed
from engine.tables.outbox import Lane
from engine.telemetry.traceparent import kept

# `= ANY(ARRAY(…))` fixes the plan to one index look-up for each id. A worker without a live row claims nothing.
_LEASE: LiteralString = """
WITH alive AS MATERIALIZED (
    SELECT id FROM workers WHERE id = %(worker_id)s AND expires_at > clock_timestamp()
), claimed AS (
    UPDATE outbox
    SET status = 'leased', attempt = attempt + 1, version = version + 1, worker_id = %(worker_id)s,
        claimed_at = clock_timestamp(), publish_until = NULL
    WHERE job_id = ANY (ARRAY("""

_LEASED: LiteralString = """))
    RETURNING job_id, attempt, version, errors, crashes, position, run_at, claimed_at,
              coalesce(greatest(ready_at, published_at), claimed_at) AS ready_at
), audit AS (
    INSERT INTO job_state_records (job_id, seq, from_state, to_state, attempt, reason, metadata)
    SELECT job_id, version, 'PENDING', 'PROCESSING', attempt, %(reason)s, %(metadata)s::jsonb FROM claimed
)
SELECT c.job_id, c.attempt, c.errors, c.crashes, c.position, c.run_at, c.claimed_at, c.ready_at,
       j.user_id, j.preset, j.content, j.metadata::text, j.priority, j.max_attempts, j.timeout_seconds,
       j.created_at, j.traceparent
"""
_FOUND: LiteralString = "FROM claimed c JOIN jobs j ON j.id = c.job_id"
_FOUND_OR_ALIVE: LiteralString = "FROM alive LEFT JOIN (claimed c JOIN jobs j ON j.id = c.job_id) ON true"

# Lanes are scanned in the given order, each only while rows are still wanted. `position > low` lets the scan start
# after the dead entries that a held snapshot keeps in the index: without the condition a claim is 24 times slower.
_READY: LiteralString = """
        SELECT due.job_id
        FROM alive
        CROSS JOIN unnest(%(presets)s::text[], %(priorities)s::smallint[], %(lows)s::bigint[])
                   AS lane(preset, priority, low)
        CROSS JOIN LATERAL (
            SELECT job_id FROM outbox
            WHERE status = 'ready' AND preset = lane.preset AND priority = lane.priority AND position > lane.low
              AND suspicion = 0
              AND (%(age)s::float8 = 0 OR ready_at < clock_timestamp() - %(age)s::float8 * interval '1 second')
            ORDER BY position
            LIMIT %(limit)s
            FOR UPDATE SKIP LOCKED) due
        LIMIT %(limit)s"""
CLAIM: LiteralString = _LEASE + _READY + _LEASED + _FOUND

_PUBLISHED: LiteralString = """
        SELECT due.job_id
        FROM alive
        CROSS JOIN LATERAL (
            SELECT job_id FROM outbox
            WHERE status = 'published' AND preset = ANY (%(presets)s::text[]) AND suspicion = 0
              AND published_at < now() - %(age)s::float8 * interval '1 second'
            ORDER BY published_at
            LIMIT %(limit)s
            FOR UPDATE SKIP LOCKED) due"""
CLAIM_PUBLISHED: LiteralString = _LEASE + _PUBLISHED + _LEASED + _FOUND

# Waits for locked rows instead of skipping them, because a row that a relay is just marking must not be missed. Locks
# rows in the order of ids, as every statement does that waits for several rows. The answer has a row without a job if
# the worker is alive and no job was claimed.
_NAMED: LiteralString = """
        SELECT q.job_id
        FROM alive
        CROSS JOIN unnest(%(ids)s::uuid[]) AS named(id)
        JOIN outbox q ON q.job_id = named.id AND q.worker_id IS NULL AND q.status <> 'waiting'
                     AND q.preset = ANY (%(presets)s::text[]) AND q.suspicion = 0
        ORDER BY q.job_id
        FOR UPDATE OF q"""
CLAIM_NAMED: LiteralString = _LEASE + _NAMED + _LEASED + _FOUND_OR_ALIVE

# The index holds suspects alone, so the scan sees none but them.
_SUSPECTED: LiteralString = """
        SELECT due.job_id
        FROM alive
        CROSS JOIN LATERAL (
            SELECT job_id FROM outbox
            WHERE suspicion = %(suspicion)s AND suspicion > 0 AND status IN ('ready', 'published')
              AND preset = ANY (%(presets)s::text[])
            ORDER BY priority, position
            LIMIT %(limit)s
            FOR UPDATE SKIP LOCKED) due"""
CLAIM_SUSPECTS: LiteralString = _LEASE + _SUSPECTED + _LEASED + _FOUND


@timed("claim")
async def claim(
    conn: AsyncConnection[Any], worker_id: int, lanes: Sequence[Lane], limit: int, *, age: float = 0
) -> list[Attempt]:
    """Lease up to `limit` jobs of `lanes` to the worker, each as a new attempt.

    Only jobs that have been ready for `age` seconds are leased. Rows that others have locked are skipped. The answer
    is empty also if the worker's own row is gone.
    """
    asked = {
        "presets": array(lane.preset for lane in lanes),
        "priorities": array(lane.priority for lane in lanes),
        "lows": array(lane.low for lane in lanes),
        "limit": limit,
        "age": age,
    }
    rows = await fetchall(conn, CLAIM, _claiming(worker_id) | asked, binary=True)
    return [_attempt(worker_id, row) for row in rows]


@timed("claim published")
async def claim_published(
    conn: AsyncConnection[Any], worker_id: int, presets: Sequence[str], limit: int, *, age: float
) -> list[Attempt]:
    """As `claim`, for jobs that were published `age` seconds ago and that no message has brought to a worker."""
    asked = {"presets": array(presets), "limit": limit, "age": age}
    rows = await fetchall(conn, CLAIM_PUBLISHED, _claiming(worker_id) | asked, binary=True)
    return [_attempt(worker_id, row) for row in rows]


@timed("claim named")
async def claim_named(
    conn: AsyncConnection[Any], worker_id: int, presets: Sequence[str], ids: Sequence[UUID]
) -> list[Attempt]:
    """Lease those of the jobs `ids` to the worker that are due and not leased. The other jobs are left out.

    Raises LeaseLost if the worker's own row is gone.
    """
    asked = {"presets": array(presets), "ids": bare_array(ids)}
    rows = await fetchall(conn, CLAIM_NAMED, _claiming(worker_id) | asked, binary=True)
    if not rows:
        raise LeaseLost(f"worker {worker_id} is gone")
    return [_attempt(worker_id, row) for row in rows if row[0] is not None]


@timed("claim suspects")
async def claim_suspects(
    conn: AsyncConnection[Any], worker_id: int, presets: Sequence[str], limit: int
) -> list[Attempt]:
    """Lease one job that must run alone, or else up to `limit` other suspects. The worker must hold nothing.

    No other claim leases suspects.
    """
    for suspicion in range(MAX_SUSPICION, 0, -1):
        most = 1 if suspicion == MAX_SUSPICION else limit
        asked = {"presets": array(presets), "limit": most, "suspicion": suspicion}
        if rows := await fetchall(conn, CLAIM_SUSPECTS, _claiming(worker_id) | asked, binary=True):
            return [_attempt(worker_id, row) for row in rows]
    return []


def _claiming(worker_id: int) -> dict[str, object]:
    return {
        "worker_id": worker_id,
        "reason": Reason.CLAIMED,
        "metadata": f'{{"worker": {worker_id}}}',
    }


def _attempt(worker_id: int, row: tuple[Any, ...]) -> Attempt:
    # fmt: off
    (job_id, number, errors, crashes, position, run_at, claimed_at, ready_at, user_id, preset, content, metadata,
     priority, max_attempts, timeout_seconds, created_at, traceparent) = row
    # fmt: on
    parsed, fault = ({}, None) if metadata == "{}" else _parsed(metadata)
    return Attempt(
        Job(job_id, user_id, preset, content, parsed, priority, created_at, kept(traceparent)),
        number,
        worker_id,
        errors,
        crashes,
        max_attempts,
        timeout_seconds,
        position,
        run_at,
        claimed_at,
        ready_at,
        fault,
    )


def _parsed(metadata: str) -> tuple[dict[str, Any], str | None]:
    """The metadata, or why they cannot be read. One bad row that SQL wrote must not fail the whole batch."""
    try:
        return orjson.loads(metadata), None
    except orjson.JSONDecodeError as error:
        return {}, str(error)
