"""What each preset has to do, and who does it: counted as far as that is cheap, however many jobs there are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, LiteralString

from psycopg import AsyncConnection

from engine.db import fetchall, timed
from engine.moves.publish import KNOWN

COUNTED: Final = 50_000
"""Rows counted of each status, and of the ready ones in each lane; beyond that there are "at least so many"."""
MAX_PRESETS: Final = 100
"""Presets told apart: SQL may enqueue jobs of any name, and each would become a label."""
OTHER: Final = "other"

# For a connection with pinned plans: each part reads the head of one partial index.
_COUNTS: LiteralString = """, live AS MATERIALIZED (
    SELECT presets, slots, drained FROM workers WHERE expires_at > clock_timestamp()
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
SELECT preset, 'live', count(*), sum(slots), sum(coalesce((drained ->> preset)::float8, 0))
FROM live CROSS JOIN unnest(presets) AS preset
GROUP BY preset
UNION ALL
SELECT preset, status, sum(jobs), sum(due), extract(epoch FROM clock_timestamp() - min(since))::float8
FROM counted
GROUP BY preset, status
"""
LOOK: LiteralString = "WITH RECURSIVE" + KNOWN + _COUNTS


@dataclass(slots=True)
class Queue:
    """One preset: its unfinished jobs by status, those `due` and nobody's, the workers that would take them.

    `age_seconds` is since when the oldest due job has been due; `per_second` how many attempts end.
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


@dataclass(slots=True)
class Demand:
    """Every preset that has jobs or workers, and the live workers and their slots, each counted once."""

    queues: dict[str, Queue]
    workers: int
    slots: int

    @property
    def saturated(self) -> bool:
        """Whether there is hardly a slot left."""
        return sum(queue.leased for queue in self.queues.values()) >= 0.9 * self.slots


@timed("count jobs")
async def look(conn: AsyncConnection[Any]) -> Demand:
    """One statement. Beyond MAX_PRESETS, presets that no live worker has are shown as one, or, where all their jobs
    are ready, not at all.
    """
    rows = await fetchall(conn, LOOK, {"presets": MAX_PRESETS, "counted": COUNTED})
    demand = Demand({}, 0, 0)
    for preset, kind, first, second, figure in rows:
        if kind == "fleet":
            demand.workers, demand.slots = int(first), int(second)
            continue
        known = preset in demand.queues or kind == "live" or len(demand.queues) < MAX_PRESETS
        queue = demand.queues.setdefault(preset if known else OTHER, Queue())
        if kind == "live":
            queue.workers, queue.slots, queue.per_second = int(first), int(second), figure
        else:
            queue.jobs[kind] = queue.jobs.get(kind, 0) + int(first)
            queue.due += int(second)
            queue.age_seconds = max(queue.age_seconds, figure or 0.0)
    return demand
