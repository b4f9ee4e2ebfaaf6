"""Keeps N attempts running: claims as many as there are free slots, runs them, records what they came to."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Final

import structlog
from psycopg import Error

from engine import tracing
from engine.account import Account
from engine.db import Pool, open_pool
from engine.errors import DatabaseUnavailable
from engine.executor import GRACE_SECONDS, Execution
from engine.lease import Lease
from engine.left_behind import LeftBehind
from engine.metrics import WORKER_BUSY, WORKER_SLOTS
from engine.model import Attempt, Cancelled, Outcome, Released
from engine.notify import CANCEL, listen
from engine.pipeline import Pipeline
from engine.process import process_name
from engine.progress import report_forever
from engine.recorder import Recorder
from engine.returns import Returns
from engine.settings import Settings
from engine.source import Source
from engine.strays import Key, Strays
from engine.workers import Leased, Registration

MIN_IDLE_SECONDS: Final = 0.05
MAX_IDLE_SECONDS: Final = 1.0
WATCH_SECONDS: Final = 0.2
MAX_EFFECTS: Final = 10
"""Effects that a process commits at once; more wait for a connection."""

log = structlog.get_logger()


class Consumer:
    """A worker: its lease, its slots and its loop.

    A slot is free again when its pipeline has returned; the outcome is held until its write is acknowledged, and
    no more is claimed while as many outcomes wait as there are slots.
    """

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
        announce: bool = False,
    ) -> None:
        self._url = url
        self._pool = pool
        self._source = source
        self._registry = registry
        self._slots = slots
        self._drain_seconds = drain_seconds
        self._held: dict[Key, Execution] = {}
        self._occupied: set[Execution] = set()
        self._left_behind = LeftBehind(slots, lease_seconds)
        self._saturated = False
        self._draining = False
        self._blind = False
        self._strays = Strays()
        self._forsaken: defaultdict[int, set[Key]] = defaultdict(set)
        self._wake = asyncio.Event()
        self._account = Account(registry)
        self._returns = Returns(pool, self._account, announce=announce)
        self._lease = Lease(
            url,
            Registration(process_name(), tuple(registry), slots),
            lease_seconds,
            on_beat=self._on_beat,
            running=lambda: [f"{job_id}#{number}" for job_id, number in list(self._held)],
            pace=self._account.pace,
        )
        self._recorder = Recorder(
            url, effects, lambda: self._lease.worker_id, self._on_recorded, announce=announce
        )
        WORKER_SLOTS.set(slots)

    async def ready(self) -> None:
        """A readiness check: raises while this worker has no lease to claim under, or no source to claim from."""
        if self._lease.worker_id is None:
            raise DatabaseUnavailable("this worker holds no lease")
        await self._source.ready()

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
            async with asyncio.TaskGroup() as group:
                loops = [
                    group.create_task(loop)
                    for loop in (
                        listen(self._url, self._heard),
                        self._source.run(self._wake.set),
                        report_forever(self._pool, self._held),
                        self._watch(),
                        self._wake_at(stop),
                    )
                ]
                try:
                    await self._claim_until(stop)
                finally:
                    withdrawing = group.create_task(self._source.drain())
                    await self._drain()
                    await withdrawing
                    for task in loops:
                        task.cancel()
        return 1 if self._left_behind.exhausted else 0

    async def _claim_until(self, stop: asyncio.Event) -> None:
        idle = MIN_IDLE_SECONDS
        while not (stop.is_set() or self._left_behind.exhausted):
            # Cleared before the claim: a hint that comes while it runs must not be lost.
            self._wake.clear()
            # Half of the slots at a time: PostgreSQL claims the one half while Python runs the other.
            room = min(self._slots - len(self._occupied), 2 * self._slots - len(self._held))
            free = max(0, min(room, (self._slots + 1) // 2))
            claimed = await self._claim(free)
            self._saturated = claimed == free
            if claimed:  # there may be more; only an empty claim has also looked below the source's mark
                idle = MIN_IDLE_SECONDS
                if not self._saturated:
                    await asyncio.sleep(0)  # what was claimed starts before the next claim is put together
                continue
            idle = min(idle * 2, MAX_IDLE_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(idle):
                    await self._wake.wait()

    async def _claim(self, free: int) -> int:
        worker_id = self._lease.worker_id
        if not free or worker_id is None:
            return 0
        began = time.time_ns()
        try:
            with self._strays.claiming():
                attempts = await self._source.claim(worker_id, free)
        except (DatabaseUnavailable, Error) as error:
            if not self._blind:
                log.warning("claim.failed", error=str(error))
            self._blind = True
            return 0
        if self._blind:
            log.info("claim.recovered")
        self._blind = False
        tracing.claimed(began, attempts)
        for attempt in attempts:
            self._start(attempt)
        return len(attempts)

    def _start(self, attempt: Attempt) -> None:
        self._account.started(attempt)
        execution = Execution(attempt, self._registry[attempt.job.preset], self._on_end, self._on_idle)
        self._occupied.add(execution)
        self._held[attempt.key] = execution
        execution.start()

    def _on_end(self, execution: Execution, outcome: Outcome) -> None:
        self._recorder.write(execution, outcome, self._account.ended(execution))

    def _on_idle(self, execution: Execution) -> None:
        self._occupied.discard(execution)
        self._wake_if_saturated()

    def _on_recorded(self, execution: Execution, outcome: Outcome | Exception) -> None:
        self._held.pop(execution.claimed.key, None)
        self._account.recorded(execution, outcome)
        self._wake_if_saturated()

    def _wake_if_saturated(self) -> None:
        if self._saturated:
            self._wake.set()

    def _heard(self, channel: str, payload: str) -> None:
        if channel == CANCEL:
            self._lease.beat_now()
        elif not payload or not self._registry.keys().isdisjoint(payload.split()):
            self._wake.set()

    def _on_beat(self, sent: float, leased: Leased) -> None:
        for key, cancel_requested in leased.items():
            if cancel_requested and key in self._held:
                self._held[key].cancel(Cancelled())
        for key, execution in self._held.items():
            if key not in leased and execution.started < sent:
                execution.cancel(Released("lost"))
        if unknown := self._strays.unknown(leased.keys() - self._held.keys()):
            self._returns.give_back(self._lease.worker_id, unknown, "unknown to its worker")
        for holder, keys in self._forsaken.items():
            self._returns.give_back(
                holder, keys, "lease lost"
            )  # which engine/moves/record.py takes for no outcome
        self._forsaken.clear()
        self._wake.set()  # after a first beat, or one after an outage, there is a lease to claim under

    async def _watch(self) -> None:
        """Many times a lease: prove that the loop lives, end what is overdue or lost, and look for stuck slots."""
        while True:
            self._lease.tick()
            self._drop_lost()
            now = time.monotonic()
            for execution in list(self._held.values()):
                if now > execution.deadline:
                    execution.time_out()
            self._left_behind.look(self._occupied)
            if self._left_behind.exhausted and not self._draining:
                log.error("worker.exhausted", left_behind=len(self._left_behind))
                self._wake.set()
            WORKER_BUSY.set(len(self._occupied))
            await asyncio.sleep(min(self._lease.seconds / 10, WATCH_SECONDS))

    def _drop_lost(self) -> None:
        """Stop what runs under a lease that is no longer ours; its outcomes will find no lease to be written.

        A lease that ran out because the database was away is no crash: under the next one its jobs are given back,
        before maintenance takes them for a dead worker's. Where the row is gone, maintenance has them already.
        """
        current = self._lease.worker_id
        lost = [execution for key, execution in self._held.items() if execution.claimed.worker_id != current]
        if lost and current is None:
            for execution in lost:
                self._forsaken[execution.claimed.worker_id].add(execution.claimed.key)
            self._lease.abandon()
        for execution in lost:
            execution.cancel(Released("lost"))

    async def _wake_at(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._wake.set()

    async def _drain(self) -> None:
        """Finish what runs within the drain time; then give back the rest, and wait for that to be written."""
        self._draining = self._saturated = True
        if self._held:
            log.info("worker.draining", attempts=len(self._held), seconds=self._drain_seconds)
        await self._emptied(self._drain_seconds)
        for execution in list(self._held.values()):
            execution.cancel(Released("shutdown"))
        self._recorder.release_effects()
        await self._emptied(GRACE_SECONDS + self._lease.seconds)

    async def _emptied(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._held:
                    self._wake.clear()
                    await self._wake.wait()


@asynccontextmanager
async def open_consumer(
    settings: Settings, url: str, source: Source, registry: Mapping[str, Pipeline]
) -> AsyncIterator[Consumer]:
    """The consumer of a process, with its pools: effects may hold theirs for long, so they have one of their own."""
    slots = settings.worker_concurrency
    async with (
        open_pool(url, name="worker", size=2) as pool,
        open_pool(url, name="effects", size=min(slots, MAX_EFFECTS), strangers=True) as effects,
    ):
        yield Consumer(
            url,
            pool,
            effects,
            source,
            registry,
            slots=slots,
            lease_seconds=settings.lease_seconds,
            drain_seconds=settings.drain_seconds,
            announce=settings.announce,
        )
