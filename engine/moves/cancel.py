"""Cancel: ends a pending job, or asks a running attempt to stop. `owner` None stands for an operator: any job."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, LiteralString
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.errors import LockNotAvailable

from engine.errors import Overloaded, StateConflict
from engine.model import JobState, Reason
from engine.moves._exit import EXIT
from engine.moves._state import state_of
from engine.storage.statements import fetchone, timed
from engine.tables.outbox import STATE_OF

# The row is found by its key and judged after the lock. A claim that comes in between is seen, and its attempt is only
# asked to stop.
CANCEL: LiteralString = (
    """
WITH held AS MATERIALIZED (
    SELECT o.job_id, o.user_id, o.preset, o.attempt,
           o.version + 1 AS version, o.errors, o.crashes, o.suspicion, o.run_at, o.claimed_at,
           """  # noqa: S608 - constants alone
    + STATE_OF
    + """ AS from_state,
           (CASE WHEN o.status = 'leased' THEN 'PROCESSING' ELSE 'CANCELLED' END)::job_state AS to_state,
           NULL::timestamptz AS due_at, %(reason)s::text AS reason, NULL::jsonb AS error, NULL AS fingerprint,
           clock_timestamp() AS finished_at
    FROM outbox o
    WHERE o.job_id = %(id)s AND (%(owner)s::text IS NULL OR o.user_id = %(owner)s)
    FOR UPDATE
), asked AS (
    UPDATE outbox q SET cancel_requested = true FROM held h WHERE q.job_id = h.job_id AND h.to_state = 'PROCESSING'
)"""
    + EXIT
    # The worker learns of the request at once, not at its next heartbeat. Cancelling is rare enough for a NOTIFY inside
    # the transaction.
    + "SELECT to_state, preset, CASE WHEN to_state = 'PROCESSING' THEN pg_notify('outrider_cancel', '') END FROM held"
)

# Effects hold the row while they run, perhaps for long. A cancel must not wait for them with its connection.
PATIENCE: LiteralString = "SELECT current_setting('lock_timeout')"
PATIENT_FOR: LiteralString = "SELECT set_config('lock_timeout', %s, true)"
BRIEFLY: Final = "1s"

TRIES = 5


@timed("cancel")
async def cancel(
    conn: AsyncConnection[Any],
    job_id: UUID,
    owner: str | None,
    *,
    publish_results: bool = False,
    on_result: Callable[[str], None] = lambda _: None,
) -> JobState:
    """Returns CANCELLED if the job is cancelled, now or before, and PROCESSING if its attempt was asked to stop.

    With `publish_results` the result is also published through Pub/Sub, as all results are with that transport.
    `on_result` is called with the job's preset if this call writes the result.

    Raises JobNotFound, StateConflict if the job is COMPLETED or FAILED, and Overloaded if the row stays locked for
    more than a second, as a rule by effects that are being committed.
    """
    asked = {
        "id": job_id,
        "owner": owner,
        "publish_results": publish_results,
        "reason": Reason.CANCELLED,
    }
    for _ in range(TRIES):
        if (found := await _cancel(conn, asked)) is not None:
            state, preset = found
            if state is JobState.CANCELLED:
                on_result(preset)
            return state
        state = await state_of(conn, job_id, owner)
        if state is JobState.CANCELLED:
            return state
        if state.terminal:
            break
        # A redrive has queued the job again between the two statements, so there is something to cancel.
    raise StateConflict(job_id, state, "cancelled")


async def _cancel(conn: AsyncConnection[Any], asked: Mapping[str, object]) -> tuple[JobState, str] | None:
    # Asked first: on a connection without autocommit this begins the caller's transaction, and the block below becomes
    # a savepoint of it. An error undoes the setting with the savepoint. Without an error the setting outlives it.
    found = await fetchone(conn, PATIENCE)
    assert found is not None
    try:
        async with conn.transaction():
            await fetchone(conn, PATIENT_FOR, [BRIEFLY])
            row = await fetchone(conn, CANCEL, asked)
            await fetchone(conn, PATIENT_FOR, [found[0]])
    except LockNotAvailable as error:
        raise Overloaded("the job's outcome is being written at this moment") from error
    return None if row is None else (JobState(row[0]), row[1])
