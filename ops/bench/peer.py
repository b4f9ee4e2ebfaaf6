"""Outrider for the rivals' benchmark: `python -m ops.bench.peer setup|produce|work`, as its `_common.py` asks for.

An application enqueues on its own connections, and the consumer runs in this process, where the handler notes the time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from importlib import import_module
from typing import Any, Final

import psycopg
from psycopg_pool import AsyncConnectionPool

import migrations
from engine import Job, NewJob, Run, enqueue, enqueue_many, pipeline
from engine.pipeline import Registry
from engine.process.run import calm_the_collector
from engine.settings import load
from engine.telemetry import logs
from worker.opening import open_consumer
from worker.source import PostgresSource

PRESET: Final = "bench"
SLOTS: Final = 500

OnJob = Callable[[int], None]


class Peer:
    """The calls that the benchmark makes; `data` is what a job carries."""

    name = "outrider"
    blocking = False
    bulk = "api"
    settings: Final = {"slots": SLOTS}

    def __init__(self, common: Any) -> None:
        self._common = common
        self._stack = AsyncExitStack()
        self._stop = asyncio.Event()
        self._on_job: OnJob = lambda _number: None

    async def setup(self, dsn: str) -> None:
        await asyncio.to_thread(migrations.up, dsn)
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
            await conn.execute(self._common.BIZ_DDL)

    async def open_producer(self, dsn: str, slots: int) -> None:
        self._pool = AsyncConnectionPool(
            dsn, min_size=slots, max_size=slots, open=False, kwargs={"autocommit": True}
        )
        await self._stack.enter_async_context(self._pool)

    async def enqueue(self, _slot: int, data: dict[str, Any]) -> None:
        async with self._pool.connection() as conn:
            await enqueue(conn, _job(data))

    async def enqueue_tx(self, _slot: int, data: dict[str, Any]) -> None:
        async with self._pool.connection() as conn, conn.transaction():
            await conn.execute(self._common.BIZ_SQL)
            await enqueue(conn, _job(data))

    async def enqueue_bulk(self, batch: list[dict[str, Any]]) -> None:
        async with self._pool.connection() as conn:
            await enqueue_many(conn, [_job(data) for data in batch])

    async def close_producer(self) -> None:
        await self._stack.aclose()

    async def prepare_worker(self, dsn: str) -> None:
        settings = load(
            {}, worker_concurrency=SLOTS, log_level="warning", log_format="json", database_url=dsn
        )
        logs.configure(settings, "worker")

        @pipeline(PRESET)
        async def handler(job: Job, _run: Run) -> None:
            self._on_job(job.metadata["i"])

        registry = Registry([handler])
        source = PostgresSource(dsn, tuple(registry))
        opening = open_consumer(settings, dsn, source, registry, self._stop)
        self._consumer = await self._stack.enter_async_context(opening)
        calm_the_collector()

    async def start_worker(self, on_job: OnJob) -> None:
        self._on_job = on_job
        self._running = asyncio.create_task(self._consumer.run(self._stop))

    async def stop_worker(self) -> None:
        self._stop.set()
        await self._running
        await self._stack.aclose()


def _job(data: dict[str, Any]) -> NewJob:
    return NewJob(user_id="user-1", preset=PRESET, content="x", metadata=data)


if __name__ == "__main__":
    common = import_module("_common")
    common.main(Peer(common))
