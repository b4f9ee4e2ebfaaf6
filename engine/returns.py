"""Gives back what is leased under an id of this worker's, and runs here no more or never did: spending nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress

import structlog
from psycopg import Error

from engine.account import Account
from engine.db import Pool, lent
from engine.errors import DatabaseUnavailable
from engine.jobs import presets_of
from engine.moves import PutBack, put_back
from engine.strays import Key

log = structlog.get_logger()


class Returns:
    """Writes beside everything else. What fails is found again two beats later; of a lost lease, by maintenance."""

    def __init__(self, pool: Pool, account: Account, *, announce: bool) -> None:
        self._pool = pool
        self._account = account
        self._announce = announce
        self._writing: set[asyncio.Task[None]] = set()

    def give_back(self, worker_id: int | None, keys: Iterable[Key], reason: str) -> None:
        """To the queue, each at its old place; `reason` goes into its history."""
        if worker_id is not None:
            rows = [PutBack(job_id, number, reason) for job_id, number in keys]
            task = asyncio.create_task(self._write(worker_id, rows))
            self._writing.add(task)
            task.add_done_callback(self._writing.discard)

    async def _write(self, worker_id: int, rows: Sequence[PutBack]) -> None:
        with suppress(DatabaseUnavailable, Error):  # as said above
            async with lent(self._pool) as conn:
                presets = await presets_of(conn, [row.job_id for row in rows])
                released = await put_back(conn, worker_id, rows, announce=self._announce)
            if released:
                log.warning("attempts.released", reason=rows[0].reason, rows=len(released))
            for (job_id, _), state in released.items():
                self._account.released(presets[job_id], state)
