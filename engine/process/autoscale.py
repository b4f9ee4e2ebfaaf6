"""The answer of `/autoscale`: the backlog, and how many workers would work it off in time.

The database is read at most every few seconds, however often the answer is requested.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import structlog
from psycopg import Error

from engine.errors import DatabaseUnavailable
from engine.queries.queue_stats import Queue, QueueStats, queue_stats
from engine.settings import Settings
from engine.storage.connections import PinnedConnection
from engine.storage.faults import by_blame
from engine.storage.throttle import Throttle
from engine.telemetry.throughput import WINDOW_SECONDS

LOOK_SECONDS: Final = 3.0
MAX_LOOK_SECONDS: Final = 1.5
"""The most that a look counts for in the throttle, so that an answer is not stale before the next look."""
STALE_SECONDS: Final = 60.0
DEADLINE_SECONDS: Final = 5.0
PATIENCE_SECONDS: Final = 1.0
TARGET_SECONDS: Final = 60.0
"""The time within which a backlog should be worked off."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Sampled:
    answer: dict[str, Any]
    at: float


class Autoscale:
    """The latest answer, renewed by one look at a time. The first request opens the connection."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._conn: PinnedConnection | None = None
        self._last: Sampled | None = None
        self._throttle = Throttle(LOOK_SECONDS, most=MAX_LOOK_SECONDS)
        self._looking: asyncio.Task[None] | None = None

    async def answer(self) -> dict[str, Any]:
        """The latest answer. Raises DatabaseUnavailable if no look of the last minute succeeded."""
        if self._last is None or self._throttle.due:
            if self._looking is None:
                self._looking = asyncio.create_task(self._look())
                self._looking.add_done_callback(self._looked)
            # An answer that is fresh enough need not wait for a slow database.
            fresh = self._last is not None and time.monotonic() - self._last.at < STALE_SECONDS / 2
            await asyncio.wait([self._looking], timeout=PATIENCE_SECONDS if fresh else None)
        if self._last is None or time.monotonic() - self._last.at > STALE_SECONDS:
            raise DatabaseUnavailable("the database could not be read within the last minute")
        return self._last.answer

    def _looked(self, looking: asyncio.Task[None]) -> None:
        self._looking = None
        if not looking.cancelled() and (error := looking.exception()):
            log_at = by_blame(log, error)
            log_at("autoscale.failed")

    async def _look(self) -> None:
        if self._conn is None:
            self._conn = PinnedConnection(self._settings.database(), name="autoscale")
        try:
            async with self._conn.use(DEADLINE_SECONDS) as conn:
                began = time.monotonic()
                stats = await queue_stats(conn)
        except (DatabaseUnavailable, Error):
            # The time of a failed look says nothing about the cost of a look, so it counts as 0.
            self._throttle.ended(time.monotonic())
            raise
        self._throttle.ended(began)
        self._last = Sampled(advice(stats, datetime.now(UTC)), time.monotonic())

    async def aclose(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])
        if self._conn is not None:
            await self._conn.aclose()


def advice(stats: QueueStats, now: datetime) -> dict[str, Any]:
    """The answer from one look. `backlog` counts jobs that are due and not leased, `desired_workers` processes."""
    needs = {name: needed(queue, saturated=stats.saturated) for name, queue in sorted(stats.queues.items())}
    served = [need for name, need in needs.items() if stats.queues[name].slots]
    # All presets without a worker count as one worker together. Each worker runs every preset of its deployment, and a
    # preset that no deployment knows must not hold more than one.
    unserved = any(need for name, need in needs.items() if not stats.queues[name].slots)
    return {
        "presets": {
            name: {
                "backlog": stats.queues[name].due,
                "oldest_age_seconds": round(stats.queues[name].age_seconds, 3),
                "drain_per_second": round(stats.queues[name].per_second, 3),
                "desired_workers": rounded(need),
            }
            for name, need in needs.items()
        },
        "backlog": sum(queue.due for queue in stats.queues.values()),
        "desired_workers": rounded(sum(served) + unserved),
        "sampled_at": now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    }


def needed(queue: Queue, *, saturated: bool) -> float:
    """The workers that a preset can use, in fractions of one: those that run its jobs now, and more for the backlog.

    Each worker is expected to keep the throughput of the busy ones, and the backlog should last at most TARGET_SECONDS.
    More slots than jobs are of no use. The throughput is unknown if fewer attempts end within WINDOW_SECONDS than are
    running, as with long jobs: then the workers are doubled as long as all of them are busy, and none is removed.
    """
    if not queue.due and not queue.leased:
        return 0.0
    if not queue.slots:
        return 1.0
    each = queue.slots / queue.workers
    busy = queue.leased / each
    if not queue.due:
        return busy
    useful = (queue.due + queue.leased) / each
    if queue.per_second * WINDOW_SECONDS < max(queue.leased, 1):
        return min(useful, max(2 * busy if saturated else busy, queue.workers))
    throughput = queue.per_second / (min(busy, queue.workers) or queue.workers)
    return min(useful, busy + queue.due / (TARGET_SECONDS * throughput))


def rounded(workers: float) -> int:
    """Whole workers: at least one if there is work, none if there is not."""
    return math.ceil(workers - 1e-9)
