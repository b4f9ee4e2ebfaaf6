"""The relay of a process: jobs, results and dead letters, each drained to its topic by a loop of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final

from engine.errors import DatabaseUnavailable
from engine.notify import READY, listen
from engine.pubsub import names
from engine.relays import Kind, Standing, tell_forever
from engine.settings import Settings
from relay.drain import Drain
from relay.outgoing import Events, WakeUps
from relay.publisher import Publisher, connected

STALE_SECONDS: Final = 10.0


class Relay:
    """Drains the outbox until stopped. Several may run: row locks and reservations share the work."""

    def __init__(self, settings: Settings, url: str, presets: Iterable[str], publisher: Publisher) -> None:
        topics = names(settings)
        self._url = url
        self._jobs = WakeUps(url, presets)
        self._waking = Drain("jobs", topics.jobs, self._jobs, publisher)
        self._drains: dict[Kind, Drain[Any]] = {
            "jobs": self._waking,
            "results": Drain("results", topics.results, Events(url, "results"), publisher),
            "dead-letters": Drain(
                "dead-letters", topics.dead_letters, Events(url, "dead-letters"), publisher
            ),
        }

    async def ready(self) -> None:
        """A readiness check: raises while the outbox is not looked at. A broker that is down is not our fault."""
        behind = max(drain.behind_seconds for drain in self._drains.values())
        if behind > STALE_SECONDS:
            raise DatabaseUnavailable(f"the outbox was not looked at for {behind:.0f} s")

    async def run(self, stop: asyncio.Event) -> int:
        """Drain until `stop`, then finish what is on its way. Returns 0."""
        async with asyncio.TaskGroup() as group:
            beside = [
                group.create_task(each)
                for each in (listen(self._url, self._heard), tell_forever(self._url, self._standings))
            ]
            try:
                async with asyncio.TaskGroup() as drains:
                    for drain in self._drains.values():
                        drains.create_task(drain.run(stop))
            finally:
                for task in beside:
                    task.cancel()
        return 0

    def _standings(self) -> list[Standing]:
        return [Standing(kind, *drain.standing) for kind, drain in self._drains.items()]

    def _heard(self, channel: str, payload: str) -> None:
        if channel == READY:
            self._jobs.learn(payload.split())
            self._waking.wake()


@asynccontextmanager
async def open_relay(settings: Settings, url: str, presets: Iterable[str]) -> AsyncIterator[Relay]:
    """Raises ConfigurationError without credentials for Pub/Sub."""
    async with connected() as publisher:
        yield Relay(settings, url, presets, publisher)
