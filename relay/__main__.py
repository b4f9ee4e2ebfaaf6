"""Composition of the relay process."""

from __future__ import annotations

import asyncio
import sys

import structlog

import migrations
from engine import pipeline
from engine.admin import admin_server
from engine.consumer import Consumer
from engine.db import lent, open_pool
from engine.maintenance import Maintenance
from engine.notify import Notifier
from engine.process import run
from engine.settings import Settings
from engine.source import PostgresSource

log = structlog.get_logger()

CHORE_CONNECTIONS = 4


async def main(settings: Settings, stop: asyncio.Event) -> int:
    """Maintain, and run jobs, until `stop`.

    Raises ConfigurationError, DatabaseUnavailable or SchemaMismatch at start.
    """
    registry = pipeline.load(settings.pipelines)
    url = settings.database()
    size = CHORE_CONNECTIONS + min(settings.worker_concurrency, 10)
    async with open_pool(url, name="relay", size=size) as pool:

        async def schema() -> None:
            async with lent(pool) as conn:
                await migrations.check(conn)

        await schema()
        notifier = Notifier(url)
        maintenance = Maintenance(
            url,
            pool,
            lease_seconds=settings.lease_seconds,
            retention_days=settings.retention_days,
            on_ready=notifier.poke,
        )
        consumer = Consumer(
            url,
            pool,
            PostgresSource(url, tuple(registry)),
            registry,
            slots=settings.worker_concurrency,
            lease_seconds=settings.lease_seconds,
            drain_seconds=settings.drain_seconds,
        )
        checks = {"schema": schema, "maintenance": maintenance.ready, "lease": consumer.ready}
        async with admin_server(settings, "relay", checks) as port, asyncio.TaskGroup() as group:
            log.info(
                "relay.started", presets=list(registry), slots=settings.worker_concurrency, admin_port=port
            )
            notifying = group.create_task(notifier.run())
            maintaining = group.create_task(maintenance.run(stop))
            code = await consumer.run(stop)
            stop.set()
            await maintaining
            notifying.cancel()
        return code


if __name__ == "__main__":
    sys.exit(run("relay", main))
