"""Keeps N attempts running: claims jobs for the free slots, runs the attempts, and records their outcomes.

`Consumer._run` is the life of one attempt; the table in worker/__init__.py names the files of its steps.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Final

import structlog
from psycopg import Error

from engine.errors import DatabaseUnavailable, OutriderError
from engine.model import Attempt, Cancelled, Outcome, Reason, Released
from engine.pipeline import Pipeline
from engine.process.loop_watch import describe_by
from engine.process.loops import keep_running, note_fault
from engine.process.run import process_name
from engine.storage.connections import Pool
from engine.storage.faults import by_blame, told
from engine.storage.listener import Listener
from engine.storage.notify import CANCEL
from engine.tables.workers import Leased, Registration
from engine.telemetry import tracing
from engine.telemetry.metrics import WORKER_BUSY, WORKER_SLOTS
from worker.attempt_metrics import AttemptMetrics
from worker.children.pool import Children
from worker.execution import GRACE_SECONDS, Execution
from worker.interpreter import InterpreterWatch
from worker.lease import Lease
from worker.progress import report_forever
from worker.recorder import Recorder
from worker.releases import Releaser
from worker.slots import Slots
from worker.source import Source
from worker.suspects import SuspectClaims

MIN_IDLE_SECONDS: Final = 0.05
MAX_IDLE_SECONDS: Final = 1.0
WATCH_SECONDS: Final = 0.2
LOST: Final = Released(Reason.LEASE_LOST)

log = structlog.get_logger()


class Consumer:
    """A worker: its lease, its slots and its loop."""

    def __init__(
        self,
        url: str,
        pool: Pool,
        effects: Pool,
        source: Source,
        registry: Mapping[str, Pipeline],
        *,
        slots: int,
        lease_seconds: float,
        drain_seconds: float,
        publish_results: bool = False,
        children: Children | None = None,
    ) -> None:
        self._children = children
        self._stopping = threading.Event()
        self._pool, self._source, self._registry = pool, source, registry
        self._drain_seconds = drain_seconds
        self._failing: Exception | None = None
        """Why the last claim failed."""
        self._wake = asyncio.Event()
        self._listener = Listener(url, self._on_hint, asks=source.takes_ready)
        self._slots = Slots(slots, lease_seconds, self._wake.set)
        self._metrics = AttemptMetrics(registry)
        self._releaser = Releaser(pool, self._metrics, publish_results=publish_results)
        self._lease = Lease(
            url,
            Registration(process_name(), tuple(registry), slots, children.presets if children else ()),
            lease_seconds,
            on_beat=self._on_beat,
            running=lambda: [f"{job_id}#{number}" for job_id, number in list(self._slots.held)],
            throughput=self._metrics.throughput,
        )
        self._suspects = SuspectClaims(pool, source, tuple(registry), slots)
        self._recorder = Recorder(
            url,
            effects,
            lambda: self._lease.worker_id,
            publish_results=publish_results,
            on_end=self._recorded,
        )
        WORKER_SLOTS.set(slots)

    async def ready(self) -> None:
        """A readiness check: raises while this worker holds no lease, or cannot claim, run or record attempts."""
        if self._lease.worker_id is None:
            raise DatabaseUnavailable("this worker holds no lease")
        if self._failing is not None:
            raise OutriderError(f"the last claim failed: {self._failing}")
        if self._children is not None:
            self._children.ready()
        await self._recorder.ready()
        await self._source.ready()

    async def run(self, stop: asyncio.Event) -> int:
        """Work until `stop`, then finish running attempts within the drain time and release the rest.

        Returns 0. Returns 1, without waiting for `stop`, when plain functions past their time-out have held every
        slot for a whole lease: only a new process gets rid of their threads.
        """
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._source.aclose)
            stack.push_async_callback(self._recorder.aclose)
            stack.push_async_callback(asyncio.to_thread, self._lease.close)
            self._lease.start()
            stack.enter_context(InterpreterWatch(self._lease.period, lambda: self._slots.occupied))
            describe_by(self._slots.named)
            stack.callback(describe_by, None)
            async with asyncio.TaskGroup() as group:
                loops = [
                    group.create_task(keep_running("listen", self._listener.run)),
                    group.create_task(keep_running("source", self._source.run, self._wake.set)),
                    group.create_task(keep_running("progress", report_forever, self._pool, self._slots.held)),
                    group.create_task(keep_running("watch", self._watch)),
                    group.create_task(self._wake_at(stop)),
                ]
                try:
                    await self._claim_until(stop)
                finally:
                    withdrawing = group.create_task(self._source.drain())
                    await self._drain()
                    await withdrawing
                    for task in loops:
                        task.cancel()
        return 1 if self._slots.stuck.exhausted else 0

    async def _claim_until(self, stop: asyncio.Event) -> None:
        idle = MIN_IDLE_SECONDS
        while not (stop.is_set() or self._slots.stuck.exhausted):
            # Cleared before the claim: a hint that arrives during the claim must not be lost.
            self._wake.clear()
            room = self._slots.room
            attempts = await self._claim(room)
            self._slots.full = len(attempts) == room or self._suspects.exclusive
            self._start(attempts)
            # More jobs may be ready: only an empty claim has also searched below the source's marks.
            if attempts:
                idle = MIN_IDLE_SECONDS
                if not self._slots.full:
                    # The claimed attempts start before the next claim is prepared.
                    await asyncio.sleep(0)
                continue
            idle = min(idle * 2, MAX_IDLE_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(idle):
                    await self._wake.wait()

    async def _claim(self, room: int) -> list[Attempt]:
        if (worker_id := self._lease.worker_id) is None:
            return []
        began = time.time_ns()
        try:
            with self._slots.unacknowledged.claiming():
                attempts = await self._suspects.claim_first(worker_id, room, held=len(self._slots.held))
        except (DatabaseUnavailable, Error) as error:
            if not told(self._failing, error):
                log_at = by_blame(log, error)
                log_at("claim.failed")
            self._failing = error
            return []
        except Exception as error:  # noqa: BLE001 - the running attempts must not end with the claims
            note_fault("claim", error)
            return []
        if self._failing is not None and room:
            log.info("claim.recovered")
            self._failing = None
        tracing.claimed(began, attempts)
        return attempts

    def _start(self, attempts: Sequence[Attempt]) -> None:
        executions = [
            Execution(each, self._registry[each.job.preset], self._record, self._stopping, self._children)
            for each in attempts
        ]
        self._metrics.started(executions)
        for execution in executions:
            self._slots.take(execution)
            execution.task = asyncio.create_task(self._run(execution), context=execution.span.context())

    async def _run(self, execution: Execution) -> None:
        """The life of an attempt: claimed → running → ended → recorded."""
        outcome = await execution.run()
        self._slots.vacate(execution)
        if execution.end():
            self._record(execution, outcome)

    def _record(self, execution: Execution, outcome: Outcome) -> None:
        """Record the outcome of an attempt that has ended; of a stuck one, `_run` waits for the pipeline still."""
        try:
            self._recorder.record(execution, outcome, self._metrics.ended(execution))
        except Exception as error:  # noqa: BLE001 - the outcome cannot be made into a row
            self._recorded(execution, error)

    def _recorded(self, execution: Execution, written: Outcome | Exception) -> None:
        """The outcome is written, or never will be: usually because of LeaseLost."""
        try:
            if isinstance(written, Exception):
                self._metrics.dropped(execution, written)
            else:
                self._metrics.recorded(execution, written)
        except Exception as error:  # noqa: BLE001 - the other attempts of the group go on
            note_fault("record", error)
        self._slots.drop(execution)
        execution.release_child()

    def _on_hint(self, channel: str, payload: str) -> None:
        if channel == CANCEL:
            self._lease.beat_now()
        elif not payload or not self._registry.keys().isdisjoint(payload.split()):
            self._wake.set()

    def _on_beat(self, sent: float, leased: Leased | None) -> None:
        if leased is not None:
            self._compare(sent, leased)
        self._releaser.take_back()
        # The first heartbeat, or the first one after an outage, brings a lease to claim under.
        self._wake.set()

    def _compare(self, sent: float, leased: Leased) -> None:
        """Compare the attempts that the database shows as leased to this worker with the held ones.

        An attempt that started after the heartbeat was sent may be missing from the answer, and is not lost.
        """
        held = self._slots.held
        for key, cancel_requested in leased.items():
            if cancel_requested and key in held:
                held[key].stop(Cancelled())
        for key, execution in list(held.items()):
            if key not in leased and execution.started < sent:
                execution.stop(LOST)
        if lost := self._slots.unacknowledged.lost(leased.keys() - held.keys()):
            self._releaser.unknown(self._lease.worker_id, lost)

    async def _watch(self) -> None:
        """Many times per lease: tick, stop overdue and lost attempts, and look for stuck pipelines."""
        while True:
            self._lease.tick()
            self._drop_lost()
            now = time.monotonic()
            for execution in list(self._slots.held.values()):
                execution.look()
                if now > execution.deadline:
                    execution.time_out()
            stuck = self._slots.stuck
            stuck.look(self._slots.occupied)
            if stuck.exhausted and not self._stopping.is_set():
                log.error("worker.exhausted", stuck=len(stuck))
                self._wake.set()
            WORKER_BUSY.set(len(self._slots.occupied))
            await asyncio.sleep(min(self._lease.seconds / 10, WATCH_SECONDS))

    def _drop_lost(self) -> None:
        """Stop attempts whose lease is lost: their outcomes can no longer be recorded.

        A lease that expired because the database was away is no crash. All that is leased under it is taken back under
        the next lease, before maintenance lapses it. If the worker's row is gone, maintenance has already done so.
        """
        for execution in list(self._slots.held.values()):
            if (lost := execution.attempt.worker_id) != self._lease.worker_id:
                self._lease.abandon(lost)
                self._releaser.lost(lost)
                execution.stop(LOST)

    async def _wake_at(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._wake.set()

    async def _drain(self) -> None:
        """Finish running attempts within the drain time, then release the rest and wait until that is written."""
        self._slots.full = True
        self._stopping.set()
        if self._children is not None:
            self._children.stop()
        if held := self._slots.held:
            log.info("worker.draining", attempts=len(held), seconds=self._drain_seconds)
        await self._emptied(self._drain_seconds)
        for execution in list(held.values()):
            execution.stop(Released(Reason.SHUTDOWN))
        self._recorder.release_effects()
        await self._emptied(GRACE_SECONDS + self._lease.seconds)

    async def _emptied(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._slots.held:
                    self._wake.clear()
                    await self._wake.wait()
