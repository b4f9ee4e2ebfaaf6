"""Composition of the worker process."""

from __future__ import annotations

import asyncio
import sys

import structlog

import migrations
from engine import pipeline
from engine.admin import admin_server
from engine.consumer import Consumer
from engine.db import lent, open_pool
from engine.process import run
from engine.settings import Settings
from engine.source import PostgresSource

log = structlog.get_logger()


async def main(settings: Settings, stop: asyncio.Event) -> int:
    """Claim and run jobs until `stop`. Raises ConfigurationError, DatabaseUnavailable or SchemaMismatch at start."""
    registry = pipeline.load(settings.pipelines)
    url = settings.database()
    async with open_pool(url, name="worker", size=min(settings.worker_concurrency, 10) + 2) as pool:

        async def schema() -> None:
            async with lent(pool) as conn:
                await migrations.check(conn)

        await schema()
        consumer = Consumer(
            url,
            pool,
            PostgresSource(url, tuple(registry)),
            registry,
            slots=settings.worker_concurrency,
            lease_seconds=settings.lease_seconds,
            drain_seconds=settings.drain_seconds,
        )
        checks = {"schema": schema, "lease": consumer.ready}
        async with admin_server(settings, "worker", checks) as port:
            log.info(
                "worker.started", presets=list(registry), slots=settings.worker_concurrency, admin_port=port
            )
            return await consumer.run(stop)


if __name__ == "__main__":
    sys.exit(run("worker", main))
