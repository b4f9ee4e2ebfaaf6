"""Writes what attempts came to: everything that ended while the last write ran goes into the next one."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, LiteralString
from uuid import UUID

import structlog
from psycopg import AsyncConnection, DataError

from engine.batcher import Batcher
from engine.db import HotConnection, Pool, lent, transient
from engine.errors import DatabaseUnavailable, LeaseLost
from engine.executor import after
from engine.metrics import BATCH_ROWS, BATCH_SECONDS
from engine.model import Attempt, Completed, Effects, Failed, JobState, Outcome
from engine.moves import Ending, PutBack, finish, put_back, settled
from engine.moves.record import Settled
from engine.outcome import record, settle
from engine.pipeline import Pipeline

MAX_BATCH: Final = 500
FIRST_PAUSE_SECONDS: Final = 0.05
MAX_PAUSE_SECONDS: Final = 2.0

FENCE: LiteralString = "SELECT 1 FROM outbox WHERE job_id = %s AND attempt = %s AND worker_id = %s FOR UPDATE"

log = structlog.get_logger()
Row = Ending | PutBack


class Recorder:
    """Records outcomes for the worker whose lease `worker_id()` tells; None means that the lease is lost."""

    def __init__(self, url: str, pool: Pool, worker_id: Callable[[], int | None]) -> None:
        self._conn = HotConnection(url, name="record")
        self._pool = pool
        self._worker_id = worker_id
        self._rng = random.Random()  # noqa: S311 - jitter, not a secret
        self._rows: Batcher[tuple[int, Row], JobState] = Batcher(
            self._flush, max_group=MAX_BATCH, weigh=lambda item: _size(item[1]), tries=1
        )

    async def write(self, attempt: Attempt, pipeline: Pipeline, outcome: Outcome, metadata: str) -> Outcome:
        """Record `outcome` and return what was recorded in the end: an error may have used up the budget.

        Held and tried again until it is acknowledged. Raises LeaseLost when the attempt is no longer current.
        """
        outcome = settle(attempt, pipeline, outcome, self._rng)
        if isinstance(outcome, Completed) and outcome.effects is not None:
            try:
                await self._with_effects(attempt, outcome, outcome.effects, metadata, pipeline.timeout)
            except LeaseLost:
                raise
            except Exception as error:  # noqa: BLE001 - effects are an author's code: a raise is the job's error
                outcome = settle(attempt, pipeline, after(error), self._rng)
            else:
                return outcome
        try:
            await self._rows.submit((attempt.worker_id, record(attempt, outcome, metadata=metadata)))
        except DataError as error:
            outcome = Failed(f"the outcome cannot be stored: {error}")
            await self._rows.submit((attempt.worker_id, record(attempt, outcome, metadata=metadata)))
        return outcome

    async def aclose(self) -> None:
        await self._conn.aclose()

    async def _flush(self, items: Sequence[tuple[int, Row]]) -> Sequence[JobState | Exception]:
        """Write one group, again and again until it is acknowledged or the lease under it is lost."""
        done: Settled = {}
        pause = FIRST_PAUSE_SECONDS
        while (worker_id := self._worker_id()) is not None:
            rows = [row for holder, row in items if holder == worker_id]
            try:
                async with self._conn.use() as conn:
                    if pause > FIRST_PAUSE_SECONDS:
                        done |= await settled(conn, [_key(row) for row in rows])
                    done |= await _write(conn, worker_id, [row for row in rows if _key(row) not in done])
                break
            except Exception as error:
                if not (transient(error) or isinstance(error, DatabaseUnavailable)):
                    raise
                log.warning("record.failed", error=str(error), rows=len(rows))
                await asyncio.sleep(pause)
                pause = min(pause * 2, MAX_PAUSE_SECONDS)
        return [done.get(_key(row)) or LeaseLost(str(row.job_id)) for _, row in items]

    async def _with_effects(
        self, attempt: Attempt, outcome: Completed, effects: Effects, metadata: str, seconds: float
    ) -> None:
        """Complete the job with its effects, tried again while the database cannot be reached."""
        pause = FIRST_PAUSE_SECONDS
        while self._worker_id() == attempt.worker_id:
            try:
                async with asyncio.timeout(seconds), lent(self._pool, seconds) as conn:
                    if pause > FIRST_PAUSE_SECONDS and await settled(
                        conn, [(attempt.job.id, attempt.number)]
                    ):
                        return
                    await _complete(conn, attempt, outcome, effects, metadata)
                    return
            except DatabaseUnavailable as error:
                log.warning("record.failed", error=str(error), rows=1)
                await asyncio.sleep(pause)
                pause = min(pause * 2, MAX_PAUSE_SECONDS)
        raise LeaseLost(str(attempt.job.id))


async def _complete(
    conn: AsyncConnection[Any], attempt: Attempt, outcome: Completed, effects: Effects, metadata: str
) -> None:
    """Fence first, then the effects, then result and audit: one transaction, the author's and ours."""
    ending = record(attempt, outcome, metadata=metadata)
    assert isinstance(ending, Ending)
    async with conn.transaction():
        cursor = await conn.execute(FENCE, [attempt.job.id, attempt.number, attempt.worker_id])
        if await cursor.fetchone() is None:
            raise LeaseLost(str(attempt.job.id))
        await effects(conn)
        await finish(conn, attempt.worker_id, [ending])


async def _write(conn: AsyncConnection[Any], worker_id: int, rows: Sequence[Row]) -> Settled:
    """One transaction a kind: each move is a statement of its own and either stands alone."""
    began = time.perf_counter()
    done: Settled = {}
    if endings := [row for row in rows if isinstance(row, Ending)]:
        done |= await finish(conn, worker_id, endings)
    if returns := [row for row in rows if isinstance(row, PutBack)]:
        done |= await put_back(conn, worker_id, returns)
    BATCH_ROWS.labels("record").observe(len(rows))
    BATCH_SECONDS.labels("record").observe(time.perf_counter() - began)
    return done


def _key(row: Row) -> tuple[UUID, int]:
    return row.job_id, row.attempt


def _size(row: Row) -> int:
    return 200 + len(row.output or "" if isinstance(row, Ending) else row.error or "")
