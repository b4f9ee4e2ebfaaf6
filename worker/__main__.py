"""Composition of the worker process."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from engine.pipeline import Registry, load_pipelines
from engine.process import supervised
from engine.process.admin import accepting, admin_server
from engine.process.run import calm_the_collector, run
from engine.settings import Settings
from migrations.readiness import open_checks
from worker.opening import open_consumer
from worker.source import PostgresSource, Source

log = structlog.get_logger()


@asynccontextmanager
async def _open_source(settings: Settings, url: str, registry: Registry) -> AsyncIterator[Source]:
    if settings.transport == "pubsub":
        # Imported here because Google's client takes half a second to import.
        from worker.subscription import open_source

        async with open_source(settings, url, tuple(registry)) as source:
            yield source
    else:
        yield PostgresSource(url, tuple(registry))


async def main(settings: Settings, stop: asyncio.Event) -> int:
    """Claim and run jobs until `stop`.

    Raises ConfigurationError, DatabaseUnavailable or SchemaMismatch at start.
    """
    registry = load_pipelines(settings.pipelines)
    url = settings.database()
    async with (
        open_checks(url, "worker") as checks,
        _open_source(settings, url, registry) as source,
        open_consumer(settings, url, source, registry, stop) as consumer,
        admin_server(
            settings,
            "worker",
            {**checks, "worker": consumer.ready, "accepting": accepting(stop)},
        ) as port,
    ):
        calm_the_collector()
        log.info(
            "worker.started",
            transport=settings.transport,
            presets=list(registry),
            slots=settings.worker_concurrency,
            admin_port=port,
        )
        return await consumer.run(stop)


if __name__ == "__main__":
    supervised.follow(sys.argv)
    run("worker", main)
