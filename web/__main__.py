"""The web process: the API over PostgreSQL."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Final

import structlog

from engine import pipeline, process
from engine.admin import admin_server
from engine.notify import Notifier
from engine.settings import Settings
from web import health
from web.app import create_app
from web.auth import Authenticator
from web.keys import open_keys
from web.operations import Api
from web.server import serving
from web.store import Store, open_store, running

log = structlog.get_logger()

NOTICE_SECONDS: Final = 1.0
"""From "not ready" to the end of listening: a load balancer has to notice, and clients to leave."""

OpenStore = Callable[[str, Callable[[], None]], AbstractAsyncContextManager[Store]]


async def main(settings: Settings, stop: asyncio.Event, open_store: OpenStore = open_store) -> int:
    """Serve until `stop`; then say "not ready", finish what is being answered, and return the exit code."""
    registry = pipeline.load(settings.pipelines)
    url = settings.database()
    async with AsyncExitStack() as stack:
        keys = await stack.enter_async_context(open_keys(settings))
        notifier = Notifier(url)
        await stack.enter_async_context(running(notifier.run()))
        store = await stack.enter_async_context(open_store(url, notifier.poke))
        draining = asyncio.Event()
        checks = health.checks(store, draining)
        api = Api(
            registry=registry,
            auth=Authenticator(keys, settings),
            store=store,
            checks=checks,
            draining=draining,
        )
        admin_port = await stack.enter_async_context(admin_server(settings, "web", checks))
        port = await stack.enter_async_context(
            serving(
                create_app(api), settings.http_host, settings.http_port, drain_seconds=settings.drain_seconds
            )
        )
        log.info("web.started", host=settings.http_host, port=port, admin_port=admin_port)
        await stop.wait()
        draining.set()
        await asyncio.sleep(min(NOTICE_SECONDS, settings.drain_seconds))
    log.info("web.stopped")
    return process.DONE


if __name__ == "__main__":
    sys.exit(process.run("web", main))
