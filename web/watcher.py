"""Long polls and event streams wait here: one statement every 200 ms reads the versions of all watched jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final
from uuid import UUID

import structlog
from psycopg import Error

from engine.errors import DatabaseUnavailable, Overloaded
from engine.queries.jobs import JobVersion
from engine.storage.faults import by_blame

log = structlog.get_logger()

LOOK_SECONDS: Final = 0.2
RETRY_SECONDS: Final = 1.0
MAX_WATCHES: Final = 10_000

Seen = tuple[int, int]
"""(version, progress number) of the job that the watching request has read."""


class Watch:
    """One request's interest in one job."""

    def __init__(self, watcher: Watcher, job_id: UUID) -> None:
        self._watcher = watcher
        self.job_id = job_id
        self.seen: Seen | None = None
        self.changed = asyncio.Event()

    @property
    def closed(self) -> bool:
        """Whether the process is stopping, which ends all waiting."""
        return self._watcher.closed

    async def wait(self, seen: Seen, seconds: float) -> bool:
        """Wait until the job differs from `seen`. False after `seconds` without a change, or when the process stops.

        A change between the caller's read and this call is noticed, too: the watcher compares with `seen`.
        """
        self.seen = seen
        self.changed.clear()
        if self.closed:
            return False
        try:
            async with asyncio.timeout(seconds):
                await self.changed.wait()
        except TimeoutError:
            return False
        finally:
            self.seen = None
        return not self.closed


class Watcher:
    """Wakes the watches whose jobs changed.

    `versions` returns the version of each id that exists. An unknown id counts as a change.
    """

    def __init__(
        self,
        versions: Callable[[Sequence[UUID]], Awaitable[Mapping[UUID, JobVersion]]],
        *,
        look_seconds: float = LOOK_SECONDS,
        max_watches: int = MAX_WATCHES,
    ) -> None:
        self._versions = versions
        self._look_seconds = look_seconds
        self._max_watches = max_watches
        self._watches: set[Watch] = set()
        self._watched = asyncio.Event()
        self.closed = False

    def __len__(self) -> int:
        """The number of watches."""
        return len(self._watches)

    @contextmanager
    def watch(self, job_id: UUID) -> Iterator[Watch]:
        """Watch a job for the length of the block. Raises Overloaded when there are too many watches."""
        if len(self._watches) >= self._max_watches:
            raise Overloaded(f"{self._max_watches} requests are waiting for jobs already")
        watch = Watch(self, job_id)
        self._watches.add(watch)
        self._watched.set()
        try:
            yield watch
        finally:
            self._watches.discard(watch)

    def close(self) -> None:
        """End all waiting, present and future."""
        self.closed = True
        for watch in self._watches:
            watch.changed.set()

    async def run(self) -> None:
        """Look for changes until cancelled. Without a watch no statement runs."""
        while True:
            await self._watched.wait()
            pause = self._look_seconds
            try:
                await self._look()
            except (DatabaseUnavailable, Error) as error:
                # A waiting request answers with the state that it has read when its time is up.
                log_at = by_blame(log, error)
                log_at("watcher.look_failed")
                pause = RETRY_SECONDS
            await asyncio.sleep(pause)

    async def _look(self) -> None:
        waiting = [watch for watch in self._watches if watch.seen is not None]
        if not waiting:
            if not self._watches:
                self._watched.clear()
            return
        versions = await self._versions(list({watch.job_id for watch in waiting}))
        for watch in waiting:
            version = versions.get(watch.job_id)
            if version is None or (version.version, version.progress_n) != watch.seen:
                watch.changed.set()
