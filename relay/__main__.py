"""Composition of the relay process: maintenance, and beside it the work that the transport needs.

Nothing of an author's is imported here: it could keep maintenance from its time, or end it. What the relay must know of
pipelines, workers tell in their rows.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, NamedTuple

import structlog

from engine.process import supervised
from engine.process.admin import Checks, accepting, admin_server
from engine.process.fleet import Fleet
from engine.process.loops import keep_running
from engine.process.merged_metrics import Pages
from engine.process.run import calm_the_collector, pause, run
from engine.settings import Settings
from engine.storage.connections import open_pool
from engine.storage.notify import Notifier
from migrations.readiness import open_checks
from relay.maintenance.loop import Maintenance

log = structlog.get_logger()

MAINTENANCE_CONNECTIONS: Final = 4
REST_SECONDS: Final = 60.0
MAINTENANCE_SECONDS: Final = 2.0
"""How long a maintenance task that runs at the stop may take to end."""


class Work(NamedTuple):
    """What a relay does beside maintenance. `served` wants to know which presets the living workers run."""

    checks: Checks
    pages: Pages | None
    served: Callable[[Collection[str]], None]
    run: Callable[[asyncio.Event], Awaitable[int]]


@asynccontextmanager
async def _open_work(settings: Settings, url: str) -> AsyncIterator[Work]:
    """The work beside maintenance: publish the outbox, or keep workers running."""
    if settings.transport == "pubsub":
        # Imported here because Google's client takes half a second to import.
        from relay.relay import open_relay

        async with open_relay(settings, url) as relay:
            yield Work({"pubsub": relay.ready}, None, relay.served, relay.run)
    else:
        workers = Fleet("worker", settings.relay_workers, drain_seconds=settings.drain_seconds)
        pages = workers.pages if settings.relay_workers else None
        yield Work(workers.checks, pages, lambda _presets: None, partial(_run_workers, workers))


async def _run_workers(workers: Fleet, stop: asyncio.Event) -> int:
    """Keep the workers running. After a storm of ends they rest: maintenance goes on, whatever they do."""
    while True:
        code = await workers.run(stop)
        if stop.is_set():
            return code
        log.error("workers.rest", exit_code=code, seconds=REST_SECONDS)
        await pause(stop, REST_SECONDS)


async def main(settings: Settings, stop: asyncio.Event) -> int:
    """Do maintenance, and publish or keep workers running, until `stop`.

    Raises ConfigurationError, DatabaseUnavailable or SchemaMismatch at start.
    """
    url = settings.database()
    notifier = Notifier(url)
    async with (
        open_checks(url, "relay") as database,
        open_pool(url, name="maintenance", size=MAINTENANCE_CONNECTIONS) as pool,
        _open_work(settings, url) as work,
    ):
        maintenance = Maintenance(
            url,
            pool,
            lease_seconds=settings.lease_seconds,
            retention_days=settings.retention_days,
            on_ready=notifier.notify,
            on_served=work.served,
            publish_results=settings.publish_results,
        )
        checks = {
            **database,
            "maintenance": maintenance.ready,
            **work.checks,
            "accepting": accepting(stop),
        }
        async with (
            admin_server(settings, "relay", checks, pages=work.pages) as port,
            asyncio.TaskGroup() as group,
        ):
            calm_the_collector(fully=True)
            log.info("relay.started", transport=settings.transport, admin_port=port)
            notifying = group.create_task(keep_running("notify", notifier.run))
            maintaining = group.create_task(maintenance.run(stop))
            code = await work.run(stop)
            stop.set()
            await asyncio.wait([maintaining], timeout=MAINTENANCE_SECONDS)
            # A VACUUM may take longer; another relay starts it again.
            maintaining.cancel()
            notifying.cancel()
        return code


if __name__ == "__main__":
    supervised.follow(sys.argv)
    run("relay", main)
