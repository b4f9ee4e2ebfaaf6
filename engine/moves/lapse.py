"""Lapse: maintenance ends the attempts of workers that are gone, and charges a crash where it is clear to whom.

A worker that held one attempt died of that attempt, as far as anybody can tell: a crash is counted. Of several attempts
any may be why: none is charged, and each is suspected, see engine/moves/claim.py on how suspects run. An attempt that
ran in a process of its own cannot be why, and does not count: which those are, the worker has told in its row.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, LiteralString, NamedTuple
from uuid import UUID

from psycopg import AsyncConnection

from engine.model import MAX_CRASHES, MAX_SUSPICION, JobState, Reason
from engine.moves._exit import EXIT
from engine.storage.statements import fetchall, timed

# Of a worker of older code, which tells no lease, `expires_at` says how long its lease may be. A worker without a row
# never comes back, so its attempts may lapse whenever they are seen.
LOOK: LiteralString = """
SELECT id, expires_at,
       coalesce(lease_seconds,
                greatest(%(lease)s::float8, extract(epoch FROM expires_at - clock_timestamp())::float8))
FROM workers
UNION ALL
SELECT q.worker_id, NULL, %(lease)s::float8
FROM (SELECT DISTINCT worker_id FROM outbox WHERE status = 'leased') q
WHERE NOT EXISTS (SELECT FROM workers w WHERE w.id = q.worker_id)
"""

# A row that a heartbeat is renewing is locked, so it is skipped. A heartbeat that has come since the look has changed
# `expires_at`. One that comes later waits, and finds no row.
EXPIRE: LiteralString = """
DELETE FROM workers
WHERE id = ANY (ARRAY(
    SELECT w.id
    FROM unnest(%(ids)s::bigint[], %(seen)s::timestamptz[]) AS x(id, expires_at)
    JOIN workers w ON w.id = x.id AND w.expires_at = x.expires_at
    FOR UPDATE OF w SKIP LOCKED))
RETURNING id, name, apart
"""

# Names the dead workers instead of checking for "no live worker" again. If an outbox row changes its worker while this
# statement waits, PostgreSQL checks the new row against the old snapshot. There, a worker that has just registered is
# missing.
# `whole`: the worker's row was deleted in this transaction, so all that it held is here, locked rows included. Of what
# an earlier lapse left over nobody knows beside what it ran, and the living workers tell what runs apart.
LAPSE: LiteralString = (
    """
