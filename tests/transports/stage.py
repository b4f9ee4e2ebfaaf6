"""A scene whose jobs come by one transport, with all that a system of several processes would run beside it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import UUID

from engine.moves import cancel
from engine.notify import Notifier
from engine.pipeline import Pipeline
from engine.pubsub import Names, names
from engine.settings import Settings, load
from engine.source import PostgresSource, Source
from relay.provision import open_clients, provision
from relay.relay import open_relay
from tests.engine.scene import WAIT, Scene, Worker
from tests.fakes.fixtures import BrokerAt
from tests.helpers import started, worker
from worker.pubsub import open_source


class Stage:
    """Jobs by Pub/Sub at `broker`, or by PostgreSQL alone when that is None. Made by `open_stage`."""

    def __init__(self, scene: Scene, settings: Settings, broker: BrokerAt | None, notifier: Notifier) -> None:
        self.scene = scene
        self.broker = broker
        self._settings = settings
        self._notifier = notifier

    @property
    def names(self) -> Names:
        return names(self._settings)

    async def enqueue(self, preset: str = "p", content: str = "text", **asked: Any) -> UUID:
        """As web does: the hint follows the commit."""
        job_id = await self.scene.enqueue(preset, content, **asked)
        self._notifier.poke([preset])
        return job_id

    async def held_by_the_dead(self, count: int) -> list[UUID]:
        """Jobs whose worker has died. They were never to be seen ready, so that nobody else could take them."""
        conn = self.scene.conn
        async with conn.transaction():
            ghost = await worker(conn)
            ids = [(await started(conn, ghost)).job.id for _ in range(count)]
            await conn.execute("UPDATE workers SET expires_at = now() WHERE id = %s", [ghost])
        return ids

    async def cancel(self, job_id: UUID) -> str:
        return await cancel(self.scene.conn, job_id, None, announce=self._settings.announce)

    @asynccontextmanager
    async def worker(
        self, *pipelines: Pipeline, slots: int = 10, url: str | None = None, **options: Any
    ) -> AsyncIterator[Worker]:
        presets = [each.preset for each in pipelines]
        announce = self._settings.announce
        async with (
            self._source(url or self.scene.url, presets, slots) as source,
            self.scene.worker(
                *pipelines, slots=slots, url=url, source=source, announce=announce, **options
            ) as worker,
        ):
            yield worker

    @asynccontextmanager
    async def upkeep(self) -> AsyncIterator[None]:
        """What the relay process does: maintenance, and in pubsub mode the publishing."""
        async with AsyncExitStack() as stack:
            if self.broker is not None:
                relay = await stack.enter_async_context(open_relay(self._settings, self.scene.url, []))
                stop = asyncio.Event()
                stack.push_async_callback(_ended, asyncio.create_task(relay.run(stop)), stop)
            await stack.enter_async_context(
                self.scene.maintenance(on_ready=self._notifier.poke, announce=self._settings.announce)
            )
            yield

    @asynccontextmanager
    async def _source(self, url: str, presets: list[str], slots: int) -> AsyncIterator[Source]:
        if self.broker is None:
            yield PostgresSource(url, presets)
        else:
            settings = self._settings.model_copy(update={"worker_concurrency": slots})
            async with open_source(settings, url, presets) as source:
                yield source


async def _ended(task: Awaitable[int], stop: asyncio.Event) -> None:
    stop.set()
    async with asyncio.timeout(WAIT):
        await task


@asynccontextmanager
async def open_stage(scene: Scene, broker: BrokerAt | None) -> AsyncIterator[Stage]:
    """With the topics of a broker provisioned. PUBSUB_EMULATOR_HOST must name it already."""
    settings = load({})
    if broker is not None:
        settings = load({"OUTRIDER_TRANSPORT": "pubsub", "OUTRIDER_PUBSUB_PROJECT": broker.project})
        async with open_clients() as clients:
            assert [change async for change in provision(clients, names(settings))]
    notifier = Notifier(scene.url)
    notifying = asyncio.create_task(notifier.run())
    try:
        yield Stage(scene, settings, broker, notifier)
    finally:
        notifying.cancel()
        await asyncio.wait([notifying])
