"""Writes what attempts came to: everything that ended while the last write ran goes into the next one."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Final, LiteralString, NamedTuple
from uuid import UUID

import structlog
from psycopg import AsyncConnection, Error, errors

from engine import tracing
from engine.batcher import BISECTED, Batcher
from engine.db import HotConnection, Pool, fetchone, lent, transient
from engine.errors import DatabaseUnavailable, LeaseLost
from engine.executor import GRACE_SECONDS, Execution
from engine.metrics import BATCH_ROWS, BATCH_SECONDS
from engine.model import Attempt, Cancelled, Completed, Effects, Failed, JobState, Outcome, Released
from engine.moves import Ending, PutBack, finish, put_back, recorded
from engine.moves.record import Recorded
from engine.outcome import after, record, within_budget

MAX_BATCH: Final = 500
FIRST_PAUSE_SECONDS: Final = 0.05
MAX_PAUSE_SECONDS: Final = 2.0
EFFECT_TRIES: Final = 3
"""A deadlock or a lost connection is nobody's error; but effects that bring one about each time are."""

FENCE: LiteralString = "SELECT 1 FROM outbox WHERE job_id = %s AND attempt = %s AND worker_id = %s FOR UPDATE"

ROWS: Final = BATCH_ROWS.labels("record")
SECONDS: Final = BATCH_SECONDS.labels("record")

log = structlog.get_logger()
Row = Ending | PutBack


class Item(NamedTuple):
    """A row to write under the lease `holder`, and the context of its attempt's span."""

    holder: int
    row: Row
    context: str | None


class Recorder:
    """Records outcomes for the worker whose lease `worker_id()` tells; None means that the lease is lost.

    Effects run on connections of the pool `effects`, which lends them to strangers.

    `on_recorded(execution, outcome)` is called once for each outcome written, with what was written in the end (an
    error may have used up the budget), or with the exception for which nothing was: LeaseLost as a rule.
    """

    def __init__(
        self,
        url: str,
        effects: Pool,
        worker_id: Callable[[], int | None],
        on_recorded: Callable[[Execution, Outcome | Exception], None],
        *,
        announce: bool = False,
    ) -> None:
        self._conn = HotConnection(url, name="record")
        self._lending = effects
        self._worker_id = worker_id
        self._on_recorded = on_recorded
        self._announce = announce
        self._rng = random.Random()  # noqa: S311 - jitter, not a secret
        self._effects: set[asyncio.Task[None]] = set()
        self._rows: Batcher[Item, JobState] = Batcher(
            self._flush, max_group=MAX_BATCH, weigh=lambda item: _size(item.row), tries=1
        )

    def write(self, execution: Execution, outcome: Outcome, metadata: str) -> None:
        """Have `outcome` recorded, with `metadata` (JSON text) beside a result. Held until it is acknowledged."""
        outcome = within_budget(execution.claimed, execution.pipeline, outcome, self._rng)
        if isinstance(outcome, Completed) and outcome.effects is not None:
            task = asyncio.create_task(self._with_effects(execution, outcome, outcome.effects, metadata))
            self._effects.add(task)
            task.add_done_callback(partial(self._effects_left, execution, metadata))
        else:
            self._put(execution, outcome, metadata)

    def release_effects(self) -> None:
        """Stop effects that are still running: what they wrote is rolled back, and their jobs are released."""
        for task in self._effects:
            task.cancel()

    def _effects_left(self, execution: Execution, metadata: str, task: asyncio.Task[None]) -> None:
        self._effects.discard(task)
        if task.cancelled():
            self._put(execution, Released("shutdown"), metadata)

    async def aclose(self) -> None:
        self.release_effects()
        await self._conn.aclose()

    def _put(self, execution: Execution, outcome: Outcome, metadata: str) -> None:
        row = record(execution.claimed, outcome, metadata)
        answered = partial(self._answered, execution, outcome, metadata)
        self._rows.put(Item(execution.claimed.worker_id, row, execution.span.traceparent), answered)

    def _answered(
        self, execution: Execution, outcome: Outcome, metadata: str, answer: JobState | Exception
    ) -> None:
        if isinstance(answer, BISECTED) and not isinstance(outcome, Failed):
            self._put(execution, Failed(f"the outcome cannot be stored: {answer}"), metadata)
        elif isinstance(answer, Exception):
            self._on_recorded(execution, answer)
        else:  # a job whose owner asked to cancel it is not put back
            self._on_recorded(execution, Cancelled() if answer is JobState.CANCELLED else outcome)

    async def _flush(self, items: Sequence[Item]) -> Sequence[JobState | Exception]:
        """Write one group, again and again until it is acknowledged or the lease under it is lost.

        Where the lease is lost after a try, it only remains to be learnt what that has written, as soon as the
        database answers: until then nothing else can be written either.
        """
        done: Recorded = {}
        pause = FIRST_PAUSE_SECONDS
        while (worker_id := self._worker_id()) is not None or pause > FIRST_PAUSE_SECONDS:
            rows = [item.row for item in items if item.holder == worker_id]
            try:
                async with self._conn.use() as conn:
                    if pause > FIRST_PAUSE_SECONDS:
                        done |= await recorded(conn, [_key(item.row) for item in items])
                        rows = [row for row in rows if _key(row) not in done]
                    if worker_id is not None:
                        with tracing.record((item.context for item in items), len(rows)):
                            done |= await _write(conn, worker_id, rows, announce=self._announce)
                break
            except (DatabaseUnavailable, Error) as error:
                if isinstance(error, BISECTED):
                    raise
                log.warning("record.failed", error=str(error), rows=len(rows))
                await asyncio.sleep(pause)
                pause = min(pause * 2, MAX_PAUSE_SECONDS)
        return [done.get(_key(row)) or LeaseLost(str(row.job_id)) for _, row, _ in items]

    async def _with_effects(
        self, execution: Execution, outcome: Completed, effects: Effects, metadata: str
    ) -> None:
        attempt = execution.claimed
        try:
            await self._complete(execution, outcome, effects, metadata)
        except LeaseLost as error:
            self._on_recorded(execution, error)
        except BaseException as error:  # effects are an author's code: whatever they raise is the job's error
            if isinstance(error, asyncio.CancelledError) and _being_cancelled():
                raise
            self._put(
                execution, within_budget(attempt, execution.pipeline, after(error), self._rng), metadata
            )
        else:
            self._on_recorded(execution, outcome)

    async def _complete(
        self, execution: Execution, outcome: Completed, effects: Effects, metadata: str
    ) -> None:
        """Write result and effects together, again while the database cannot be reached or finds a deadlock."""
        attempt = execution.claimed
        seconds = attempt.timeout_seconds or execution.pipeline.timeout
        ending = record(attempt, outcome, metadata)
        tries = 0

        async def counted(conn: AsyncConnection[Any]) -> None:
            nonlocal tries
            tries += 1
            with tracing.step("effects"):
                await effects(conn)

        # Under a lease that was lost meanwhile it only remains to be learnt whether the last try has committed.
        while (leased := self._worker_id() == attempt.worker_id) or tries:
            # It begins with a connection: waiting for one is not the effects' time.
            limit: asyncio.Timeout | None = None
            try:
                async with (
                    lent(self._lending, seconds + GRACE_SECONDS) as conn,
                    asyncio.timeout(seconds) as limit,
                ):
                    if tries and await recorded(conn, [attempt.key]):
                        return
                    if not leased:
                        break
                    with tracing.record([execution.span.traceparent], 1):
                        await _together(conn, attempt, counted, ending, announce=self._announce)
            except (TimeoutError, DatabaseUnavailable, Error) as error:
                if limit is not None and limit.expired():
                    raise TimeoutError(f"the effects did not end within {seconds:g} s") from error
                if tries == EFFECT_TRIES or not _passing(error):
                    raise
                log.warning("record.failed", error=str(error), rows=1)
                await asyncio.sleep(FIRST_PAUSE_SECONDS * 2**tries)
            else:
                return
        raise LeaseLost(str(attempt.job.id))


