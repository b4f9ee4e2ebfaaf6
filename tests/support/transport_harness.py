"""A scene whose jobs come by one transport, with all that a system of several processes would run beside it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import UUID

from engine.moves import cancel
from engine.pipeline import Pipeline
from engine.pubsub.client import Names, names
from engine.settings import Settings, load
from engine.storage.notify import Notifier
from ops.waiting import WAIT_SECONDS
from relay.provision.apply import open_clients, provision
from relay.relay import open_relay
from tests.support.database import started, worker
from tests.support.pubsub_brokers import BrokerAt
from tests.support.worker_harness import Worker, WorkerHarness
from worker.source import PostgresSource, Source
from worker.subscription import open_source


class TransportHarness:
    """Jobs by Pub/Sub at `broker`, or by PostgreSQL alone when that is None. Made by `open_stage`."""

    def __init__(
        self, harness: WorkerHarness, settings: Settings, broker: BrokerAt | None, notifier: Notifier
    ) -> None:
        self.harness = harness
        self.broker = broker
        self._settings = settings
        self._notifier = notifier

    @property
    def names(self) -> Names:
        return names(self._settings)

    async def enqueue(self, preset: str = "p", content: str = "text", **asked: Any) -> UUID:
        """As web does: the hint follows the commit."""
        job_id = await self.harness.enqueue(preset, content, **asked)
        self._notifier.notify([preset])
        return job_id

    async def held_by_the_dead(self, count: int) -> list[UUID]:
        """Jobs whose worker has died. They were never to be seen ready, so that nobody else could take them."""
        conn = self.harness.conn
        async with conn.transaction():
            ghost = await worker(conn)
            ids = [(await started(conn, ghost)).job.id for _ in range(count)]
            await conn.execute("UPDATE workers SET expires_at = now() WHERE id = %s", [ghost])
        return ids

    async def cancel(self, job_id: UUID) -> str:
        return await cancel(self.harness.conn, job_id, None, publish_results=self._settings.publish_results)

    @asynccontextmanager
    async def worker(
        self, *pipelines: Pipeline, slots: int = 10, url: str | None = None, **options: Any
    ) -> AsyncIterator[Worker]:
        presets = [each.preset for each in pipelines]
        publish_results = self._settings.publish_results
        async with (
            self._source(url or self.harness.url, presets, slots) as source,
            self.harness.worker(
                *pipelines, slots=slots, url=url, source=source, publish_results=publish_results, **options
            ) as worker,
        ):
            yield worker

    @asynccontextmanager
    async def maintenance(self) -> AsyncIterator[None]:
        """What the relay process does: maintenance, and in pubsub mode the publishing."""
        async with AsyncExitStack() as stack:
            if self.broker is not None:
                relay = await stack.enter_async_context(open_relay(self._settings, self.harness.url))
                stop = asyncio.Event()
                stack.push_async_callback(_ended, asyncio.create_task(relay.run(stop)), stop)
            await stack.enter_async_context(
                self.harness.maintenance(
                    on_ready=self._notifier.notify, publish_results=self._settings.publish_results
                )
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
    async with asyncio.timeout(WAIT_SECONDS):
        await task


@asynccontextmanager
async def open_system(harness: WorkerHarness, broker: BrokerAt | None) -> AsyncIterator[TransportHarness]:
    """With the topics of a broker provisioned. PUBSUB_EMULATOR_HOST must name it already."""
    settings = load({})
    if broker is not None:
        settings = load({"OUTRIDER_TRANSPORT": "pubsub", "OUTRIDER_PUBSUB_PROJECT": broker.project})
        async with open_clients() as clients:
            assert [change async for change in provision(clients, names(settings))]
    notifier = Notifier(harness.url)
    notifying = asyncio.create_task(notifier.run())
    try:
        yield TransportHarness(harness, settings, broker, notifier)
    finally:
        notifying.cancel()
        await asyncio.wait([notifying])
