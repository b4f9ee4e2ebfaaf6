"""Counts unfinished jobs, events and live workers. No other module counts them.

`queue_stats` and `event_stats` run every few seconds, so they look only as far as is cheap, however many rows there
are. The other functions serve an operator; `job_counts` and `event_counts` read every row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, LiteralString, NamedTuple

from psycopg import AsyncConnection
from psycopg.rows import class_row

from engine.storage.statements import fetchall, timed
from engine.tables.events import TOPICS
from engine.tables.outbox import READY_PRESETS

COUNTED: Final = 50_000
"""The most rows counted of each status, of ready rows in each lane, and of events in each topic. A full count means "at
least"."""
MAX_PRESETS: Final = 100
"""The most presets counted apart. SQL may enqueue jobs of any preset, and each would become a metric's label."""
OTHER: Final = "other"
OVERDUE_SECONDS: Final = 5.0
"""Maintenance promotes due jobs several times a second. A job that still waits after this time is overdue."""
OVERDUE_COUNTED: Final = 10_000

# For a connection with pinned plans: each part reads the head of one partial index.
_COUNTS: LiteralString = """, live AS MATERIALIZED (
    SELECT presets, slots, throughput FROM workers WHERE expires_at > clock_timestamp()
), asked(preset) AS (
    SELECT unnest(presets) FROM live
    UNION
    (SELECT preset FROM known WHERE preset IS NOT NULL LIMIT %(presets)s)
), counted(preset, status, jobs, due, since) AS (
    SELECT asked.preset, 'ready', lane.jobs, lane.jobs, lane.since
    FROM asked
    CROSS JOIN generate_series(1, 4) AS urgency
    CROSS JOIN LATERAL (
        SELECT count(*) AS jobs, min(ready_at) AS since
        FROM (SELECT ready_at FROM outbox
              WHERE status = 'ready' AND preset = asked.preset AND priority = urgency::smallint
              ORDER BY position
              LIMIT %(counted)s) head) lane
    UNION ALL
    SELECT preset, 'published', count(*), count(*), min(ready_at)
    FROM (SELECT preset, ready_at FROM outbox WHERE status = 'published' ORDER BY published_at
          LIMIT %(counted)s) published
    GROUP BY preset
    UNION ALL
    SELECT preset, 'waiting', count(*), count(*) FILTER (WHERE run_at <= now()),
           min(run_at) FILTER (WHERE run_at <= now())
    FROM (SELECT preset, run_at FROM outbox WHERE status = 'waiting' ORDER BY run_at LIMIT %(counted)s) waiting
    GROUP BY preset
    UNION ALL
    SELECT preset, 'leased', count(*), 0, NULL
    FROM (SELECT preset FROM outbox WHERE status = 'leased' LIMIT %(counted)s) leased
    GROUP BY preset
)
SELECT NULL, 'fleet', count(*), coalesce(sum(slots), 0), NULL::float8 FROM live
UNION ALL
SELECT preset, 'live', count(*), sum(slots), sum(coalesce((throughput ->> preset)::float8, 0))
FROM live CROSS JOIN unnest(presets) AS preset
GROUP BY preset
UNION ALL
SELECT preset, status, sum(jobs), sum(due), extract(epoch FROM clock_timestamp() - min(since))::float8
FROM counted
GROUP BY preset, status
"""
QUEUES: LiteralString = "WITH RECURSIVE " + READY_PRESETS + _COUNTS


# The pending events of each topic are read by their index, in the order in which they were written.
EVENTS: LiteralString = """
SELECT topic, pending.events, extract(epoch FROM clock_timestamp() - pending.oldest)::float8, quarantined.events,
       pending.set_back
FROM unnest(%(topics)s::text[]) AS topic
CROSS JOIN LATERAL (
    SELECT count(*) AS events, min(created_at) AS oldest, count(*) FILTER (WHERE failures > 0) AS set_back
    FROM (SELECT created_at, failures FROM outbox_events e WHERE e.topic = topic.topic AND quarantined_at IS NULL
          ORDER BY id LIMIT %(limit)s) head) pending
CROSS JOIN LATERAL (
    SELECT count(*) AS events
    FROM (SELECT FROM outbox_events e WHERE e.topic = topic.topic AND quarantined_at IS NOT NULL
          LIMIT %(limit)s) head) quarantined
"""


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
       count(*) FILTER (WHERE quarantined_at IS NULL AND failures > 0) AS set_back,
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


