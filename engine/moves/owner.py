"""What a job's owner may do to it: cancel it, or run it again. `owner` None is an operator: any owner's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, LiteralString
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.errors import LockNotAvailable

from engine.db import fetchone, timed
from engine.errors import JobNotFound, Overloaded, StateConflict
from engine.model import JobState
from engine.moves.leave import LEAVE

# Found by key and judged after the lock: a claim that comes in between is seen, and then only asked to stop.
CANCEL: LiteralString = (
    """
WITH held AS MATERIALIZED (
    SELECT q.job_id, q.user_id, q.preset, q.attempt,
           q.version + 1 AS version, q.errors, q.crashes, q.run_at, q.claimed_at,
           (CASE WHEN q.status = 'leased' THEN 'PROCESSING' ELSE 'PENDING' END)::job_state AS from_state,
           (CASE WHEN q.status = 'leased' THEN 'PROCESSING' ELSE 'CANCELLED' END)::job_state AS to_state,
           NULL::timestamptz AS due_at, 'cancelled' AS reason, NULL::jsonb AS error, NULL AS fingerprint,
           clock_timestamp() AS finished_at
    FROM outbox q
    WHERE q.job_id = %(id)s AND (%(owner)s::text IS NULL OR q.user_id = %(owner)s)
    FOR UPDATE
), asked AS (
    UPDATE outbox q SET cancel_requested = true FROM held h WHERE q.job_id = h.job_id AND h.to_state = 'PROCESSING'
)"""  # noqa: S608 - constants alone
    + LEAVE
    # The worker is told at once, not at its next beat. Rare enough for a NOTIFY inside the transaction.
    + "SELECT to_state, preset, CASE WHEN to_state = 'PROCESSING' THEN pg_notify('outrider_cancel', '') END FROM held"
)

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
    SELECT job_id, version, state, 'PENDING', attempt, 'redriven',
           jsonb_build_object('result', jsonb_build_object(
               'state', state, 'error', error, 'error_fingerprint', error_fingerprint, 'errors', errors,
               'crashes', crashes, 'execution_metadata', execution_metadata, 'started_at', started_at,
               'finished_at', finished_at))
    FROM taken
)
SELECT preset FROM taken
"""

STATE: LiteralString = """
SELECT coalesce(r.state, CASE WHEN o.status = 'leased' THEN 'PROCESSING' ELSE 'PENDING' END::job_state)
FROM jobs j
LEFT JOIN job_results r ON r.job_id = j.id
LEFT JOIN outbox o ON o.job_id = j.id
WHERE j.id = %(id)s AND (%(owner)s::text IS NULL OR j.user_id = %(owner)s)
"""

# Effects hold the row while they run, which may be long: whoever cancels must not wait for them with his connection.
BRIEFLY: LiteralString = "SELECT set_config('lock_timeout', '1s', true)"

TRIES = 5


@timed("cancel")
async def cancel(
    conn: AsyncConnection[Any],
    job_id: UUID,
    owner: str | None,
    *,
    announce: bool = False,
    on_result: Callable[[str], None] = lambda _: None,
) -> JobState:
    """CANCELLED when the job is (now or before), PROCESSING when its running attempt has been asked to stop.

    With `announce` the result is also told to Pub/Sub, as all results are in that mode. `on_result` is called with
    the job's preset if it is this call that writes the result.

    Raises JobNotFound, StateConflict when the job is COMPLETED or FAILED, and Overloaded when its row has been held
    for longer than a second: by effects that are being committed, as a rule.
    """
    asked = {"id": job_id, "owner": owner, "announce": announce}
    for _ in range(TRIES):
        if (found := await _cancel(conn, asked)) is not None:
            state, preset = found
            if state is JobState.CANCELLED:
                on_result(preset)
            return state
        state = await _state(conn, job_id, owner)
        if state is JobState.CANCELLED:
            return state
        if state.terminal:
            break
        # A redrive has put the job back between the two statements: there is something to cancel again.
    raise StateConflict(job_id, state, "cancelled")


async def _cancel(conn: AsyncConnection[Any], asked: Mapping[str, object]) -> tuple[JobState, str] | None:
    try:
        async with conn.transaction():
            await conn.execute(BRIEFLY)
            row = await fetchone(conn, CANCEL, asked)
    except LockNotAvailable as error:
        raise Overloaded("the job's outcome is being written at this moment") from error
    return None if row is None else (JobState(row[0]), row[1])


@timed("redrive")
async def redrive(conn: AsyncConnection[Any], job_id: UUID, owner: str | None) -> str:
    """Queue a FAILED or CANCELLED job again, its budget new; the old result moves to the audit trail.

    Returns the job's preset.

    Raises JobNotFound, and StateConflict in any other state.
    """
    row = await fetchone(conn, REDRIVE, {"id": job_id, "owner": owner})
    if row is None:
        raise StateConflict(job_id, await _state(conn, job_id, owner), "retried")
    return str(row[0])


async def _state(conn: AsyncConnection[Any], job_id: UUID, owner: str | None) -> JobState:
    row = await fetchone(conn, STATE, {"id": job_id, "owner": owner})
    if row is None:
        raise JobNotFound(job_id)
    return JobState(row[0])
