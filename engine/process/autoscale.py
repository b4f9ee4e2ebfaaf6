"""What `/autoscale` answers: how much there is to do, and how many workers would do it in time.

However often it is asked, the database is looked at every few seconds at the most.
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
from engine.storage.throttle import Throttle
from engine.telemetry.throughput import WINDOW_SECONDS

LOOK_SECONDS: Final = 3.0
MAX_LOOK_SECONDS: Final = 1.5
"""What a look is taken to cost at most: its answer must not grow stale before the next one."""
STALE_SECONDS: Final = 60.0
DEADLINE_SECONDS: Final = 5.0
PATIENCE_SECONDS: Final = 1.0
TARGET_SECONDS: Final = 60.0
"""Within which a backlog should be worked off."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Sampled:
    answer: dict[str, Any]
    at: float


class Autoscale:
    """The latest answer, renewed by one look at a time. It connects when it is first asked."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._conn: PinnedConnection | None = None
        self._last: Sampled | None = None
        self._throttle = Throttle(LOOK_SECONDS, most=MAX_LOOK_SECONDS)
        self._looking: asyncio.Task[None] | None = None

    async def answer(self) -> dict[str, Any]:
        """Raises DatabaseUnavailable when there is no look of the last minute."""
        if self._last is None or self._throttle.due:
            if self._looking is None:
                self._looking = asyncio.create_task(self._look())
                self._looking.add_done_callback(self._looked)
            # An answer that is fresh enough need not wait for a database that is slow today.
            fresh = self._last is not None and time.monotonic() - self._last.at < STALE_SECONDS / 2
            await asyncio.wait([self._looking], timeout=PATIENCE_SECONDS if fresh else None)
        if self._last is None or time.monotonic() - self._last.at > STALE_SECONDS:
            raise DatabaseUnavailable("the database has not been looked at for a minute")
        return self._last.answer

    def _looked(self, looking: asyncio.Task[None]) -> None:
        self._looking = None
        if not looking.cancelled() and (error := looking.exception()):
            log.warning("autoscale.failed", error=f"{type(error).__name__}: {error}".strip())

    async def _look(self) -> None:
        if self._conn is None:
            self._conn = PinnedConnection(self._settings.database(), name="autoscale")
        try:
            async with self._conn.use(DEADLINE_SECONDS) as conn:
                began = time.monotonic()
                stats = await queue_stats(conn)
        except (DatabaseUnavailable, Error):
            self._throttle.ended(time.monotonic())  # a look that failed does not tell what a look costs
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
    """The answer to a look: `backlog` is of jobs that are due and nobody's, `desired_workers` of whole processes."""
    needs = {name: needed(queue, saturated=stats.saturated) for name, queue in sorted(stats.queues.items())}
    served = [need for name, need in needs.items() if stats.queues[name].slots]
    # Whatever has no worker yet is one worker's: each runs every preset of its deployment, and one that nobody knows
    # must not hold more.
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
    """The workers that a preset can use, in fractions of one: those that run its jobs now, and for its backlog more.

    A worker is expected to go on at the throughput of those that are busy, and the backlog should last at most
    TARGET_SECONDS. More slots than jobs are of no use. The throughput is unknown where fewer attempts end within
    WINDOW_SECONDS than are busy, as with long jobs: then the workers are doubled for as long as all of them are busy,
    and none is let go.
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
    """Whole workers: at least one where there is anything to do, none where there is not."""
    return math.ceil(workers - 1e-9)
