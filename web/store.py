"""The handlers' access to the database. Concurrent requests share a statement and a commit."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Final, Protocol
from uuid import UUID

from engine.errors import JobNotFound
from engine.moves.enqueue import Accepted, Submission, enqueue_group
from engine.queries import jobs
from engine.queries.jobs import JobVersion, JobView
from engine.storage.batcher import Batcher
from engine.storage.checked_connection import CheckedConnection
from engine.storage.connections import Connection, PinnedConnection, Pool, borrow, open_pool
from engine.storage.notify import WakeHint
from engine.telemetry.metrics import BATCH_ROWS, BATCH_SECONDS, WAITING
from engine.text import json_bytes
from web import metrics
from web.lists import Lists
from web.watcher import Watcher

POOL_SIZE: Final = 10
ANSWER_SECONDS: Final = 10.0
"""How long a request waits for the database before the answer is 503."""
MAX_READS: Final = 32
"""Jobs read by one statement: each may have 256 KiB of content and 4 MiB of result."""
ROW_BYTES: Final = 256
"""Weight of a job in a group, without its content and metadata."""
MAX_WAITING_BYTES: Final = 64 << 20


class Store(Protocol):
    """The interface between HTTP and the database; the benchmark uses a stub."""

    watcher: Watcher
    notify: WakeHint
    lists: Lists

    async def submit(self, submission: Submission) -> Accepted:
        """Commit the submission, or replay the answer of an earlier one with the same key.

        Raises IdempotencyMismatch, Overloaded or DatabaseUnavailable.
        """

    async def read(self, job_id: UUID, owner: str | None) -> JobView:
        """The job's current state. `owner` restricts the read; None means any. Raises JobNotFound."""

    def connection(self) -> AbstractAsyncContextManager[Connection]:
        """An autocommit connection under a deadline, for statements that are not worth grouping: not for lists."""

    async def ready(self) -> None:
        """A readiness check: raises DatabaseUnavailable unless requests can have each kind of connection."""


class PostgresStore:
    """The store on PostgreSQL: a connection each for writing, reading and watching, and a pool for the rest."""

    def __init__(self, url: str, pool: Pool, notify: WakeHint) -> None:
        self._pool = pool
        self.notify = notify
        self.lists = Lists(pool)
        self._borrowed = 0
        self._writing = CheckedConnection(url, name="web writing")
        self._reading = CheckedConnection(url, name="web reading")
        self._watching = PinnedConnection(url, name="web watching")
        self._submissions = Batcher(
            self._write, weigh=_weight, max_waiting_weight=MAX_WAITING_BYTES, patience=ANSWER_SECONDS
        )
        self._reads = Batcher(self._read, max_group=MAX_READS, patience=ANSWER_SECONDS)
        self.watcher = Watcher(self._versions)
        self._rows = BATCH_ROWS.labels("submissions")
        self._seconds = BATCH_SECONDS.labels("submissions")
        for what, line in (
            ("submissions", self._submissions),
            ("reads", self._reads),
            ("watches", self.watcher),
            ("lists", self.lists),
        ):
            WAITING.labels(what).set_function(partial(len, line))

    async def submit(self, submission: Submission) -> Accepted:
        return await self._submissions.submit(submission)

    async def read(self, job_id: UUID, owner: str | None) -> JobView:
        view = await self._reads.submit((job_id, owner))
        if view is None:
            raise JobNotFound(job_id)
        return view

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        async with borrow(self._pool) as conn:
            self._borrowed += 1
            try:
                yield conn
            finally:
                self._borrowed -= 1

    async def ready(self) -> None:
        await self._writing.ready()
        await self._reading.ready()
        # A borrowed connection proves that the pool has some. To wait for one would fail the check under load.
        if not self._borrowed:
            async with borrow(self._pool):
                pass

    async def aclose(self) -> None:
        """Answer the waiting requests, then close the connections."""
        await self._submissions.drain()
        await self._reads.drain()
        for conn in (self._writing, self._reading, self._watching):
            await conn.aclose()

    async def _write(self, group: Sequence[Submission]) -> Sequence[Accepted | Exception]:
        async with self._writing.use() as conn:
            with self._seconds.time():
                answers = await enqueue_group(conn, group)
        self._rows.observe(len(group))
        self._count(group, answers)
        return answers

    def _count(self, group: Sequence[Submission], answers: Sequence[Accepted | Exception]) -> None:
        """Count the jobs that were written, whether or not a client still waits: a replay has written nothing."""
        for submission, answer in zip(group, answers, strict=True):
            if isinstance(answer, Accepted) and not answer.replayed:
                for new in submission.jobs:
                    metrics.enqueued(new.preset)

    async def _read(self, asks: Sequence[tuple[UUID, str | None]]) -> Sequence[JobView | None]:
        async with self._reading.use() as conn:
            return await jobs.read(conn, asks)

    async def _versions(self, ids: Sequence[UUID]) -> Mapping[UUID, JobVersion]:
        async with self._watching.use() as conn:
            return await jobs.versions(conn, ids)


@asynccontextmanager
async def open_store(url: str, notify: WakeHint) -> AsyncIterator[PostgresStore]:
    """The store. `notify` is called when a finished job has become ready again. The caller runs the store's watcher."""
    async with open_pool(url, name="web", size=POOL_SIZE) as pool:
        store = PostgresStore(url, pool, notify)
        try:
            yield store
        finally:
            await store.aclose()


def _weight(submission: Submission) -> int:
    return sum(
        len(new.content.encode()) + len(json_bytes(new.metadata)) + ROW_BYTES for new in submission.jobs
    )
