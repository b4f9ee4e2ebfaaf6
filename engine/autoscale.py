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

from engine.db import HotConnection
from engine.demand import Demand, Queue, look
from engine.errors import DatabaseUnavailable
from engine.pace import WINDOW_SECONDS
from engine.settings import Settings

LOOK_SECONDS: Final = 3.0
LOOK_COST: Final = 20.0
MAX_PAUSE_SECONDS: Final = 30.0
"""Below STALE_SECONDS, however long a look took: its answer must not grow stale meanwhile."""
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
    next: float


class Autoscale:
    """The latest answer, renewed by one look at a time. It connects when it is first asked."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._conn: HotConnection | None = None
        self._last: Sampled | None = None
        self._looking: asyncio.Task[None] | None = None

    async def answer(self) -> dict[str, Any]:
        """Raises DatabaseUnavailable when there is no look of the last minute."""
        if self._last is None or time.monotonic() >= self._last.next:
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
            self._conn = HotConnection(self._settings.database(), name="autoscale")
        try:
            async with self._conn.use(DEADLINE_SECONDS) as conn:
                began = time.monotonic()
                demand = await look(conn)
        except (DatabaseUnavailable, Error):
            if self._last is not None:
                self._last = Sampled(self._last.answer, self._last.at, time.monotonic() + LOOK_SECONDS)
            raise
        now = time.monotonic()
        pause = min(max(LOOK_SECONDS, LOOK_COST * (now - began)), MAX_PAUSE_SECONDS)
        self._last = Sampled(advice(demand, datetime.now(UTC)), now, now + pause)

    async def aclose(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])
        if self._conn is not None:
            await self._conn.aclose()


def advice(demand: Demand, now: datetime) -> dict[str, Any]:
    """The answer to a look: `backlog` is of jobs that are due and nobody's, `desired_workers` of whole processes."""
    needs = {name: needed(queue, saturated=demand.saturated) for name, queue in sorted(demand.queues.items())}
    served = [need for name, need in needs.items() if demand.queues[name].slots]
    # Whatever has no worker yet is one worker's: each runs every preset of its deployment, and one that nobody knows
    # must not hold more.
    unserved = any(need for name, need in needs.items() if not demand.queues[name].slots)
    return {
        "presets": {
            name: {
                "backlog": demand.queues[name].due,
                "oldest_age_seconds": round(demand.queues[name].age_seconds, 3),
                "drain_per_second": round(demand.queues[name].per_second, 3),
                "desired_workers": rounded(need),
            }
            for name, need in needs.items()
        },
        "backlog": sum(queue.due for queue in demand.queues.values()),
        "desired_workers": rounded(sum(served) + unserved),
        "sampled_at": now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    }


def needed(queue: Queue, *, saturated: bool) -> float:
    """The workers that a preset can use, in fractions of one: those that run its jobs now, and for its backlog more.

    A worker is taken to go on at the pace of those that are busy, and the backlog should last TARGET_SECONDS at the
    most; but more slots than jobs are of no use. Where fewer attempts end in the pace's window than are busy, as with
    jobs that outlast it, nobody knows the pace: then workers are doubled for as long as all of them are busy, and
    none is let go.
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
    pace = queue.per_second / (min(busy, queue.workers) or queue.workers)
    return min(useful, busy + queue.due / (TARGET_SECONDS * pace))


def rounded(workers: float) -> int:
    """Whole workers: at least one where there is anything to do, none where there is not."""
    return math.ceil(workers - 1e-9)
