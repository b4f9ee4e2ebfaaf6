"""Finish: a worker writes results and deletes their outbox rows, fenced by (job_id, attempt, worker_id)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, LiteralString, NamedTuple
from uuid import UUID

from psycopg import AsyncConnection

from engine.model import JobState, Reason
from engine.storage.literals import array, bare_array, uuid_array
from engine.storage.statements import fetchall, timed
from engine.tables.events import RESULT_EVENTS

BARE: Final = frozenset({"attempt", "state", "reason", "spent"})
"""Columns whose values need no quotes in an array literal: numbers, and words with blanks between them at most."""


class Ending(NamedTuple):
    """A result to be written. `output`, `error` and `metadata` are JSON text; `spent` is added to the job's errors."""

    job_id: UUID
    attempt: int
    state: JobState
    reason: Reason
    output: str | None = None
    error: str | None = None
    fingerprint: str | None = None
    metadata: str = "{}"
    spent: int = 0


# The WHERE must not repeat `status = 'leased'`. With the predicate of a partial index in it, the planner may scan every
# leased and dead entry of that index instead of the primary key (187 µs a job instead of 10).
# The answer names the attempts that were not found, as a rule none. Returning every id cost 3 µs a job.
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
    + RESULT_EVENTS
    + """
SELECT id, attempt FROM unnest(%(id)s::uuid[], %(attempt)s::integer[]) AS x(id, attempt)
WHERE (id, attempt) NOT IN (SELECT job_id, attempt FROM done)
"""
)

# The trail begins with the enqueue, and every earlier attempt has at least two rows, its start and its end. The end of
# attempt n therefore has at least the `seq` 2n, and a long history is not read up to there.
RECORDED: LiteralString = """
SELECT a.job_id, a.attempt, a.to_state
FROM unnest(%(id)s::uuid[], %(attempt)s::integer[]) AS x(id, attempt)
JOIN job_state_records a ON a.job_id = x.id AND a.seq >= 2 * x.attempt AND a.attempt = x.attempt
WHERE a.from_state = 'PROCESSING' AND a.reason = ANY (%(outcomes)s::text[])
"""
OUTCOMES: Final = [reason for reason in Reason if reason.ends_attempt]

Recorded = dict[tuple[UUID, int], JobState]
"""(job_id, attempt) → the state in which the worker's outcome left the job."""


@timed("finish")
async def finish(
    conn: AsyncConnection[Any], worker_id: int, endings: Sequence[Ending], *, publish_results: bool = False
) -> Recorded:
    """Write results, and with `publish_results` also the events that publish them.

    An attempt that is missing from the answer is lost: nothing was written for that attempt.
    """
    fence = {"worker_id": worker_id, "publish_results": publish_results}
    lost = await fetchall(conn, FINISH, columns(Ending._fields, endings) | fence)
    done = {(each.job_id, each.attempt): each.state for each in endings}
    for key in lost:
        done.pop(key, None)
    return done


@timed("find recorded")
async def recorded(conn: AsyncConnection[Any], attempts: Sequence[tuple[UUID, int]]) -> Recorded:
    """Those of `attempts` (job_id, attempt) that have an outcome of their own worker in the audit trail.

    A caller whose connection broke at COMMIT learns from the answer what was written. A lapse and a release after a
    lost lease end an attempt as well, but they are no outcomes.
    """
    ids, numbers = zip(*attempts, strict=True)
    asked = {"id": bare_array(ids), "attempt": bare_array(numbers), "outcomes": OUTCOMES}
    rows = await fetchall(conn, RECORDED, asked)
    return {(job_id, attempt): JobState(state) for job_id, attempt, state in rows}


def columns(names: Sequence[str], rows: Sequence[tuple[object, ...]]) -> dict[str, object]:
    """One array literal for each column of `rows`. The column `job_id` is passed as `id`."""
    by_name: dict[str, Any] = dict(zip(names, zip(*rows, strict=True), strict=True))
    literals: dict[str, object] = {"id": uuid_array(by_name.pop("job_id"))}
    for name, column in by_name.items():
        literals[name] = bare_array(column) if name in BARE else array(column)
    return literals
