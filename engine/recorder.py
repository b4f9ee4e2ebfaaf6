"""Writes what attempts came to: everything that ended while the last write ran goes into the next one."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, LiteralString
from uuid import UUID

import structlog
from psycopg import AsyncConnection, DataError

from engine.batcher import Batcher
from engine.db import HotConnection, Pool, lent, transient
from engine.errors import DatabaseUnavailable, LeaseLost
from engine.executor import Execution, after
from engine.metrics import BATCH_ROWS, BATCH_SECONDS
from engine.model import Completed, Effects, Failed, JobState, Outcome
from engine.moves import Ending, PutBack, finish, put_back, settled
from engine.moves.record import Settled
from engine.outcome import record, settle

MAX_BATCH: Final = 500
FIRST_PAUSE_SECONDS: Final = 0.05
MAX_PAUSE_SECONDS: Final = 2.0

FENCE: LiteralString = "SELECT 1 FROM outbox WHERE job_id = %s AND attempt = %s AND worker_id = %s FOR UPDATE"

log = structlog.get_logger()
Row = Ending | PutBack


class Recorder:
    """Records outcomes for the worker whose lease `worker_id()` tells; None means that the lease is lost.

    `on_recorded(execution, outcome)` is called once for each outcome written, with what was written in the end (an
    error may have used up the budget), or with the exception for which nothing was: LeaseLost as a rule.
    """

    def __init__(
        self,
        url: str,
        pool: Pool,
        worker_id: Callable[[], int | None],
        on_recorded: Callable[[Execution, Outcome | Exception], None],
    ) -> None:
        self._conn = HotConnection(url, name="record")
        self._pool = pool
        self._worker_id = worker_id
        self._on_recorded = on_recorded
        self._rng = random.Random()  # noqa: S311 - jitter, not a secret
        self._effects: set[asyncio.Task[None]] = set()
        self._rows: Batcher[tuple[int, Row], JobState] = Batcher(
            self._flush, max_group=MAX_BATCH, weigh=lambda item: _size(item[1]), tries=1
        )

    def write(self, execution: Execution, outcome: Outcome, metadata: str) -> None:
        """Have `outcome` recorded, with `metadata` (JSON text) beside a result. Held until it is acknowledged."""
        outcome = settle(execution.record, execution.pipeline, outcome, self._rng)
        if isinstance(outcome, Completed) and outcome.effects is not None:
            task = asyncio.create_task(self._with_effects(execution, outcome, outcome.effects, metadata))
            self._effects.add(task)
            task.add_done_callback(self._effects.discard)
        else:
            self._put(execution, outcome, metadata)

    async def aclose(self) -> None:
        for task in self._effects:
            task.cancel()
        await self._conn.aclose()

    def _put(self, execution: Execution, outcome: Outcome, metadata: str) -> None:
        row = record(execution.record, outcome, metadata)
        answered = partial(self._answered, execution, outcome, metadata)
        self._rows.put((execution.record.worker_id, row), answered)

    def _answered(
        self, execution: Execution, outcome: Outcome, metadata: str, answer: JobState | Exception
    ) -> None:
        if isinstance(answer, DataError) and isinstance(outcome, Completed):
            self._put(execution, Failed(f"the output cannot be stored: {answer}"), metadata)
        else:
            self._on_recorded(execution, answer if isinstance(answer, Exception) else outcome)

    async def _flush(self, items: Sequence[tuple[int, Row]]) -> Sequence[JobState | Exception]:
        """Write one group, again and again until it is acknowledged or the lease under it is lost."""
        done: Settled = {}
        pause = FIRST_PAUSE_SECONDS
        while (worker_id := self._worker_id()) is not None:
            rows = [row for holder, row in items if holder == worker_id]
            try:
                async with self._conn.use() as conn:
                    if pause > FIRST_PAUSE_SECONDS and rows:
                        done |= await settled(conn, [_key(row) for row in rows])
                        rows = [row for row in rows if _key(row) not in done]
                    done |= await _write(conn, worker_id, rows)
                break
            except Exception as error:
                if not (transient(error) or isinstance(error, DatabaseUnavailable)):
                    raise
                log.warning("record.failed", error=str(error), rows=len(rows))
                await asyncio.sleep(pause)
                pause = min(pause * 2, MAX_PAUSE_SECONDS)
        return [done.get(_key(row)) or LeaseLost(str(row.job_id)) for _, row in items]

    async def _with_effects(
        self, execution: Execution, outcome: Completed, effects: Effects, metadata: str
    ) -> None:
        attempt = execution.record
        try:
            await self._complete(execution, outcome, effects, metadata)
        except LeaseLost as error:
            self._on_recorded(execution, error)
        except Exception as error:  # noqa: BLE001 - effects are an author's code: a raise is the job's error
            self._put(execution, settle(attempt, execution.pipeline, after(error), self._rng), metadata)
        else:
            self._on_recorded(execution, outcome)

    async def _complete(
        self, execution: Execution, outcome: Completed, effects: Effects, metadata: str
    ) -> None:
        """Write result and effects together, tried again while the database cannot be reached."""
        attempt = execution.record
        pause = FIRST_PAUSE_SECONDS
        ending = record(attempt, outcome, metadata)
        while self._worker_id() == attempt.worker_id:
            seconds = attempt.timeout_seconds or execution.pipeline.timeout
            try:
                async with asyncio.timeout(seconds), lent(self._pool, seconds) as conn:
                    if pause > FIRST_PAUSE_SECONDS and await settled(conn, [attempt.key]):
                        return
                    # Fence first, then the effects, then result and audit: one transaction, the author's and ours.
                    async with conn.transaction():
                        await _fence(conn, attempt.key, attempt.worker_id)
                        await effects(conn)
                        await _write(conn, attempt.worker_id, [ending])
                    return
            except DatabaseUnavailable as error:
                log.warning("record.failed", error=str(error), rows=1)
                await asyncio.sleep(pause)
                pause = min(pause * 2, MAX_PAUSE_SECONDS)
        raise LeaseLost(str(attempt.job.id))


async def _fence(conn: AsyncConnection[Any], key: tuple[UUID, int], worker_id: int) -> None:
    cursor = await conn.execute(FENCE, [*key, worker_id])
    if await cursor.fetchone() is None:
        raise LeaseLost(str(key[0]))


async def _write(conn: AsyncConnection[Any], worker_id: int, rows: Sequence[Row]) -> Settled:
    """The caller may own a transaction; without one, each kind of row commits by itself, and may."""
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
    return 200 + len((row.output if isinstance(row, Ending) else row.error) or "")