WITH apart AS MATERIALIZED (
    SELECT x.id, x.preset FROM unnest(%(apart_ids)s::bigint[], %(apart)s::text[]) AS x(id, preset)
    UNION
    SELECT x.id, preset
    FROM unnest(%(ids)s::bigint[], %(whole)s::boolean[]) AS x(id, whole), workers w, unnest(w.apart) AS preset
    WHERE NOT x.whole
), dead AS MATERIALIZED (
    SELECT x.id, x.whole,
           (SELECT count(*) FROM outbox o
            WHERE o.status = 'leased' AND o.worker_id = x.id
              AND (o.worker_id, o.preset) NOT IN (SELECT a.id, a.preset FROM apart a)) AS held
    FROM unnest(%(ids)s::bigint[], %(whole)s::boolean[]) AS x(id, whole)
), held AS MATERIALIZED (
    SELECT q.job_id, q.user_id, q.preset, q.attempt, q.version + 1 AS version, q.errors,
           q.crashes + d.charged AS crashes, q.run_at, q.claimed_at, 'PROCESSING'::job_state AS from_state,
           (CASE WHEN q.cancel_requested THEN 'CANCELLED'
                 WHEN q.crashes + d.charged >= %(max_crashes)s THEN 'FAILED'
                 ELSE 'PENDING' END)::job_state AS to_state,
           -- A job that died alone runs alone: next time it may take others along.
           CASE WHEN d.charged = 1 THEN %(max_suspicion)s
                WHEN d.apart THEN q.suspicion
                ELSE least(q.suspicion + 1, %(max_suspicion)s) END AS suspicion,
           NULL::timestamptz AS due_at,
           CASE WHEN d.charged = 1 THEN %(reason)s::text
                WHEN d.apart THEN %(lapsed_apart)s::text
                ELSE %(beside_others)s::text END AS reason,
           jsonb_build_object('type', 'WorkerLost', 'attempt', q.attempt, 'message',
                              'worker ' || d.id || ' stopped without an answer while '
                              || CASE WHEN d.charged = 1 THEN 'this attempt ran alone on it'
                                      WHEN d.apart THEN 'this attempt ran in a process of its own'
                                      WHEN d.whole THEN 'it ran ' || d.held || ' attempts'
                                      ELSE 'it ran this attempt and perhaps others' END
                              || coalesce('; the last step that it began: ' || p.step, '')
                              || coalesce('; the last progress of this one: '
                                          || round(p.fraction * 100) || ' percent ' || p.message, '')) AS error,
           'WorkerLost' AS fingerprint, clock_timestamp() AS finished_at, d.id AS worker_id, d.charged,
           coalesce(nullif(p.message, ''), p.step) AS progress
    FROM dead
    JOIN outbox q ON q.status = 'leased' AND q.worker_id = dead.id
    CROSS JOIN LATERAL (
        SELECT dead.id, dead.whole, dead.held, apart, (dead.whole AND dead.held = 1 AND NOT apart)::integer AS charged
        FROM (SELECT (dead.id, q.preset) IN (SELECT a.id, a.preset FROM apart a) AS apart) x) d
    LEFT JOIN job_progress p ON p.job_id = q.job_id AND p.attempt = q.attempt
    ORDER BY q.job_id
    FOR UPDATE OF q SKIP LOCKED
)"""  # noqa: S608 - constants alone
    + EXIT
    + "SELECT job_id, preset, attempt, to_state, worker_id, charged = 1, progress FROM held"
)


class Sighting(NamedTuple):
    """A worker as a look saw it. `expires_at` changes with each heartbeat; None if the worker has no row any more."""

    worker_id: int
    expires_at: datetime | None
    lease_seconds: float


class Lapsed(NamedTuple):
    """An attempt whose worker is gone, and the state that its job went to.

    `worker` is the worker's id, followed by its name unless another process has deleted the worker's row. `charged`
    says whether a crash was counted. `progress` is the last message that the attempt reported, or else the
    last step that it began, if any.
    """

    job_id: UUID
    preset: str
    attempt: int
    state: JobState
    worker: str
    charged: bool
    progress: str | None


async def look(conn: AsyncConnection[Any], lease_seconds: float) -> list[Sighting]:
    """All workers, and those that are gone but still hold attempts. `lease_seconds`: the lease where none is known."""
    return [Sighting(*row) for row in await fetchall(conn, LOOK, {"lease": lease_seconds})]


@timed("lapse")
async def lapse(
    conn: AsyncConnection[Any],
    dead: Sequence[Sighting],
    *,
    publish_results: bool = False,
) -> list[Lapsed]:
    """Delete the rows of those `dead` workers that are still as they were seen, and lapse their attempts.

    Both or neither: a lapse that fails must leave the rows, or workers that live would find theirs gone. Rows of
    attempts that somebody has locked are left over for a later look.
    """
    async with conn.transaction():
        seen = {each.worker_id: each.expires_at for each in dead if each.expires_at is not None}
        expire = {"ids": list(seen), "seen": list(seen.values())}
        expired = await fetchall(conn, EXPIRE, expire) if seen else []
        names: dict[int, str] = {worker_id: name for worker_id, name, _ in expired}
        ran_apart = [(worker_id, preset) for worker_id, _, presets in expired for preset in presets]
        gone = [*names, *(each.worker_id for each in dead if each.expires_at is None)]
        parameters = {
            "ids": gone,
            "whole": [worker_id in names for worker_id in gone],
            "max_crashes": MAX_CRASHES,
            "max_suspicion": MAX_SUSPICION,
            "publish_results": publish_results,
            "reason": Reason.LAPSED,
            "beside_others": Reason.LAPSED_BESIDE_OTHERS,
            "apart_ids": [worker_id for worker_id, _ in ran_apart],
            "apart": [preset for _, preset in ran_apart],
            "lapsed_apart": Reason.LAPSED_APART,
        }
        rows = await fetchall(conn, LAPSE, parameters) if gone else []
    return [
        Lapsed(job_id, preset, attempt, JobState(state), _label(worker_id, names), charged, progress)
        for job_id, preset, attempt, state, worker_id, charged, progress in rows
    ]


def _label(worker_id: int, names: dict[int, str]) -> str:
    return f"{worker_id} {names.get(worker_id, '')}".rstrip()
