"""What a worker writes of its attempts: results, and jobs put back. Fenced by (job_id, attempt, worker_id)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, LiteralString, NamedTuple
from uuid import UUID

from psycopg import AsyncConnection

from engine.db import array, bare_array, fetchall, timed
from engine.events import ANNOUNCE
from engine.model import JobState
from engine.moves.leave import LEAVE

BARE = frozenset({"job_id", "attempt", "state", "spent"})


class Ending(NamedTuple):
    """A result to be written. `output`, `error` and `metadata` are JSON text; `spent` errors are added."""

    job_id: UUID
    attempt: int
    state: JobState
    reason: str
    output: str | None = None
    error: str | None = None
    fingerprint: str | None = None
    metadata: str = "{}"
    spent: int = 0


class PutBack(NamedTuple):
    """A job given back: to wait `delay` seconds, or to its old place in the queue when None."""

    job_id: UUID
    attempt: int
    reason: str
    delay: float | None = None
    error: str | None = None
    spent: int = 0


# The WHERE must not repeat `status = 'leased'`: with a partial index's predicate in it the planner may scan every
# leased and dead entry of that index instead of the primary key (187 µs a job instead of 10).
# It gives the attempts that it did not find: as a rule none, where reading back every id cost 3 µs a job.
FINISH: LiteralString = (
    """
WITH done AS (
    DELETE FROM outbox q
    USING unnest(%(id)s::uuid[], %(attempt)s::integer[], %(state)s::job_state[], %(reason)s::text[],
                 %(output)s::text[], %(error)s::text[], %(fingerprint)s::text[], %(metadata)s::text[],
                 %(spent)s::smallint[])
          AS x(id, attempt, state, reason, output, error, fingerprint, metadata, spent)
    WHERE q.job_id = x.id AND q.attempt = x.attempt AND q.worker_id = %(worker_id)s
    RETURNING q.job_id, q.user_id, q.attempt, q.version + 1 AS version, q.errors + x.spent AS errors, q.crashes,
              q.run_at, q.claimed_at, x.state, x.reason, x.output, x.error, x.fingerprint, x.metadata,
              clock_timestamp() AS finished_at
), result AS (
    INSERT INTO job_results (job_id, user_id, state, output, error, error_fingerprint, execution_metadata, attempt,
                             errors, crashes, version, run_at, started_at, finished_at)
    SELECT job_id, user_id, state, output::json, error::jsonb, fingerprint, metadata::jsonb, attempt, errors,
           crashes, version, run_at, claimed_at, finished_at
    FROM done
), audit AS (
    INSERT INTO job_state_records (job_id, seq, from_state, to_state, attempt, reason, metadata)
    SELECT job_id, version, 'PROCESSING', state, attempt, reason,
           CASE WHEN error IS NOT NULL THEN jsonb_build_object('error', error::jsonb) END
    FROM done
), ended AS (
    SELECT job_id, user_id, attempt, version, state, output::json, error::jsonb, reason,
           finished_at - claimed_at AS ran, finished_at
    FROM done
)"""  # noqa: S608 - constants alone
    + ANNOUNCE
    + """
SELECT id, attempt FROM unnest(%(id)s::uuid[], %(attempt)s::integer[]) AS x(id, attempt)
WHERE (id, attempt) NOT IN (SELECT job_id, attempt FROM done)
"""
)

PUT_BACK: LiteralString = (
    """
WITH held AS MATERIALIZED (
    SELECT q.job_id, q.user_id, q.attempt, q.version + 1 AS version, q.errors + x.spent AS errors, q.crashes,
           q.run_at, q.claimed_at, 'PROCESSING'::job_state AS from_state,
           (CASE WHEN q.cancel_requested THEN 'CANCELLED' ELSE 'PENDING' END)::job_state AS to_state,
           clock_timestamp() + x.delay * interval '1 second' AS due_at,
           CASE WHEN q.cancel_requested THEN 'cancelled' ELSE x.reason END AS reason, x.error::jsonb AS error,
           NULL AS fingerprint, clock_timestamp() AS finished_at
    FROM unnest(%(id)s::uuid[], %(attempt)s::integer[], %(reason)s::text[], %(delay)s::double precision[],
                %(error)s::text[], %(spent)s::smallint[])
         AS x(id, attempt, reason, delay, error, spent)
    JOIN outbox q ON q.job_id = x.id AND q.attempt = x.attempt AND q.worker_id = %(worker_id)s
    ORDER BY q.job_id
    FOR UPDATE OF q
)"""  # noqa: S608 - constants alone
    + LEAVE
    + "SELECT job_id, attempt, to_state FROM held"
)

# A lapse also ends an attempt, and so does a worker that gives up what it had under a lost lease: that is no outcome.
RECORDED: LiteralString = """
SELECT a.job_id, a.attempt, a.to_state
FROM unnest(%(id)s::uuid[], %(attempt)s::integer[]) AS x(id, attempt)
JOIN job_state_records a ON a.job_id = x.id AND a.attempt = x.attempt
WHERE a.from_state = 'PROCESSING' AND a.reason NOT IN ('lapsed', 'lease lost')
"""

Recorded = dict[tuple[UUID, int], JobState]
"""(job_id, attempt) → the state that its worker's outcome left the job in."""


@timed("finish")
async def finish(
    conn: AsyncConnection[Any], worker_id: int, endings: Sequence[Ending], *, announce: bool = False
) -> Recorded:
    """Write results, and with `announce` the events that tell Pub/Sub of them.

    An attempt missing from the answer is lost: nothing was written for it.
    """
    fence = {"worker_id": worker_id, "announce": announce}
    lost = await fetchall(conn, FINISH, _columns(Ending._fields, endings) | fence)
    done = {(each.job_id, each.attempt): each.state for each in endings}
    for key in lost:
        done.pop(key, None)
    return done


@timed("put back")
async def put_back(
    conn: AsyncConnection[Any], worker_id: int, returns: Sequence[PutBack], *, announce: bool = False
) -> Recorded:
    """Give jobs back; one whose cancellation was asked for becomes CANCELLED instead, and with `announce` says so.

    An attempt missing from the answer is lost: nothing was written for it.
    """
    fence = {"worker_id": worker_id, "announce": announce}
    return await _answer(conn, PUT_BACK, _columns(PutBack._fields, returns) | fence)


@timed("find recorded")
async def recorded(conn: AsyncConnection[Any], attempts: Sequence[tuple[UUID, int]]) -> Recorded:
    """Which of these (job_id, attempt) a worker has ended already.

    Asked after a connection broke at COMMIT, to tell what was written from what was lost.
    """
    ids, numbers = zip(*attempts, strict=True)
    return await _answer(conn, RECORDED, {"id": bare_array(ids), "attempt": bare_array(numbers)})


async def _answer(
    conn: AsyncConnection[Any], statement: LiteralString, parameters: dict[str, object]
) -> Recorded:
    rows = await fetchall(conn, statement, parameters)
    return {(job_id, attempt): JobState(state) for job_id, attempt, state in rows}


def _columns(names: Sequence[str], rows: Sequence[tuple[object, ...]]) -> dict[str, object]:
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    literals: dict[str, object] = {
        name: (bare_array if name in BARE else array)(column) for name, column in columns.items()
    }
    literals["id"] = literals.pop("job_id")
    return literals
