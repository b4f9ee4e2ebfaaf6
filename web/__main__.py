"""The web process: the API over PostgreSQL."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Final

import structlog

from engine.pipeline import load_pipelines
from engine.process import fleet, supervised
from engine.process.admin import admin_server
from engine.process.descriptors import fitting
from engine.process.http.admission import Limits
from engine.process.run import DONE, calm_the_collector, run
from engine.settings import Settings
from engine.storage.notify import Notifier, WakeHint
from migrations.readiness import open_checks
from web.api import health
from web.app import create_app
from web.auth.keys import open_keys
from web.auth.tokens import Authenticator
from web.background import running
from web.operations import Api
from web.server import listeners, serving
from web.store import Store, open_store

log = structlog.get_logger()

NOTICE_SECONDS: Final = 1.0
"""Time between "not ready" and the end of listening: load balancers must notice, and clients must leave."""

OpenStore = Callable[[str, WakeHint], AbstractAsyncContextManager[Store]]


async def main(settings: Settings, stop: asyncio.Event, open_store: OpenStore = open_store) -> int:
    """Serve until `stop`, then report "not ready", finish the requests in flight, and return 0.

    Raises ConfigurationError, DatabaseUnavailable or SchemaMismatch at start.
    """
    registry = load_pipelines(settings.pipelines)
    url = settings.database()
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        # Before the database: a wrong setting is told although the database is away.
        keys = await enter(open_keys(settings))
        database = await enter(open_checks(url, "web"))
        notifier = Notifier(url)
        await enter(running("notify", notifier.run))
        store = await enter(open_store(url, notifier.notify))
        await enter(running("watch", store.watcher.run))
        draining = asyncio.Event()
        api = Api(
            registry=registry,
            auth=Authenticator(keys, settings),
            store=store,
            checks=health.checks({**database, "connections": store.ready, **keys.checks}, draining),
            draining=draining,
            publish_results=settings.publish_results,
            cors_origins=settings.cors_origins,
        )
        admin_port = await enter(admin_server(settings, "web", api.checks))
        limits = Limits(settings.max_connections, settings.max_connections_per_address, settings.head_seconds)
        served = serving(
            create_app(api),
            settings.http_host,
            settings.http_port,
            drain_seconds=settings.drain_seconds,
            limits=fitting(limits),
            shared=supervised.listeners,
        )
        port = await enter(served)
        calm_the_collector(fully=True)
        log.info("web.started", host=settings.http_host, port=port, admin_port=admin_port)
        await stop.wait()
        draining.set()
        await asyncio.sleep(min(NOTICE_SECONDS, settings.drain_seconds))
    log.info("web.stopped")
    return DONE


async def several(settings: Settings, stop: asyncio.Event, *, processes: int) -> int:
    """Keep so many web `processes` running on one port until `stop`. Raises ConfigurationError at start.

    The supervisor opens the listening sockets, and the processes inherit them. So there is one queue of connections:
    when a process ends, the others accept what waits there, and a stop closes it for all. With a socket for each
    process (SO_REUSEPORT) each would have a queue, and what waits in it would be lost with the process.
    """
    sockets = await listeners(settings.http_host, settings.http_port)
    return await fleet.main(settings, stop, role="web", processes=processes, listeners=sockets)


if __name__ == "__main__":
    supervised.follow(sys.argv)
    run("web", main)
