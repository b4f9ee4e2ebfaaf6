"""Opens the consumer of a process, with the pools that it uses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

from engine.pipeline import Pipeline
from engine.process.run import unless
from engine.settings import Settings
from engine.storage.connections import open_pool
from worker.children.pool import open_children
from worker.children.setting import Setting
from worker.consumer import Consumer
from worker.source import Source

MAX_EFFECTS: Final = 10
"""Effects that a process commits at the same time. Further effects wait for a connection."""


@asynccontextmanager
async def open_consumer(
    settings: Settings, url: str, source: Source, registry: Mapping[str, Pipeline], stop: asyncio.Event
) -> AsyncIterator[Consumer]:
    """The consumer of a process, with its pools. Effects have a pool of their own: they may hold connections long.

    Raises ConfigurationError if a pipeline is to run in processes that do not find it. `stop` ends the wait for that.
    """
    slots = settings.worker_concurrency
    apart = [each.preset for each in registry.values() if each.runs == "process"]
    setting = Setting(settings, "worker", apart, settings.child_max_jobs, settings.child_max_mb << 20)
    async with (
        open_children(setting) as children,
        open_pool(url, name="worker", size=2) as pool,
        open_pool(url, name="effects", size=min(slots, MAX_EFFECTS), reset_on_return=True) as effects,
    ):
        if apart:
            # One before the others, which would hold up its start.
            await unless(stop, children.try_one())
            children.expect(slots)
        yield Consumer(
            url,
            pool,
            effects,
            source,
            registry,
            slots=slots,
            lease_seconds=settings.lease_seconds,
            drain_seconds=settings.drain_seconds,
            publish_results=settings.publish_results,
            children=children,
        )
