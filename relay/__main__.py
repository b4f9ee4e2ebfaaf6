"""Composition of the relay process: maintenance, and beside it the work that the transport needs.

No job runs in this process: authors' code could keep maintenance from its time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Protocol

import structlog

from engine.pipeline import Registry, load_pipelines
from engine.process.admin import accepting, admin_server
from engine.process.loops import keep_running
from engine.process.run import calm_the_collector, pause, run
from engine.process.supervision import Supervisor
from engine.settings import Settings
from engine.storage.connections import open_pool
from engine.storage.notify import Notifier
from migrations.readiness import open_checks
from relay.maintenance.loop import Maintenance
from worker.fleet import supervised_workers

log = structlog.get_logger()

MAINTENANCE_CONNECTIONS: Final = 4
REST_SECONDS: Final = 60.0
MAINTENANCE_SECONDS: Final = 2.0
"""How long a maintenance task that runs at the stop may take to end."""


class Work(Protocol):
    async def ready(self) -> None: ...
    async def run(self, stop: asyncio.Event) -> int: ...


class _Workers:
    """The workers of this relay. After a storm of ends they rest: maintenance goes on, whatever they do."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    async def ready(self) -> None:
        await self._supervisor.ready()

    async def run(self, stop: asyncio.Event) -> int:
        while True:
            code = await self._supervisor.run(stop)
            if stop.is_set():
                return code
            log.error("workers.rest", exit_code=code, seconds=REST_SECONDS)
            await pause(stop, REST_SECONDS)


@asynccontextmanager
async def _open_work(
    settings: Settings, url: str, registry: Registry, workers: Supervisor
) -> AsyncIterator[tuple[str, Work]]:
    """The work beside maintenance, under the name of its check: publish the outbox, or keep workers running."""
    if settings.transport == "pubsub":
        # Imported here because Google's client takes half a second to import.
        from relay.relay import open_relay

        async with open_relay(settings, url, registry) as relay:
            yield "pubsub", relay
    else:
        yield "workers", _Workers(workers)


async def main(settings: Settings, stop: asyncio.Event) -> int:
    """Do maintenance, and publish or keep workers running, until `stop`.

    Raises ConfigurationError, DatabaseUnavailable or SchemaMismatch at start.
    """
    registry = load_pipelines(settings.pipelines)
    url = settings.database()
    notifier = Notifier(url)
    workers = supervised_workers(settings, settings.relay_workers if settings.transport == "postgres" else 0)
    async with (
        open_checks(url, "relay") as database,
        open_pool(url, name="maintenance", size=MAINTENANCE_CONNECTIONS) as pool,
        _open_work(settings, url, registry, workers) as (name, work),
    ):
        maintenance = Maintenance(
            url,
            pool,
            lease_seconds=settings.lease_seconds,
            retention_days=settings.retention_days,
            on_ready=notifier.notify,
            presets=registry,
            apart=[each.preset for each in registry.values() if each.runs == "process"],
            publish_results=settings.publish_results,
        )
        checks = {
            **database,
            "maintenance": maintenance.ready,
            name: work.ready,
            "accepting": accepting(stop),
        }
        pages = workers.pages if workers.places else None
        async with admin_server(settings, "relay", checks, pages=pages) as port, asyncio.TaskGroup() as group:
            calm_the_collector(fully=True)
            log.info("relay.started", transport=settings.transport, presets=list(registry), admin_port=port)
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
    run("relay", main)