@dataclass(slots=True)
class Queue:
    """One preset: unfinished jobs by status, how many are `due` and not leased, and the live workers of the preset.

    `age_seconds` is how long the oldest due job has been due; `per_second` is how many attempts end.
    """

    jobs: dict[str, int] = field(default_factory=dict)
    due: int = 0
    age_seconds: float = 0.0
    workers: int = 0
    slots: int = 0
    per_second: float = 0.0

    @property
    def leased(self) -> int:
        return self.jobs.get("leased", 0)

    @property
    def later(self) -> int:
        """Jobs that are not due yet."""
        return sum(self.jobs.values()) - self.leased - self.due


@dataclass(slots=True)
class QueueStats:
    """Every preset that has jobs or workers. `workers` and `slots` count each live worker once."""

    queues: dict[str, Queue]
    workers: int
    slots: int

    @property
    def saturated(self) -> bool:
        """Whether at least nine tenths of the slots are leased."""
        return sum(queue.leased for queue in self.queues.values()) >= 0.9 * self.slots


class EventStats(NamedTuple):
    """The events of one topic: how many are pending, the age of the oldest of these, and how many are quarantined.

    `set_back` are those of the pending ones that have failed alone.
    """

    pending: int
    age_seconds: float
    quarantined: int
    set_back: int


@dataclass(frozen=True, slots=True)
class JobCount:
    """The unfinished jobs of one preset in one status. `oldest` is since when the oldest of them has that status.

    For waiting jobs `oldest` is when the first is due, so `age_seconds` is negative before that time. `overdue` counts
    waiting jobs that were due more than OVERDUE_SECONDS ago.
    """

    preset: str
    status: str
    jobs: int
    overdue: int
    oldest: datetime
    age_seconds: float


@dataclass(frozen=True, slots=True)
class EventCount:
    """The events of one topic: how many are pending, when the oldest of them was written, how many are quarantined.

    `set_back` are those of the pending ones that have failed alone.
    """

    topic: str
    events: int
    quarantined: int
    set_back: int
    oldest: datetime | None


class Overdue(NamedTuple):
    """The number of overdue jobs, counted up to OVERDUE_COUNTED, and for how many seconds the first has been due."""

    jobs: int
    seconds: float


@timed("count jobs")
async def queue_stats(conn: AsyncConnection[Any]) -> QueueStats:
    """The figures of all presets, by one statement.

    Beyond MAX_PRESETS, presets that no live worker runs are summed up as OTHER. Presets beyond that limit whose jobs
    are all ready are not counted.
    """
    rows = await fetchall(conn, QUEUES, {"presets": MAX_PRESETS, "counted": COUNTED})
    stats = QueueStats({}, 0, 0)
    for preset, kind, first, second, figure in rows:
        if kind == "fleet":
            stats.workers, stats.slots = int(first), int(second)
            continue
        known = preset in stats.queues or kind == "live" or len(stats.queues) < MAX_PRESETS
        queue = stats.queues.setdefault(preset if known else OTHER, Queue())
        if kind == "live":
            queue.workers, queue.slots, queue.per_second = int(first), int(second), figure
        else:
            queue.jobs[kind] = queue.jobs.get(kind, 0) + int(first)
            queue.due += int(second)
            queue.age_seconds = max(queue.age_seconds, figure or 0.0)
    return stats


@timed("count events")
async def event_stats(conn: AsyncConnection[Any]) -> Mapping[str, EventStats]:
    """The figures of every topic, with or without events."""
    rows = await fetchall(conn, EVENTS, {"topics": list(TOPICS), "limit": COUNTED})
    return {
        topic: EventStats(pending, age or 0.0, quarantined, set_back)
        for topic, pending, age, quarantined, set_back in rows
    }


async def job_counts(conn: AsyncConnection[Any]) -> list[JobCount]:
    async with conn.cursor(row_factory=class_row(JobCount)) as cursor:
        await cursor.execute(JOB_COUNTS, [OVERDUE_SECONDS])
        return await cursor.fetchall()


async def event_counts(conn: AsyncConnection[Any]) -> list[EventCount]:
    async with conn.cursor(row_factory=class_row(EventCount)) as cursor:
        await cursor.execute(EVENT_COUNTS)
        return await cursor.fetchall()


async def overdue(conn: AsyncConnection[Any]) -> Overdue:
    """The overdue jobs. Reads the head of one index only."""
    [(jobs, seconds)] = await fetchall(conn, OVERDUE, [OVERDUE_SECONDS, OVERDUE_COUNTED])
    return Overdue(jobs, seconds)
