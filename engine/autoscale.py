"""What `/autoscale` answers: how much there is to do, and how many workers would do it in time.

However often it is asked, the database is looked at every few seconds at the most.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import structlog
from psycopg import Error

from engine.db import HotConnection
from engine.demand import Demand, look, needed, rounded
from engine.errors import DatabaseUnavailable
from engine.settings import Settings

LOOK_SECONDS: Final = 3.0
LOOK_COST: Final = 20.0
STALE_SECONDS: Final = 60.0
DEADLINE_SECONDS: Final = 5.0

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
            await asyncio.wait([self._looking])
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
        began = time.monotonic()
        try:
            async with self._conn.use(DEADLINE_SECONDS) as conn:
                demand = await look(conn)
        except (DatabaseUnavailable, Error):
            if self._last is not None:
                self._last = Sampled(self._last.answer, self._last.at, time.monotonic() + LOOK_SECONDS)
            raise
        now = time.monotonic()
        pause = max(LOOK_SECONDS, LOOK_COST * (now - began))
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
    return {
        "presets": {
            name: {
                "backlog": demand.queues[name].due,
                "oldest_age_seconds": round(demand.queues[name].age_seconds, 3),
                "drain_per_second": round(demand.queues[name].per_second, 3),
                "desired_workers": rounded([need]),
            }
            for name, need in needs.items()
        },
        "backlog": sum(queue.due for queue in demand.queues.values()),
        "desired_workers": rounded(needs.values()),
        "sampled_at": now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    }
