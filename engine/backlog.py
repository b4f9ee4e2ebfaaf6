"""What the engine still owes, counted: jobs by preset and status, events by topic.

All but `overdue` reads every row.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, LiteralString, NamedTuple

from psycopg import AsyncConnection
from psycopg.rows import class_row

from engine.db import fetchall

OVERDUE_SECONDS: Final = 5.0
"""Maintenance looks for due jobs several times a second: one that waits for so long more is overdue."""
OVERDUE_COUNTED: Final = 10_000


@dataclass(frozen=True, slots=True)
class JobCount:
    """The unfinished jobs of one preset in one status, and since when the oldest of them is in it.

    Of waiting jobs `oldest` is the time when the first is due, so that its age is negative before; `overdue` are
    those that should have been promoted long since.
    """

    preset: str
    status: str
    jobs: int
    overdue: int
    oldest: datetime
    age_seconds: float


@dataclass(frozen=True, slots=True)
class EventCount:
    """The events that have still to be published to one topic, since when the oldest has, and those set aside."""

    topic: str
    events: int
    quarantined: int
    oldest: datetime | None


class Overdue(NamedTuple):
    """Waiting jobs that maintenance should have promoted, counted up to OVERDUE_COUNTED, and by how much the first."""

    jobs: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Quarantined:
    """An event that the broker will never take, and what it said of it."""

    id: int
    topic: str
    message_id: str | None
    job_id: str | None
    reason: str | None
    quarantined_at: datetime


JOB_COUNTS: LiteralString = """
SELECT preset, status, jobs, overdue, oldest, extract(epoch FROM now() - oldest)::float8 AS age_seconds
FROM (
    SELECT preset, status::text AS status, count(*) AS jobs,
           count(*) FILTER (WHERE status = 'waiting' AND run_at < now() - %s * interval '1 second') AS overdue,
           min(CASE status WHEN 'waiting' THEN run_at
                           WHEN 'ready' THEN ready_at
                           WHEN 'published' THEN published_at
                           ELSE claimed_at END) AS oldest
    FROM outbox
    GROUP BY preset, outbox.status
    ORDER BY preset, outbox.status
) counted
"""

EVENT_COUNTS: LiteralString = """
SELECT topic, count(*) FILTER (WHERE quarantined_at IS NULL) AS events, count(quarantined_at) AS quarantined,
       min(created_at) FILTER (WHERE quarantined_at IS NULL) AS oldest
FROM outbox_events
GROUP BY topic
ORDER BY topic
"""

OVERDUE: LiteralString = """
SELECT count(*), coalesce(extract(epoch FROM now() - min(run_at)), 0)::float8
FROM (SELECT run_at FROM outbox WHERE status = 'waiting' AND run_at < now() - %s * interval '1 second'
      ORDER BY run_at LIMIT %s) head
"""

QUARANTINED: LiteralString = """
SELECT id, topic, attributes ->> 'message_id' AS message_id, attributes ->> 'job_id' AS job_id, reason, quarantined_at
FROM outbox_events
WHERE quarantined_at IS NOT NULL
ORDER BY quarantined_at DESC, id DESC
LIMIT %s
"""


async def job_counts(conn: AsyncConnection[Any]) -> list[JobCount]:
    async with conn.cursor(row_factory=class_row(JobCount)) as cursor:
        await cursor.execute(JOB_COUNTS, [OVERDUE_SECONDS])
        return await cursor.fetchall()


async def event_counts(conn: AsyncConnection[Any]) -> list[EventCount]:
    async with conn.cursor(row_factory=class_row(EventCount)) as cursor:
        await cursor.execute(EVENT_COUNTS)
        return await cursor.fetchall()


async def overdue(conn: AsyncConnection[Any]) -> Overdue:
    """Reads the head of one index."""
    [(jobs, seconds)] = await fetchall(conn, OVERDUE, [OVERDUE_SECONDS, OVERDUE_COUNTED])
    return Overdue(jobs, seconds)


async def quarantined(conn: AsyncConnection[Any], limit: int) -> list[Quarantined]:
    """The latest of them."""
    async with conn.cursor(row_factory=class_row(Quarantined)) as cursor:
        await cursor.execute(QUARANTINED, [limit])
        return await cursor.fetchall()
