"""Publishes the outbox in pubsub mode: jobs, results and dead letters, each to its topic in a loop of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final

from engine.errors import DatabaseUnavailable
from engine.process.loops import keep_running
from engine.pubsub.client import names
from engine.settings import Settings
from engine.storage.listener import Listener
from engine.storage.notify import READY
from engine.tables.relay_status import RelayStatus, Subject
from relay.publishing.outbox_sources import Events, WakeUps
from relay.publishing.publish_loop import PublishLoop
from relay.publishing.publisher import Publisher, connected
from relay.status import report_forever

STALE_SECONDS: Final = 10.0


class Relay:
    """Publishes the outbox until stopped. Several relays may run: row locks and reservations share the work."""

    def __init__(self, settings: Settings, url: str, publisher: Publisher) -> None:
        topics = names(settings)
        self._url = url
        self._jobs = WakeUps(url)
        self._wake_ups = PublishLoop("jobs", topics.jobs, self._jobs, publisher)
        self._loops: dict[Subject, PublishLoop[Any]] = {
            "jobs": self._wake_ups,
            "results": PublishLoop("results", topics.results, Events(url, "results"), publisher),
            "dead-letters": PublishLoop(
                "dead-letters", topics.dead_letters, Events(url, "dead-letters"), publisher
            ),
        }

    def served(self, presets: Iterable[str]) -> None:
        """Look for jobs of these presets, which workers run."""
        self._jobs.served(presets)

    async def ready(self) -> None:
        """A readiness check: raises while the relay does not read the outbox. An outage of the broker is no fault."""
        behind = max(loop.behind_seconds for loop in self._loops.values())
        if behind > STALE_SECONDS:
            raise DatabaseUnavailable(f"the relay has not read the outbox for {behind:.0f} s")

    async def run(self, stop: asyncio.Event) -> int:
        """Publish until `stop`, then finish the requests in flight. Returns 0."""
        async with asyncio.TaskGroup() as group:
            beside = [
                group.create_task(keep_running("listen", Listener(self._url, self._on_hint, asks=True).run)),
                group.create_task(keep_running("report", report_forever, self._url, self._statuses)),
            ]
            try:
                async with asyncio.TaskGroup() as loops:
                    for loop in self._loops.values():
                        loops.create_task(keep_running("publish", loop.run, stop))
            finally:
                for task in beside:
                    task.cancel()
        return 0

    def _statuses(self) -> list[RelayStatus]:
        return [loop.status for loop in self._loops.values()]

    def _on_hint(self, channel: str, payload: str) -> None:
        if channel == READY:
            self._jobs.hinted(payload.split())
            self._wake_ups.wake()


@asynccontextmanager
async def open_relay(settings: Settings, url: str) -> AsyncIterator[Relay]:
    """The relay with its publisher. Raises ConfigurationError without a project or credentials for Pub/Sub."""
    async with connected() as publisher:
        yield Relay(settings, url, publisher)
