"""The web process with one of four stores: `python -m ops.bench.web group | single | stub | timed`."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final
from uuid import UUID

from engine.moves.enqueue import Accepted, Submission, enqueue_group
from engine.process.run import run
from engine.storage.connections import Pool, open_pool
from engine.storage.notify import WakeHint
from ops.bench.pickup import COMMITS
from web.__main__ import OpenStore, main
from web.store import PostgresStore, open_store

POOL_SIZE: Final = 20
"""On a few cores, more connections only queue inside PostgreSQL."""


class SingleStore(PostgresStore):
    """One transaction for each request: the statement of group commit with groups of one, on a pool."""

    async def submit(self, submission: Submission) -> Accepted:
        async with self.connection() as conn:
            [accepted] = await enqueue_group(conn, [submission])
        if isinstance(accepted, Exception):
            raise accepted
        return accepted


class StubStore(PostgresStore):
    """Accepts everything and stores nothing: measures the cost of HTTP alone."""

    async def submit(self, submission: Submission) -> Accepted:
        return Accepted(submission.ids)


class TimedStore(PostgresStore):
    """Group commit that records when each commit was acknowledged, and writes the times to the database at its end."""

    def __init__(self, url: str, pool: Pool, notify: WakeHint) -> None:
        super().__init__(url, pool, notify)
        self._commits: dict[UUID, float] = {}

    async def _write(self, group: Sequence[Submission]) -> Sequence[Accepted | Exception]:
        answers = await super()._write(group)
        now = time.time()
        self._commits.update((job_id, now) for submission in group for job_id in submission.ids)
        return answers

    async def aclose(self) -> None:
        await super().aclose()
        async with self.connection() as conn:
            await conn.execute(COMMITS, [list(self._commits), list(self._commits.values())])


@asynccontextmanager
async def _opened(kind: type[PostgresStore], url: str, notify: WakeHint) -> AsyncIterator[PostgresStore]:
    async with open_pool(url, name="bench", size=POOL_SIZE) as pool:
        store = kind(url, pool, notify)
        yield store
        await store.aclose()


STORES: Final[Mapping[str, OpenStore]] = {
    "group": open_store,
    "single": partial(_opened, SingleStore),
    "stub": partial(_opened, StubStore),
    "timed": partial(_opened, TimedStore),
}

if __name__ == "__main__":
    run("web", partial(main, open_store=STORES[sys.argv[1]]))
