"""Composition of the worker process."""

from __future__ import annotations

import asyncio
import sys

import structlog

from engine import pipeline
from engine.admin import admin_server
from engine.consumer import open_consumer
from engine.process import run
from engine.settings import Settings
from engine.source import PostgresSource
from migrations import open_check

log = structlog.get_logger()


async def main(settings: Settings, stop: asyncio.Event) -> int:
    """Claim and run jobs until `stop`.

    Raises ConfigurationError, DatabaseUnavailable or SchemaMismatch at start.
    """
    registry = pipeline.load(settings.pipelines)
    url = settings.database()
    source = PostgresSource(url, tuple(registry))
    async with (
        open_check(url) as schema,
        open_consumer(settings, url, source, registry) as consumer,
        admin_server(settings, "worker", {"schema": schema, "lease": consumer.ready}) as port,
    ):
        slots = settings.worker_concurrency
        log.info("worker.started", presets=list(registry), slots=slots, admin_port=port)
        return await consumer.run(stop)


if __name__ == "__main__":
    sys.exit(run("worker", main))
