"""Redrive: queues a FAILED or CANCELLED job again. `owner` None stands for an operator: any job."""

from __future__ import annotations

from typing import Any, LiteralString
from uuid import UUID

from psycopg import AsyncConnection

from engine.errors import StateConflict
from engine.model import Reason
from engine.moves._state import state_of
from engine.storage.statements import fetchone, timed

REDRIVE: LiteralString = """
WITH taken AS (
    DELETE FROM job_results r
    USING jobs j
    WHERE r.job_id = %(id)s AND j.id = r.job_id AND (%(owner)s::text IS NULL OR r.user_id = %(owner)s)
      AND r.state IN ('FAILED', 'CANCELLED')
    RETURNING r.job_id, r.user_id, j.preset, j.priority, r.state, r.error, r.error_fingerprint,
              r.execution_metadata, r.attempt, r.errors, r.crashes, r.version + 1 AS version, r.started_at,
              r.finished_at
), entry AS (
    INSERT INTO outbox (job_id, user_id, preset, priority, status, attempt, version, run_at, ready_at, claimed_at)
    SELECT job_id, user_id, preset, priority, 'ready', attempt, version, clock_timestamp(), clock_timestamp(),
           started_at
    FROM taken
), audit AS (
    INSERT INTO job_state_records (job_id, seq, from_state, to_state, attempt, reason, metadata)
    SELECT job_id, version, state, 'PENDING', attempt, %(reason)s,
           jsonb_build_object('result', jsonb_build_object(
               'state', state, 'error', error, 'error_fingerprint', error_fingerprint, 'errors', errors,
               'crashes', crashes, 'execution_metadata', execution_metadata, 'started_at', started_at,
               'finished_at', finished_at))
    FROM taken
)
SELECT preset FROM taken
"""


@timed("redrive")
async def redrive(conn: AsyncConnection[Any], job_id: UUID, owner: str | None) -> str:
    """Queue a FAILED or CANCELLED job again with a new budget. The old result moves to the audit trail.

    Returns the job's preset. Raises JobNotFound, and StateConflict if the job is in any other state.
    """
    row = await fetchone(conn, REDRIVE, {"id": job_id, "owner": owner, "reason": Reason.REDRIVEN})
    if row is None:
        raise StateConflict(job_id, await state_of(conn, job_id, owner), "retried")
    return str(row[0])
