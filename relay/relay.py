"""The relay of a process: jobs, results and dead letters, each drained to its topic by a loop of its own."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from psycopg import Error

from engine.db import HotConnection
from engine.errors import DatabaseUnavailable
from engine.notify import READY, listen
from engine.pubsub import names
from engine.relays import TELL_SECONDS, Kind, Standing, tell
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
        self._telling = HotConnection(url, name="tell")

    async def ready(self) -> None:
        """A readiness check: raises while the outbox is not looked at. A broker that is down is not our fault."""
        behind = max(drain.behind_seconds for drain in self._drains.values())
        if behind > STALE_SECONDS:
            raise DatabaseUnavailable(f"the outbox was not looked at for {behind:.0f} s")

    async def run(self, stop: asyncio.Event) -> int:
        """Drain until `stop`, then finish what is on its way. Returns 0."""
        async with asyncio.TaskGroup() as group:
            beside = [
                group.create_task(each) for each in (listen(self._url, self._heard), self._tell_forever())
            ]
            try:
                async with asyncio.TaskGroup() as drains:
                    for drain in self._drains.values():
                        drains.create_task(drain.run(stop))
            finally:
                for task in beside:
                    task.cancel()
        return 0

    async def _tell_forever(self) -> None:
        """Say in the database how the topics fare, for those who are asked why a job has not started."""
        name = f"{socket.gethostname()}:{os.getpid()}"
        try:
            while True:
                standings = [Standing(kind, *drain.standing) for kind, drain in self._drains.items()]
                with suppress(DatabaseUnavailable, Error):  # the next round tells it
                    async with self._telling.use() as conn:
                        await tell(conn, name, standings)
                await asyncio.sleep(TELL_SECONDS)
        finally:
            await self._telling.aclose()

    def _heard(self, channel: str, payload: str) -> None:
        if channel == READY:
            self._jobs.learn(payload.split())
            self._waking.wake()


@asynccontextmanager
async def open_relay(settings: Settings, url: str, presets: Iterable[str]) -> AsyncIterator[Relay]:
    """Raises ConfigurationError without credentials for Pub/Sub."""
    async with connected() as publisher:
        yield Relay(settings, url, presets, publisher)
