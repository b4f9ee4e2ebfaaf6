"""Releases attempts that the database shows as leased to this worker but that are not running here.

No attempt is counted against a job's budget.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence

import structlog
from psycopg import Error

from engine.errors import DatabaseUnavailable
from engine.model import Reason
from engine.moves import Release, release
from engine.queries.jobs import presets_of
from engine.storage.connections import Pool, borrow
from engine.storage.faults import by_blame
from worker.attempt_metrics import AttemptMetrics
from worker.slots import Key

log = structlog.get_logger()


class Releaser:
    """Releases attempts in background tasks.

    A failed write is not tried again here. Two heartbeats later the attempts are found again; maintenance lapses the
    attempts of a lost lease.
    """

    def __init__(self, pool: Pool, metrics: AttemptMetrics, *, publish_results: bool) -> None:
        self._pool = pool
        self._metrics = metrics
        self._publish_results = publish_results
        self._stopped: defaultdict[int, set[Key]] = defaultdict(set)
        self._writing: set[asyncio.Task[None]] = set()

    def unknown(self, worker_id: int | None, keys: Iterable[Key]) -> None:
        """Release attempts that were never held, each to its old place in the queue."""
        if worker_id is not None:
            self._release(worker_id, keys, Reason.UNKNOWN)

    def stopped(self, worker_id: int, key: Key) -> None:
        """Remember an attempt that ran under the lost lease `worker_id`; `release_stopped` releases it."""
        self._stopped[worker_id].add(key)

    def release_stopped(self) -> None:
        """Release the remembered attempts, under the next lease and before maintenance lapses them.

        A new lease proves that the database answers again.
        """
        for worker_id, keys in self._stopped.items():
            self._release(worker_id, keys, Reason.LEASE_LOST)
        self._stopped.clear()

    def _release(self, worker_id: int, keys: Iterable[Key], reason: Reason) -> None:
        rows = [Release(job_id, number, reason) for job_id, number in keys]
        task = asyncio.create_task(self._write(worker_id, rows))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _write(self, worker_id: int, rows: Sequence[Release]) -> None:
        try:
            async with borrow(self._pool) as conn:
                presets = await presets_of(conn, [row.job_id for row in rows])
                released = await release(conn, worker_id, rows, publish_results=self._publish_results)
        except (DatabaseUnavailable, Error) as error:
            # Not tried again: see the class.
            log_at = by_blame(log, error)
            log_at("attempts.not_released", rows=len(rows))
            return
        if released:
            log.warning("attempts.released", reason=rows[0].reason, rows=len(released))
        for (job_id, _), state in released.items():
            self._metrics.released(presets[job_id], state)
