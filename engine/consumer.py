"""Keeps N attempts running: claims as many as there are free slots, runs them, records what they came to."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from typing import Final
from uuid import UUID

import structlog

from engine.account import Account
from engine.db import Pool, lent
from engine.errors import DatabaseUnavailable, LeaseLost
from engine.executor import GRACE_SECONDS, Execution
from engine.lease import Lease
from engine.metrics import LEASES_LOST, WORKER_BUSY, WORKER_SLOTS
from engine.model import Attempt, Cancelled, Released
from engine.moves import PutBack, put_back
from engine.notify import CANCEL, listen
from engine.pipeline import Pipeline
from engine.progress import Progress, report
from engine.recorder import Recorder
from engine.source import Source
from engine.workers import Leased, Registration

MIN_IDLE_SECONDS: Final = 0.05
MAX_IDLE_SECONDS: Final = 1.0
PROGRESS_SECONDS: Final = 1.0

log = structlog.get_logger()
Key = tuple[UUID, int]


class Consumer:
    """A worker: its lease, its slots and its loop.

    A slot is free again when its pipeline has returned; the outcome is held until its write is acknowledged, and
    no more is claimed while as many outcomes wait as there are slots.
    """

    def __init__(
        self,
        url: str,
        pool: Pool,
        source: Source,
        registry: Mapping[str, Pipeline],
        *,
        slots: int,
        lease_seconds: float,
        drain_seconds: float,
    ) -> None:
        self._url = url
        self._pool = pool
        self._source = source
        self._registry = registry
        self._slots = slots
        self._drain_seconds = drain_seconds
        self._held: dict[Key, Execution] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._busy = 0
        self._saturated = False
        self._left_behind: set[Execution] = set()
        self._exhausted_since: float | None = None
        self._strays: set[Key] = set()
        self._wake = asyncio.Event()
        self._account = Account()
        self._lease = Lease(
            url,
            Registration(socket.gethostname(), tuple(registry), slots),
            lease_seconds,
            on_beat=self._on_beat,
            running=lambda: [f"{job_id}#{number}" for job_id, number in list(self._held)],
        )
        self._recorder = Recorder(url, pool, lambda: self._lease.worker_id)
        WORKER_SLOTS.set(slots)

    async def ready(self) -> None:
        """A readiness check: raises while this worker has no lease to claim under."""
        if self._lease.worker_id is None:
            raise DatabaseUnavailable("this worker holds no lease")

    async def run(self, stop: asyncio.Event) -> int:
        """Work until `stop`, then finish what runs within the drain time and release the rest.

        Returns 0; or 1, by itself, when plain functions that outlived their time-out have held every slot for a
        whole lease: only a new process gets rid of their threads.
        """
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._source.aclose)
            stack.push_async_callback(self._recorder.aclose)
            stack.push_async_callback(asyncio.to_thread, self._lease.close)
            self._lease.start()
            for work in (
                listen(self._url, self._heard),
                self._watch(),
                self._report_progress(),
                self._wake_at(stop),
            ):
                stack.push_async_callback(_ended, asyncio.create_task(work))
            await self._claim_until(stop)
            await self._drain()
        return 1 if self._exhausted else 0

    async def _claim_until(self, stop: asyncio.Event) -> None:
        idle = MIN_IDLE_SECONDS
        while not (stop.is_set() or self._exhausted):
            # Cleared before the claim: a hint that comes while it runs must not be lost.
            self._wake.clear()
            free = max(0, min(self._slots - self._busy, 2 * self._slots - len(self._tasks)))
            claimed = await self._claim(free)
            self._saturated = claimed == free
            if claimed and self._saturated:
                continue
            idle = MIN_IDLE_SECONDS if claimed else min(idle * 2, MAX_IDLE_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(idle):
                    await self._wake.wait()

    async def _claim(self, free: int) -> int:
        worker_id = self._lease.worker_id
        if not free or worker_id is None:
            return 0
        try:
            attempts = await self._source.claim(worker_id, free)
        except DatabaseUnavailable as error:
            log.warning("claim.failed", error=str(error))
            await asyncio.sleep(MIN_IDLE_SECONDS)
            return 0
        for attempt in attempts:
            self._start(attempt)
        return len(attempts)

    def _start(self, attempt: Attempt) -> None:
        execution = Execution(attempt, self._registry[attempt.job.preset], self._on_idle)
        self._busy += 1
        self._held[attempt.key] = execution
        WORKER_BUSY.set(self._busy)
        task = asyncio.create_task(self._attempt(execution))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _attempt(self, execution: Execution) -> None:
        attempt = execution.record
        try:
            outcome = await execution.run()
            if not execution.idle:
                self._left_behind.add(execution)
                log.warning("attempt.left_behind", job_id=str(attempt.job.id), attempt=attempt.number)
            metadata = self._account.ended(execution)
            written = await self._recorder.write(attempt, execution.pipeline, outcome, metadata)
            self._account.recorded(execution, written)
        except LeaseLost:
            LEASES_LOST.inc()
            log.warning("lease.lost", job_id=str(attempt.job.id), attempt=attempt.number)
        except Exception:
            # Neighbours must not die of it. The row stays leased but is no longer held: two beats later it is
            # released like any other row this worker does not know.
            log.exception("record.refused", job_id=str(attempt.job.id), attempt=attempt.number)
        finally:
            self._held.pop(attempt.key, None)
            self._wake_if_saturated()

    def _on_idle(self, execution: Execution) -> None:
        self._busy -= 1
        self._left_behind.discard(execution)
        WORKER_BUSY.set(self._busy)
        self._wake_if_saturated()

    def _wake_if_saturated(self) -> None:
        if self._saturated:
            self._wake.set()

    def _heard(self, channel: str) -> None:
        if channel == CANCEL:
            self._lease.beat_now()
        else:
            self._wake.set()

    def _on_beat(self, sent: float, leased: Leased) -> None:
        for key, cancel_requested in leased.items():
            if cancel_requested and key in self._held:
                self._held[key].cancel(Cancelled())
        for key, execution in self._held.items():
            if key not in leased and execution.created_at < sent:
                execution.cancel(Released("lost"))
        # Returned twice running and never held: the reply to its claim was lost on the way.
        strays = leased.keys() - self._held.keys()
        if unknown := strays & self._strays:
            self._spawn_release(unknown)
        self._strays = strays - unknown
        self._wake_if_saturated()

    def _spawn_release(self, unknown: set[Key]) -> None:
        task = asyncio.create_task(self._release(unknown))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _release(self, unknown: set[Key]) -> None:
        worker_id = self._lease.worker_id
        if worker_id is None:
            return
        rows = [PutBack(job_id, number, "unknown to its worker") for job_id, number in unknown]
        log.warning("attempts.released", reason="unknown to their worker", rows=len(rows))
        with suppress(DatabaseUnavailable):  # two beats later they are found again
            async with lent(self._pool) as conn:
                await put_back(conn, worker_id, rows)

    async def _watch(self) -> None:
        while True:
            self._lease.tick()
            self._drop_lost()
            if len(self._left_behind) < self._slots:
                self._exhausted_since = None
            elif self._exhausted_since is None:
                self._exhausted_since = time.monotonic()
            elif self._exhausted:
                log.error("worker.exhausted", left_behind=len(self._left_behind))
                self._wake.set()
            await asyncio.sleep(self._lease.seconds / 10)

    def _drop_lost(self) -> None:
        """Stop what runs under a lease that is no longer ours; its outcomes will find no lease to be written."""
        current = self._lease.worker_id
        lost = [execution for key, execution in self._held.items() if execution.record.worker_id != current]
        if lost and current is None:
            self._lease.abandon()
        for execution in lost:
            execution.cancel(Released("lost"))

    @property
    def _exhausted(self) -> bool:
        since = self._exhausted_since
        return since is not None and time.monotonic() - since > self._lease.seconds

    async def _report_progress(self) -> None:
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)
            latest = [
                Progress(*key, execution.progress_n, *execution.latest)
                for key, execution in self._held.items()
                if execution.progress_n > execution.reported_n
            ]
            if not latest:
                continue
            try:
                async with lent(self._pool) as conn:
                    await report(conn, latest)
            except DatabaseUnavailable:
                continue  # shown again within a second, or never: progress is a courtesy
            for each in latest:
                if execution := self._held.get((each.job_id, each.attempt)):
                    execution.reported_n = each.n

    async def _wake_at(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._wake.set()

    async def _drain(self) -> None:
        if self._tasks:
            log.info("worker.draining", attempts=len(self._tasks), seconds=self._drain_seconds)
            await asyncio.wait(self._tasks, timeout=self._drain_seconds)
        for execution in list(self._held.values()):
            execution.cancel(Released("shutdown"))
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=GRACE_SECONDS + self._lease.seconds)


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
