"""Releases attempts that the database shows as leased to this worker but that are not running here.

No attempt is counted against a job's budget.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Final

import structlog
from psycopg import Error

from engine.errors import DatabaseUnavailable
from engine.model import JobState, Reason
from engine.moves import Release, release, take_back
from engine.queries.jobs import presets_of
from engine.storage.connections import Pool, borrow
from engine.storage.faults import by_blame
from worker.attempt_metrics import AttemptMetrics
from worker.slots import Key

TRIES: Final = 4
"""After an outage each connection of the pool may be broken, and a try finds out for one of them."""
PAUSE_SECONDS: Final = 0.05

log = structlog.get_logger()


class Releaser:
    """Releases attempts in background tasks.

    A write of unknown attempts that fails is not tried again here: two heartbeats later they are found again. A lost
    lease is taken back at each heartbeat until nothing is leased under it, because maintenance would take the attempts
    for those of a dead worker.
    """

    def __init__(self, pool: Pool, metrics: AttemptMetrics, *, publish_results: bool) -> None:
        self._pool = pool
        self._metrics = metrics
        self._publish_results = publish_results
        self._lost: set[int] = set()
        self._taking_back: set[int] = set()
        self._writing: set[asyncio.Task[None]] = set()

    def unknown(self, worker_id: int | None, keys: Iterable[Key]) -> None:
        """Release attempts that were never held, each to its old place in the queue."""
        if worker_id is not None:
            self._start(self._release(worker_id, [Release(*key, Reason.UNKNOWN) for key in keys]))

    def lost(self, worker_id: int) -> None:
        """Remember a lease of this worker that has run out; `take_back` releases all that is leased under it."""
        self._lost.add(worker_id)

    def take_back(self) -> None:
        """Take the lost leases back, under the next lease and before maintenance lapses them.

        A new lease proves that the database answers again.
        """
        for worker_id in self._lost - self._taking_back:
            self._taking_back.add(worker_id)
            self._start(self._take_back(worker_id))

    def _start(self, writing: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(writing)
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _release(self, worker_id: int, rows: list[Release]) -> None:
        try:
            async with borrow(self._pool) as conn:
                presets = await presets_of(conn, [row.job_id for row in rows])
                released = await release(conn, worker_id, rows, publish_results=self._publish_results)
        except (DatabaseUnavailable, Error) as error:
            # Not tried again: see the class.
            log_at = by_blame(log, error)
            log_at("attempts.not_released", rows=len(rows))
            return
        self._report(Reason.UNKNOWN, [(presets[job_id], state) for (job_id, _), state in released.items()])

    async def _take_back(self, worker_id: int) -> None:
        try:
            for tries_left in reversed(range(TRIES)):
                try:
                    async with borrow(self._pool) as conn:
                        taken = await take_back(conn, worker_id, publish_results=self._publish_results)
                except (DatabaseUnavailable, Error) as error:
                    # Tried again, here and at the next heartbeat.
                    if not tries_left:
                        log_at = by_blame(log, error)
                        log_at("attempts.not_released", worker=worker_id)
                    await asyncio.sleep(PAUSE_SECONDS)
                    continue
                self._report(Reason.LEASE_LOST, taken.jobs)
                if taken.complete:
                    self._lost.discard(worker_id)
                return
        finally:
            self._taking_back.discard(worker_id)

    def _report(self, reason: Reason, jobs: Iterable[tuple[str, JobState]]) -> None:
        rows = list(jobs)
        if rows:
            log.warning("attempts.released", reason=reason, rows=len(rows))
        for preset, state in rows:
            self._metrics.released(preset, state)
