"""Release: a worker ends attempts without a result, fenced by (job_id, attempt, worker_id).

After a retry, a snooze or an unreadable attempt the job waits. At shutdown, and for attempts that do not run, the job
is ready again at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, LiteralString, NamedTuple
from uuid import UUID

from psycopg import AsyncConnection

from engine.model import JobState, Reason
from engine.moves._exit import EXIT
from engine.moves.finish import Recorded, columns
from engine.storage.statements import fetchall, timed


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


@timed("release")
async def release(
    conn: AsyncConnection[Any], worker_id: int, releases: Sequence[Release], *, publish_results: bool = False
) -> Recorded:
    """Release attempts. A job whose cancellation was requested becomes CANCELLED instead, which is a result.

    With `publish_results` that result is also published. An attempt that is missing from the answer is lost: nothing
    was written for that attempt.
    """
    fence = {"worker_id": worker_id, "publish_results": publish_results, "cancelled": Reason.CANCELLED}
    rows = await fetchall(conn, RELEASE, columns(Release._fields, releases) | fence)
    return {(job_id, attempt): JobState(state) for job_id, attempt, state in rows}