async def _together(
    conn: AsyncConnection[Any], attempt: Attempt, effects: Effects, ending: Row, *, announce: bool
) -> None:
    """Fence first, then the effects, then result and audit: one transaction, the author's and ours."""
    async with conn.transaction():
        if not await fetchone(conn, FENCE, [*attempt.key, attempt.worker_id]):
            raise LeaseLost(str(attempt.job.id))
        await effects(conn)
        if not await _write(conn, attempt.worker_id, [ending], announce=announce):
            raise LeaseLost(str(attempt.job.id))


async def _write(
    conn: AsyncConnection[Any], worker_id: int, rows: Sequence[Row], *, announce: bool
) -> Recorded:
    """All of `rows` or, when this raises, none: a group that is split for its bad row is written from the start."""
    began = time.perf_counter()
    done: Recorded = {}
    endings = [row for row in rows if isinstance(row, Ending)]
    returns = [row for row in rows if isinstance(row, PutBack)]
    async with conn.transaction() if endings and returns else nullcontext():
        if endings:
            done |= await finish(conn, worker_id, endings, announce=announce)
        if returns:
            done |= await put_back(conn, worker_id, returns, announce=announce)
    ROWS.observe(len(rows))
    SECONDS.observe(time.perf_counter() - began)
    return done


def _being_cancelled() -> bool:
    """Whether the current task is asked to stop, rather than its code raising CancelledError by itself."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _passing(error: BaseException) -> bool:
    """Whether it will go by itself: nothing is wrong with the effects."""
    interrupted = errors.QueryCanceled | errors.LockNotAvailable
    return transient(error) or isinstance(error, DatabaseUnavailable | interrupted)


def _key(row: Row) -> tuple[UUID, int]:
    return row.job_id, row.attempt


def _size(row: Row) -> int:
    return 200 + len((row.output if isinstance(row, Ending) else row.error) or "")
