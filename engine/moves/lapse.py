"""Lapse: maintenance ends the attempts of workers that are gone, and counts a crash for each."""

from __future__ import annotations

from typing import Any, LiteralString, NamedTuple
from uuid import UUID

from psycopg import AsyncConnection

from engine.model import MAX_CRASHES, JobState, Reason
from engine.moves._exit import EXIT
from engine.storage.statements import fetchall, fetchone, timed

# A row that a heartbeat is renewing is locked, so it is skipped. A heartbeat that comes later waits and finds no row.
EXPIRE: LiteralString = """
DELETE FROM workers
WHERE id = ANY (ARRAY(SELECT id FROM workers WHERE expires_at < now() FOR UPDATE SKIP LOCKED))
RETURNING id, name
"""

ABANDONED: LiteralString = """
SELECT array_agg(DISTINCT q.worker_id)
FROM outbox q
WHERE q.status = 'leased' AND NOT EXISTS (SELECT FROM workers w WHERE w.id = q.worker_id)
"""

# Names the dead workers instead of checking for "no live worker" again. If an outbox row changes its worker while this
# statement waits, PostgreSQL checks the new row against the old snapshot. There, a worker that has just registered is
# missing.
LAPSE: LiteralString = (
    """
WITH held AS MATERIALIZED (
    SELECT q.job_id, q.user_id, q.preset, q.attempt, q.version + 1 AS version, q.errors, q.crashes + 1 AS crashes,
           q.run_at, q.claimed_at, 'PROCESSING'::job_state AS from_state,
           (CASE WHEN q.cancel_requested THEN 'CANCELLED'
                 WHEN q.crashes + 1 >= %(max_crashes)s THEN 'FAILED'
                 ELSE 'PENDING' END)::job_state AS to_state,
           NULL::timestamptz AS due_at, %(reason)s::text AS reason,
           jsonb_build_object('type', 'WorkerLost', 'attempt', q.attempt, 'message',
                              'worker ' || q.worker_id || ' stopped without an answer') AS error,
           'WorkerLost' AS fingerprint, clock_timestamp() AS finished_at, q.worker_id
    FROM outbox q
    WHERE q.status = 'leased' AND q.worker_id = ANY (%(dead)s)
    ORDER BY q.job_id
    LIMIT %(limit)s
    FOR UPDATE OF q SKIP LOCKED
)"""  # noqa: S608 - constants alone
    + EXIT
    + "SELECT job_id, preset, attempt, to_state, worker_id FROM held"
)


class Lapsed(NamedTuple):
    """An attempt whose worker is gone, and the state that its job went to.

    `worker` is the worker's id, followed by its name unless another process has deleted the worker's row.
    """

    job_id: UUID
    preset: str
    attempt: int
    state: JobState
    worker: str


@timed("lapse")
async def lapse(
    conn: AsyncConnection[Any], limit: int = 1000, *, publish_results: bool = False
) -> list[Lapsed]:
    """Delete the workers whose lease has run out, and lapse up to `limit` of their attempts.

    The three statements need no transaction around them, because a worker that is gone never comes back.
    """
    names: dict[int, str] = dict(await fetchall(conn, EXPIRE))
    row = await fetchone(conn, ABANDONED)
    if row is None or row[0] is None:
        return []
    parameters = {
        "dead": row[0],
        "limit": limit,
        "max_crashes": MAX_CRASHES,
        "publish_results": publish_results,
        "reason": Reason.LAPSED,
    }
    rows = await fetchall(conn, LAPSE, parameters)
    return [
        Lapsed(job_id, preset, attempt, JobState(state), f"{worker_id} {names.get(worker_id, '')}".rstrip())
        for job_id, preset, attempt, state, worker_id in rows
    ]
