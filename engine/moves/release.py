"""Release: a worker ends attempts without a result, fenced by (job_id, attempt, worker_id).

After a retry, a snooze or an unreadable attempt the job waits. At shutdown, and for attempts that do not run, the job
is ready again at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, LiteralString, NamedTuple
from uuid import UUID

from psycopg import AsyncConnection

from engine.model import JobState, Reason
from engine.moves._exit import EXIT
from engine.moves.finish import Recorded, columns
from engine.storage.statements import fetchall, timed
from engine.tables.workers import DEREGISTER

CLEARING: Final = [reason for reason in Reason if reason.clears]


class Release(NamedTuple):
    """An attempt to be released. Its job waits `delay` seconds, or is ready in its old place if `delay` is None.

    `spent` is added to the job's errors; `error` is JSON text.
    """

    job_id: UUID
    attempt: int
    reason: Reason
    delay: float | None = None
    error: str | None = None
    spent: int = 0


RELEASE: LiteralString = (
    """
WITH held AS MATERIALIZED (
    SELECT q.job_id, q.user_id, q.attempt, q.version + 1 AS version, q.errors + x.spent AS errors, q.crashes,
           CASE WHEN x.reason = ANY (%(clearing)s::text[]) THEN 0 ELSE q.suspicion END AS suspicion,
           q.run_at, q.claimed_at, 'PROCESSING'::job_state AS from_state,
           (CASE WHEN q.cancel_requested THEN 'CANCELLED' ELSE 'PENDING' END)::job_state AS to_state,
           clock_timestamp() + x.delay * interval '1 second' AS due_at,
           CASE WHEN q.cancel_requested THEN %(cancelled)s ELSE x.reason END AS reason, x.error::jsonb AS error,
           NULL AS fingerprint, clock_timestamp() AS finished_at
    FROM unnest(%(id)s::uuid[], %(attempt)s::integer[], %(reason)s::text[], %(delay)s::double precision[],
                %(error)s::text[], %(spent)s::smallint[])
         AS x(id, attempt, reason, delay, error, spent)
    JOIN outbox q ON q.job_id = x.id AND q.attempt = x.attempt AND q.worker_id = %(worker_id)s
    ORDER BY q.job_id
    FOR UPDATE OF q
)"""  # noqa: S608 - constants alone
    + EXIT
    + "SELECT job_id, attempt, to_state FROM held"
)

# Skips what effects hold: those may still commit, and the row is theirs until they end.
TAKE_BACK: LiteralString = """
SELECT job_id, attempt, preset FROM outbox WHERE worker_id = %s AND status = 'leased' ORDER BY job_id
FOR UPDATE SKIP LOCKED
"""
STILL_LEASED: LiteralString = "SELECT FROM outbox WHERE worker_id = %s AND status = 'leased' LIMIT 1"


class TakenBack(NamedTuple):
    """Jobs that a worker has released, as (preset, state after it). `complete` unless locked rows were left over."""

    jobs: Sequence[tuple[str, JobState]]
    complete: bool


async def take_back(
    conn: AsyncConnection[Any], worker_id: int, *, publish_results: bool = False
) -> TakenBack:
    """Give up a lease that has run out: delete the worker's row and release all that is leased under it.

    The row goes first: a claim that is still on its way finds none, and maintenance leaves the worker alone.
    """
    async with conn.transaction():
        await conn.execute(DEREGISTER, [worker_id])
        found = await fetchall(conn, TAKE_BACK, [worker_id])
        releases = [Release(job_id, attempt, Reason.LEASE_LOST) for job_id, attempt, _ in found]
        if releases:
            states = await release(conn, worker_id, releases, publish_results=publish_results)
        left = await fetchall(conn, STILL_LEASED, [worker_id])
    jobs = [(preset, states[job_id, attempt]) for job_id, attempt, preset in found]
    return TakenBack(jobs, not left)


@timed("release")
async def release(
    conn: AsyncConnection[Any], worker_id: int, releases: Sequence[Release], *, publish_results: bool = False
) -> Recorded:
    """Release attempts. A job whose cancellation was requested becomes CANCELLED instead, which is a result.

    With `publish_results` that result is also published. An attempt that is missing from the answer is lost: nothing
    was written for that attempt.
    """
    fence = {
        "worker_id": worker_id,
        "publish_results": publish_results,
        "cancelled": Reason.CANCELLED,
        "clearing": CLEARING,
    }
    rows = await fetchall(conn, RELEASE, columns(Release._fields, releases) | fence)
    return {(job_id, attempt): JobState(state) for job_id, attempt, state in rows}
