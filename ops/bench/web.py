"""The web process over one of three stores, as `python -m ops.bench.web group | single | stub`."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from engine import process
from engine.db import open_pool
from engine.enqueue import Accepted, Submission, enqueue_group
from web.__main__ import OpenStore, main
from web.store import PostgresStore, open_store

POOL_SIZE: Final = 20
"""More connections than that only queue inside a PostgreSQL on a few cores."""


class SingleStore(PostgresStore):
    """A transaction a request: the statement that group commit sends, in groups of one, on a pool."""

    async def submit(self, submission: Submission) -> Accepted:
        async with self.connection() as conn:
            [accepted] = await enqueue_group(conn, [submission])
        if isinstance(accepted, Exception):
            raise accepted
        self.poke()
        return accepted


class StubStore(PostgresStore):
    """Accepts everything and keeps nothing: what HTTP alone costs."""

    async def submit(self, submission: Submission) -> Accepted:
        return Accepted(tuple(new.id for new in submission.jobs))


@asynccontextmanager
async def _opened(
    kind: type[PostgresStore], url: str, poke: Callable[[], None]
) -> AsyncIterator[PostgresStore]:
    async with open_pool(url, name="bench", size=POOL_SIZE) as pool:
        yield kind(url, pool, poke)


STORES: Final[Mapping[str, OpenStore]] = {
    "group": open_store,
    "single": partial(_opened, SingleStore),
    "stub": partial(_opened, StubStore),
}

if __name__ == "__main__":
    sys.exit(process.run("web", partial(main, open_store=STORES[sys.argv[1]])))
