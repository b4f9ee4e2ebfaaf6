"""Composition of the relay process."""

from __future__ import annotations

import asyncio
import sys
from typing import Final

import structlog

from engine import pipeline
from engine.admin import admin_server
from engine.consumer import open_consumer
from engine.db import open_pool
from engine.maintenance import Maintenance
from engine.notify import Notifier
from engine.process import run
from engine.settings import Settings
from engine.source import PostgresSource
from migrations import open_check

log = structlog.get_logger()

CHORE_CONNECTIONS: Final = 4
CHORE_SECONDS: Final = 2.0
"""How long a chore that runs at the stop may take to end."""


async def main(settings: Settings, stop: asyncio.Event) -> int:
    """Maintain, and run jobs, until `stop`.

    Raises ConfigurationError, DatabaseUnavailable or SchemaMismatch at start.
    """
    registry = pipeline.load(settings.pipelines)
    url = settings.database()
    notifier = Notifier(url)
    source = PostgresSource(url, tuple(registry))
    async with (
        open_check(url) as schema,
        open_pool(url, name="chores", size=CHORE_CONNECTIONS) as pool,
        open_consumer(settings, url, source, registry) as consumer,
    ):
        maintenance = Maintenance(
            url,
            pool,
            lease_seconds=settings.lease_seconds,
            retention_days=settings.retention_days,
            on_ready=notifier.poke,
        )
        checks = {"schema": schema, "maintenance": maintenance.ready, "lease": consumer.ready}
        async with admin_server(settings, "relay", checks) as port, asyncio.TaskGroup() as group:
            slots = settings.worker_concurrency
            log.info("relay.started", presets=list(registry), slots=slots, admin_port=port)
            notifying = group.create_task(notifier.run())
            maintaining = group.create_task(maintenance.run(stop))
            code = await consumer.run(stop)
            stop.set()
            await asyncio.wait([maintaining], timeout=CHORE_SECONDS)
            maintaining.cancel()  # a VACUUM may take longer, and begins anew elsewhere
            notifying.cancel()
        return code


if __name__ == "__main__":
    sys.exit(run("relay", main))
