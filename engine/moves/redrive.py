"""Redrive: queues a FAILED or CANCELLED job again. `owner` None stands for an operator: any job.

With an idempotency key a redrive happens once, however often and at however many places at once it is asked for.
"""

from __future__ import annotations

from typing import Any, LiteralString
from uuid import UUID

from psycopg import AsyncConnection

from engine.errors import StateConflict
from engine.model import Reason
from engine.moves._state import state_of
from engine.storage.statements import fetchone, timed
from engine.tables.idempotency import KEY_HOURS, IdempotencyKey, is_held

_TAKEN: LiteralString = """
WITH taken AS (
    DELETE FROM job_results r
    USING jobs j
    WHERE r.job_id = %(id)s AND j.id = r.job_id AND (%(owner)s::text IS NULL OR r.user_id = %(owner)s)
      AND r.state IN ('FAILED', 'CANCELLED')"""
_MOVED: LiteralString = """
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
)"""
REDRIVE: LiteralString = _TAKEN + _MOVED + "\nSELECT preset FROM taken"

# Two redrives with one key want the same result, for a key is a job's own: the second waits for the first to commit,
# and finds no result. A result of a later attempt can only be seen together with the key.
REDRIVE_ONCE: LiteralString = (
    _TAKEN  # noqa: S608 - constants alone
    + """
      AND NOT EXISTS (SELECT FROM idempotency_keys
                      WHERE (owner, route, key) = (%(key_owner)s, %(route)s, %(key)s)
                        AND expires_at >= clock_timestamp())"""
    + _MOVED
    + """, kept AS (
    INSERT INTO idempotency_keys AS held (owner, route, key, fingerprint, answer, expires_at)
    SELECT %(key_owner)s, %(route)s, %(key)s, %(fingerprint)s, json_build_array(job_id),
           clock_timestamp() + %(key_hours)s * interval '1 hour'
    FROM taken
    ON CONFLICT (owner, route, key) DO UPDATE
    SET fingerprint = excluded.fingerprint, answer = excluded.answer, expires_at = excluded.expires_at
)
SELECT preset FROM taken"""
)


@timed("redrive")
async def redrive(
    conn: AsyncConnection[Any], job_id: UUID, owner: str | None, key: IdempotencyKey | None = None
) -> str | None:
    """Queue a FAILED or CANCELLED job again with a new budget. The old result moves to the audit trail.

    Returns the job's preset. Raises JobNotFound, and StateConflict if the job is in any other state.

    None means that an earlier redrive had the same `key`: whatever has become of the job since, nothing was done. The
    key is stored with the redrive, in its transaction, and only then. Its route must be the job's own.
    """
    asked: dict[str, object] = {"id": job_id, "owner": owner, "reason": Reason.REDRIVEN}
    if key is None:
        row = await fetchone(conn, REDRIVE, asked)
    else:
        named = {"key_owner": key.owner, "route": key.route, "key": key.key, "fingerprint": key.fingerprint}
        row = await fetchone(conn, REDRIVE_ONCE, asked | named | {"key_hours": KEY_HOURS})
    if row is not None:
        return str(row[0])
    if key is not None and await is_held(conn, key.name):
        return None
    raise StateConflict(job_id, await state_of(conn, job_id, owner), "retried")
