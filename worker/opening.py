"""Opens the consumer of a process, with the pools that it uses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from engine.pipeline import Pipeline
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
            await _either(children.try_one(), stop.wait())
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


async def _either(first: Coroutine[Any, Any, object], second: Coroutine[Any, Any, object]) -> None:
    """Wait for one of the two, and cancel the other one. Raises what it has raised."""
    tasks = [asyncio.ensure_future(first), asyncio.ensure_future(second)]
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
    for task in ended:
        task.result()
