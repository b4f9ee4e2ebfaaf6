"""Workers and maintenance in this process, over a database of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar
from uuid import UUID

from prometheus_client import REGISTRY

from engine.model import NewJob
from engine.moves.enqueue import enqueue
from engine.pipeline import Pipeline, Registry, pipeline
from engine.queries import invariants, jobs
from engine.queries.jobs import JobView
from engine.storage.connections import Pool
from ops.waiting import WAIT_SECONDS, until
from relay.maintenance.loop import Maintenance
from tests.support.database import Conn
from worker.children.pool import Children
from worker.consumer import Consumer
from worker.source import PostgresSource, Source

T = TypeVar("T")

LEASE = 3.0


async def known(value: bool) -> bool:
    """What this process knows without asking anyone, for `until`."""
    return value


def attempts(preset: str, outcome: str) -> float:
    """How many attempts of `preset` the metrics say have ended so, in this process."""
    labels = {"preset": preset, "outcome": outcome}
    return REGISTRY.get_sample_value("outrider_attempts_total", labels) or 0.0


def dropped(preset: str) -> float:
    """How many outcomes of `preset` this process has dropped: their attempts were no longer its own."""
    return REGISTRY.get_sample_value("outrider_outcomes_dropped_total", {"preset": preset}) or 0.0


def preset(name: str = "p", **options: Any) -> Callable[[Any], Pipeline]:
    """A `local` pipeline that retries at once."""
    return lambda function: local(pipeline(name, **({"backoff": 0.0, "max_attempts": 3} | options))(function))


def local(declared: Pipeline) -> Pipeline:
    """Plain functions run in threads: they are local to their tests, where no child finds them."""
    return replace(declared, runs="thread") if declared.runs == "process" else declared


class Worker:
    """A consumer at work. `code` is what its run came to, once it has ended."""

    def __init__(self, consumer: Consumer) -> None:
        self.consumer = consumer
        self.stop = asyncio.Event()
        self._task = asyncio.create_task(consumer.run(self.stop))

    async def ended(self, seconds: float = WAIT_SECONDS) -> int:
        async with asyncio.timeout(seconds):
            return await self._task

    async def stopped(self) -> int:
        self.stop.set()
        return await self.ended()


class WorkerHarness:
    """Enqueues jobs, runs workers, and looks at what came of it."""

    def __init__(self, url: str, conn: Conn, pool: Pool, effects: Pool) -> None:
        self.url = url
        self.conn = conn
        self.pool = pool
        self.effects = effects
        self.limits: dict[str, int] = {}

    async def enqueue(self, preset: str = "p", content: str = "text", **asked: Any) -> UUID:
        job = await enqueue(self.conn, NewJob(user_id="ann", preset=preset, content=content, **asked))
        return job.id

    @asynccontextmanager
    async def worker(
        self,
        *pipelines: Pipeline,
        slots: int = 10,
        lease: float = LEASE,
        drain: float = 5.0,
        url: str | None = None,
        pool: Pool | None = None,
        effects: Pool | None = None,
        source: Source | None = None,
        publish_results: bool = False,
        children: Children | None = None,
    ) -> AsyncIterator[Worker]:
        registry = Registry(pipelines)
        apart = [each.preset for each in pipelines if each.runs == "process"]
        assert children is not None or not apart, f"without children: {apart}"
        self.limits |= {each.preset: each.max_attempts for each in pipelines}
        consumer = Consumer(
            url or self.url,
            pool or self.pool,
            effects or self.effects,
            source or PostgresSource(url or self.url, tuple(registry)),
            registry,
            slots=slots,
            lease_seconds=lease,
            drain_seconds=drain,
            publish_results=publish_results,
            children=children,
        )
        worker = Worker(consumer)
        try:
            yield worker
        finally:
            await worker.stopped()

    @asynccontextmanager
    async def maintenance(
        self,
        lease: float = 0.3,
        retention_days: int = 0,
        on_ready: Callable[[], None] = lambda: None,
        publish_results: bool = False,
    ) -> AsyncIterator[Maintenance]:
        stop = asyncio.Event()
        maintenance = Maintenance(
            self.url,
            self.pool,
            lease_seconds=lease,
            retention_days=retention_days,
            on_ready=on_ready,
            publish_results=publish_results,
        )
        task = asyncio.create_task(maintenance.run(stop))
        try:
            yield maintenance
        finally:
            stop.set()
            async with asyncio.timeout(WAIT_SECONDS):
                await task

    async def view(self, job_id: UUID) -> JobView:
        [seen] = await jobs.read(self.conn, [(job_id, None)])
        assert seen is not None
        return seen

    async def ended(self, *ids: UUID) -> list[JobView]:
        """The jobs, once all of them have a result."""

        async def look() -> list[JobView]:
            seen = [each for each in await jobs.read(self.conn, [(job_id, None) for job_id in ids]) if each]
            return seen if len(seen) == len(ids) and all(each.state.terminal for each in seen) else []

        return await until(look)

    async def row(self, statement: str, *parameters: object) -> tuple[Any, ...]:
        """The first row of `statement`, once there is one."""

        async def look() -> tuple[Any, ...]:
            return await (await self.conn.execute(statement.encode(), parameters)).fetchone() or ()

        return await until(look)

    async def broken(self, limits: Mapping[str, int] | None = None) -> list[str]:
        """Which invariants do not hold, each with its first offender."""
        found = await invariants.check(self.conn, limits or self.limits)
        return [f"{each.invariant.name}: {each.offenders[0]}" for each in found]
