"""Maintenance: the periodic tasks of every relay.

Maintenance promotes due jobs, lapses attempts of dead workers, prunes, vacuums, analyzes and samples. Several relays
may run maintenance at the same time: row locks share the work.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import Final

import structlog

from engine.cancellation import survivable
from engine.errors import OutriderError
from engine.model import JobState
from engine.moves import lapse, promote
from engine.moves.lapse import Lapsed, look
from engine.process.loops import keep_running
from engine.process.run import pause
from engine.storage.batch_size import BatchSize
from engine.storage.connections import Connection, PinnedConnection, Pool, borrow
from engine.storage.deadline import STATEMENT_SECONDS
from engine.tables.relay_status import RelayStatus
from engine.telemetry.metrics import (
    ATTEMPTS,
    DEAD_LETTERS,
    JOBS_FINISHED,
    MAINTENANCE_CYCLED_AT,
    MAINTENANCE_ERRORS,
    MAINTENANCE_ROWS,
)
from relay.maintenance.observed import Observed
from relay.maintenance.prune import prune_tasks
from relay.maintenance.sampler import Sampler
from relay.maintenance.tasks import BATCH, PeriodicTask, TaskHealth
from relay.maintenance.vacuum import vacuum_tasks
from relay.status import report_forever

PROMOTE_SECONDS: Final = 0.2
SAMPLE_SECONDS: Final = 5.0
SHOWN: Final = 10
"""How many jobs of dead workers a log line names."""
MAX_LATE: Final = 20
"""After so many late looks without a lease of others the task counts as failing. Jobs of dead workers wait then."""
WORKERS: Final = 50
"""How many dead workers one lapse takes at most. The attempts of one worker lapse together, as they count together."""

Work = Callable[[], Awaitable[int]]
"""One run of a task. Returns how many rows it changed."""

log = structlog.get_logger()


class Maintenance:
    """Runs every task until `stop`. `on_ready` is called when jobs have become ready.

    `on_served` is told now and then which presets the living workers run. `publish_results` is an argument of moves.
    """

    def __init__(
        self,
        url: str,
        pool: Pool,
        *,
        lease_seconds: float,
        retention_days: int = 0,
        on_ready: Callable[[], None],
        on_served: Callable[[Collection[str]], None] = lambda _presets: None,
        publish_results: bool = False,
    ) -> None:
        self._url = url
        self._pool = pool
        self._lease_seconds = lease_seconds
        self._on_ready = on_ready
        self._on_served = on_served
        self._publish_results = publish_results
        # Slow tasks may hold the whole pool. These two must go on, because nothing else brings jobs back.
        self._promoting = PinnedConnection(url, name="promote")
        self._lapsing = PinnedConnection(url, name="lapse")
        self._promotes = BatchSize(BATCH, STATEMENT_SECONDS)
        self._lapses = BatchSize(WORKERS, STATEMENT_SECONDS)
        self._observed = Observed(lease_seconds)
        self._observed_on: Connection | None = None
        self._health = TaskHealth()
        self.sampler = Sampler(url, self._served)
        self.tasks: Sequence[PeriodicTask] = [*prune_tasks(retention_days), *vacuum_tasks()]
        _show_nothing_yet(("promote", "lapse", "sample", *(task.name for task in self.tasks)))

    async def ready(self) -> None:
        """A readiness check: raises until promote and lapse have succeeded, and when either fails for a lease."""
        self._health.check(self._lease_seconds)

    async def run(self, stop: asyncio.Event) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                reporting = group.create_task(
                    keep_running("report", report_forever, self._url, self._statuses)
                )
                async with asyncio.TaskGroup() as tasks:
                    for name, period, size, work in self._loops():
                        tasks.create_task(self._every(stop, name, period, size, work))
                reporting.cancel()
        finally:
            await self.aclose()

    def _statuses(self) -> list[RelayStatus]:
        return [self._health.status]

    def _served(self, presets: Collection[str]) -> None:
        """Show every counter of the presets before its first event, which only a worker can bring."""
        for preset in presets:
            ATTEMPTS.labels(preset, "lost")
            DEAD_LETTERS.labels(preset, "lapsed")
            for state in (JobState.FAILED, JobState.CANCELLED):
                JOBS_FINISHED.labels(preset, state)
        self._on_served(presets)

    async def aclose(self) -> None:
        await self._promoting.aclose()
        await self._lapsing.aclose()
        await self.sampler.aclose()

    def _loops(self) -> list[tuple[str, Callable[[], float], BatchSize, Work]]:
        """Each task with its period in seconds. The first three have connections of their own."""
        return [
            ("promote", lambda: PROMOTE_SECONDS, self._promotes, self._promote),
            ("lapse", lambda: self._observed.period, self._lapses, self._lapse),
            ("sample", lambda: SAMPLE_SECONDS, BatchSize(BATCH, STATEMENT_SECONDS), self.sampler.sample),
            *(self._borrowing(task) for task in self.tasks),
        ]

    def _borrowing(self, task: PeriodicTask) -> tuple[str, Callable[[], float], BatchSize, Work]:
        size = BatchSize(BATCH, task.seconds)

        async def work() -> int:
            async with borrow(self._pool, task.seconds) as conn:
                with size.run() as limit:
                    return await task.work(conn, limit)

        return task.name, lambda: task.period, size, work

    async def _every(
        self, stop: asyncio.Event, name: str, period: Callable[[], float], size: BatchSize, work: Work
    ) -> None:
        """Repeat a task until `stop`, whatever the task raises: all relays would stop at the same fault."""
        while not stop.is_set():
            full, rows = size.current, 0
            try:
                rows = await work()
            except BaseException as error:
                if not survivable(error):
                    raise
                MAINTENANCE_ERRORS.labels(name).inc()
                self._health.failed(name, error)
            else:
                self._health.succeeded(name)
                MAINTENANCE_CYCLED_AT.labels(name).set_to_current_time()
            MAINTENANCE_ROWS.labels(name).inc(rows)
            if rows < full:
                await pause(stop, period())

    async def _promote(self) -> int:
        async with self._promoting.use() as conn:
            with self._promotes.run() as limit:
                rows = await promote(conn, limit)
        if rows:
            self._on_ready()
        return rows

    async def _lapse(self) -> int:
        """Lapse attempts of workers that have been seen dead, see observed.py."""
        try:
            began = time.monotonic()
            async with self._lapsing.use() as conn:
                if conn is not self._observed_on:
                    self._observed.forget()
                    self._observed_on = conn
                seen = await look(conn, self._lease_seconds)
                dead = self._observed.look(began, time.monotonic(), seen)
                lapsed = []
                if dead:
                    with self._lapses.run() as limit:
                        lapsed = await lapse(conn, dead[:limit], publish_results=self._publish_results)
        except BaseException:
            # What keeps a relay from looking or lapsing may keep workers from their heartbeats.
            self._observed.forget()
            raise
        if self._observed.late > MAX_LATE:
            raise OutriderError(
                f"dead workers cannot be told: the last {self._observed.late} looks were late"
            )
        if lapsed:
            _count_and_log(lapsed)
        if any(each.state is JobState.PENDING for each in lapsed):
            self._on_ready()
        return len(lapsed)


def _show_nothing_yet(tasks: Iterable[str]) -> None:
    """Show every counter of the tasks at 0 before its first event."""
    for task in tasks:
        MAINTENANCE_CYCLED_AT.labels(task).set_to_current_time()
        MAINTENANCE_ERRORS.labels(task)
        MAINTENANCE_ROWS.labels(task)


def _count_and_log(lapsed: Sequence[Lapsed]) -> None:
    """Count the lapsed attempts, and log them in one line."""
    for each in lapsed:
        ATTEMPTS.labels(each.preset, "lost").inc()
        if each.state.terminal:
            JOBS_FINISHED.labels(each.preset, each.state).inc()
        if each.state is JobState.FAILED:
            DEAD_LETTERS.labels(each.preset, "lapsed").inc()
    failed = sum(each.state is JobState.FAILED for each in lapsed)
    shown = [str(each.job_id) for each in lapsed[:SHOWN]]
    workers = sorted({each.worker for each in lapsed})
    charged = [_charge(each) for each in lapsed if each.charged][:SHOWN]
    log.warning(
        "leases.lapsed", workers=workers, jobs=len(lapsed), failed=failed, charged=charged, job_ids=shown
    )


def _charge(lapsed: Lapsed) -> dict[str, object]:
    """What is known of an attempt that ran alone on a worker that died."""
    return {
        "job_id": str(lapsed.job_id),
        "attempt": lapsed.attempt,
        "worker": lapsed.worker,
        "progress": lapsed.progress,
    }
