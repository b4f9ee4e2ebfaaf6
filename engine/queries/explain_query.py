"""Reads what explaining a job takes in one statement: the job's row, the workers, the relays and the audit trail."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, LiteralString
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import class_row

from engine.model import JobState
from engine.storage.statements import timed
from engine.tables.relay_status import SILENT_SECONDS

COUNTED: Final = 10_000
"""The most jobs ahead that are counted. Beyond that the answer is "more than"."""
ERRORS_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class JobSnapshot:
    """Everything that the facts are drawn from.

    `worker_…` and `lease_until` describe the worker that holds the lease. `latest_errors` begin with the latest.
    `relay_…` describe the relay that does best with the topic of jobs, `relays_…` all relays, and `maintenance_…` the
    live relay whose maintenance does best.
    """

    state: JobState
    outbox_status: str | None
    preset: str
    attempt: int
    errors: int
    crashes: int
    suspicion: int
    max_attempts: int | None
    timeout_seconds: int | None
    cancel_requested: bool
    run_at: datetime
    due_seconds: float
    ready_at: datetime | None
    published_at: datetime | None
    claimed_at: datetime | None
    running_seconds: float | None
    completed_at: datetime | None
    latest_errors: list[dict[str, Any]]
    reason: str | None
    worker_id: int | None
    worker_name: str | None
    worker_live: bool | None
    lease_until: datetime | None
    fraction: float | None
    message: str | None
    workers: int
    per_second: float
    ahead: int | None
    relay_state: str | None
    relay_since: datetime | None
    relay_detail: str | None
    relay_heard_at: datetime | None
    relay_live: bool | None
    relays_heard_at: datetime | None
    relays_live: bool | None
    maintenance_state: str | None
    maintenance_since: datetime | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", JobState(self.state))

    @property
    def uncounted(self) -> bool:
        """Whether more than COUNTED jobs are ahead: the number is unknown, and for published jobs the presets too."""
        return self.ahead is not None and self.ahead > COUNTED


# Jobs ahead are those that a worker with this preset alone would take first. Other presets compete for the worker's
# slots too, but in no fixed order. Published jobs are taken roughly in the order in which they were published.
SNAPSHOT: LiteralString = """
SELECT s.state, s.outbox_status, s.preset, s.attempt, s.errors, s.crashes,
       coalesce(mine.suspicion, 0) AS suspicion, s.max_attempts, s.timeout_seconds,
       s.cancel_requested, s.run_at, extract(epoch FROM s.run_at - clock_timestamp())::double precision AS due_seconds,
       s.ready_at, s.published_at, mine.claimed_at, s.completed_at,
       extract(epoch FROM clock_timestamp() - mine.claimed_at)::double precision AS running_seconds,
       array(SELECT a.metadata -> 'error' FROM job_state_records a
             WHERE a.job_id = s.job_id AND a.metadata ? 'error' AND s.state <> 'COMPLETED'
             ORDER BY a.seq DESC LIMIT %(errors)s) AS latest_errors,
       (SELECT a.reason FROM job_state_records a WHERE a.job_id = s.job_id ORDER BY a.seq DESC LIMIT 1) AS reason,
       s.worker_id, w.name AS worker_name, w.expires_at > clock_timestamp() AS worker_live,
       w.expires_at AS lease_until, s.fraction, s.message, live.workers, live.per_second,
       CASE s.outbox_status
           WHEN 'ready' THEN (
               SELECT count(*) FROM (
                   SELECT FROM outbox o
                   WHERE o.status = 'ready' AND o.preset = s.preset
                     AND (o.priority, o.position) < (s.priority, mine.position)
                   LIMIT %(counted)s + 1) ahead)
           WHEN 'published' THEN (
               SELECT CASE WHEN count(*) > %(counted)s THEN count(*)
                           ELSE count(*) FILTER (WHERE ahead.preset = s.preset) END
               FROM (
                   SELECT o.preset FROM outbox o
                   WHERE o.status = 'published' AND o.published_at < s.published_at
                   LIMIT %(counted)s + 1) ahead)
       END AS ahead,
       r.state AS relay_state, r.since AS relay_since, r.detail AS relay_detail, r.updated_at AS relay_heard_at,
       r.live AS relay_live, relays.heard_at AS relays_heard_at, relays.live AS relays_live,
       maintenance.state AS maintenance_state, maintenance.since AS maintenance_since
FROM job_status s
LEFT JOIN outbox mine ON mine.job_id = s.job_id
LEFT JOIN workers w ON w.id = s.worker_id
CROSS JOIN LATERAL (
    SELECT count(*) AS workers, coalesce(sum((throughput ->> s.preset)::double precision), 0) AS per_second
    FROM workers WHERE s.preset = ANY (presets) AND expires_at > clock_timestamp()
) live
LEFT JOIN LATERAL (
    SELECT state, since, detail, updated_at,
           updated_at > clock_timestamp() - %(silent)s * interval '1 second' AS live
    FROM relay_status
    WHERE topic = 'jobs'
    ORDER BY live DESC, (state = 'publishing') DESC, updated_at DESC
    LIMIT 1
) r ON true
CROSS JOIN (
    SELECT max(updated_at) AS heard_at,
           max(updated_at) > clock_timestamp() - %(silent)s * interval '1 second' AS live
    FROM relay_status
) relays
LEFT JOIN LATERAL (
    SELECT state, since FROM relay_status
    WHERE topic = 'maintenance' AND updated_at > clock_timestamp() - %(silent)s * interval '1 second'
    ORDER BY (state = 'maintaining') DESC, updated_at DESC
    LIMIT 1
) maintenance ON true
WHERE s.job_id = %(id)s AND (%(owner)s::text IS NULL OR s.user_id = %(owner)s)
"""


@timed("explain")
async def job_snapshot(conn: AsyncConnection[Any], job_id: UUID, owner: str | None) -> JobSnapshot | None:
    """None if there is no such job, or if it belongs to another owner. `owner` None stands for an operator."""
    asked = {
        "id": job_id,
        "owner": owner,
        "counted": COUNTED,
        "errors": ERRORS_SHOWN,
        "silent": SILENT_SECONDS,
    }
    async with conn.cursor(row_factory=class_row(JobSnapshot)) as cursor:
        await cursor.execute(SNAPSHOT, asked)
        return await cursor.fetchone()
