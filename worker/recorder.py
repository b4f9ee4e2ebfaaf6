"""Writes outcomes in groups: the attempts that ended during the last write go into the next one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from uuid import UUID

import structlog
from psycopg import Error

from engine.cancellation import being_cancelled
from engine.errors import DatabaseUnavailable, LeaseLost
from engine.model import Cancelled, Completed, JobState, Outcome, Reason, Released, Unreadable
from engine.moves import recorded
from engine.moves.finish import Recorded
from engine.queries.audit import UnreadableRun, unreadable_runs
from engine.storage.batch_size import BatchSize
from engine.storage.batcher import BISECTED, Batcher
from engine.storage.checked_connection import CheckedConnection
from engine.storage.connections import Connection, PinnedConnection, Pool
from engine.storage.deadline import STATEMENT_SECONDS
from engine.storage.faults import by_blame
from engine.telemetry import tracing
from worker.children.child_effects import ChildEffects
from worker.children.frames import Commit
from worker.effects import EffectsCommit
from worker.execution import GRACE_SECONDS, Execution
from worker.outcome import DeadlinePassed, after, record, substitutes, within_budget, within_patience
from worker.rows import Row, key_of, size_of, write

MAX_BATCH: Final = 500
FIRST_PAUSE_SECONDS: Final = 0.05
MAX_PAUSE_SECONDS: Final = 2.0
CHILD_SECONDS: Final = 3 * GRACE_SECONDS
"""How long the end of a child is waited for that is ended in the middle of its effects."""

OnEnd = Callable[[Execution, Outcome | Exception], None]

log = structlog.get_logger()


@dataclass(slots=True)
class Item:
    """A row to write under the lease `holder`; `context` is the traceparent of the attempt's span.

    `tried`: a write may have committed the row already.
    """

    holder: int
    row: Row
    context: str | None
    tried: bool = False


class Recorder:
    """Records outcomes under the lease `worker_id()`; None means that the lease is lost.

    `on_end(execution, written)` must not raise. See `record`.
    The pool `effects` resets its connections, because an author's code may leave settings on them.
    """

    def __init__(
        self,
        url: str,
        effects: Pool,
        worker_id: Callable[[], int | None],
        *,
        publish_results: bool = False,
        on_end: OnEnd,
    ) -> None:
        self._on_end = on_end
        self._conn = CheckedConnection(url, name="record")
        self._size = BatchSize(MAX_BATCH, STATEMENT_SECONDS)
        self._pool = effects
        self._worker_id = worker_id
        self._publish_results = publish_results
        self._rng = random.Random()  # noqa: S311 - jitter, not a secret
        self._writing: set[asyncio.Task[Outcome]] = set()
        self._committing: set[asyncio.Task[Outcome]] = set()
        self._rows: Batcher[Item, JobState] = Batcher(
            self._flush, max_group=MAX_BATCH, weigh=lambda item: size_of(item.row), tries=1
        )
        # A connection of its own, opened when an attempt turns out unreadable: that is rare.
        self._reading = PinnedConnection(url, name="unreadable")
        self._runs: Batcher[UUID, UnreadableRun] = Batcher(self._read_runs, max_group=MAX_BATCH)

    def record(self, execution: Execution, outcome: Outcome, metadata: str) -> None:
        """Write the outcome, with `metadata` (JSON text) beside a result, and tell `on_end` what was written.

        The two may differ: an error may have used up the budget, the effects may have failed, or the owner may have
        requested cancellation. `on_end` gets LeaseLost when the attempt no longer belongs to this worker, or the error
        because of which nothing can be written. It is not called if the process ends first.
        """
        outcome = within_budget(execution.attempt, execution.pipeline, outcome, self._rng)
        if isinstance(outcome, Completed) and outcome.effects is not None:
            self._apart(execution, self._put_with_effects(execution, outcome, metadata))
        elif isinstance(outcome, Unreadable):
            self._apart(execution, self._put_with_patience(execution, outcome, metadata))
        else:
            # No task waits for the write: that would cost a no-op job a tenth of its time.
            settle = partial(self._settle, execution, outcome, metadata)
            self._rows.post(_item(execution, outcome, metadata), settle)

    async def ready(self) -> None:
        """A readiness check: raises while outcomes cannot be written."""
        await self._conn.ready()

    def release_effects(self) -> None:
        """Stop running effects. Their writes are rolled back, and their jobs are released."""
        for task in self._committing:
            task.cancel()

    async def aclose(self) -> None:
        self.release_effects()
        await self._conn.aclose()
        await self._reading.aclose()

    def _settle(
        self, execution: Execution, outcome: Outcome, metadata: str, answer: JobState | Exception
    ) -> None:
        if isinstance(answer, BISECTED):
            self._apart(execution, self._put_instead(execution, outcome, metadata, answer))
        else:
            self._on_end(execution, answer if isinstance(answer, Exception) else _written(outcome, answer))

    def _apart(self, execution: Execution, writing: Coroutine[Any, Any, Outcome]) -> None:
        """Write one outcome in a task of its own."""

        def ended(task: asyncio.Task[Outcome]) -> None:
            self._writing.discard(task)
            if not task.cancelled():  # the process ends
                error = task.exception()
                self._on_end(execution, error if isinstance(error, Exception) else task.result())

        task = asyncio.create_task(writing)
        self._writing.add(task)
        task.add_done_callback(ended)

    async def _put_with_effects(self, execution: Execution, outcome: Completed, metadata: str) -> Outcome:
        written = await self._with_effects(execution, outcome, metadata)
        if isinstance(written, Completed):
            return written
        instead = within_budget(execution.attempt, execution.pipeline, written, self._rng)
        return await self._put(execution, instead, metadata)

    async def _put_with_patience(self, execution: Execution, outcome: Unreadable, metadata: str) -> Outcome:
        return await self._put(execution, await self._within_patience(execution, outcome), metadata)

    async def _put(self, execution: Execution, outcome: Outcome, metadata: str) -> Outcome:
        """Write `outcome`, or a substitute if PostgreSQL refuses it. Returns what was written."""
        try:
            return _written(outcome, await self._rows.put(_item(execution, outcome, metadata)))
        except BISECTED as error:
            return await self._put_instead(execution, outcome, metadata, error)

    async def _put_instead(
        self, execution: Execution, outcome: Outcome, metadata: str, fault: Exception
    ) -> Outcome:
        """Write the first substitute that PostgreSQL accepts, and return it. Raises `fault` if there is none."""
        for instead in substitutes(outcome, fault):
            with suppress(*BISECTED):
                return _written(instead, await self._rows.put(_item(execution, instead, metadata)))
        raise fault

    async def _within_patience(self, execution: Execution, outcome: Unreadable) -> Outcome:
        try:
            run = await self._runs.put(execution.attempt.job.id)
        except (DatabaseUnavailable, Error) as error:
            # The job waits for the shortest time. Its next unreadable attempt asks again.
            log_at = by_blame(log, error)
            log_at("patience.not_read", job_id=execution.attempt.job.id)
            return outcome
        return within_patience(outcome, run.attempts, run.seconds)

    async def _read_runs(self, ids: Sequence[UUID]) -> Sequence[UnreadableRun]:
        async with self._reading.use() as conn:
            runs = await unreadable_runs(conn, ids)
        return [runs[job_id] for job_id in ids]

    async def _with_effects(self, execution: Execution, outcome: Completed, metadata: str) -> Outcome:
        """Commit `outcome` with its effects. Returns `outcome`, or the outcome to write instead.

        A task of its own, so that `release_effects` can cancel the effects without cancelling the attempt.
        """
        task = asyncio.create_task(self._committed(execution, outcome, metadata))
        self._committing.add(task)
        task.add_done_callback(self._committing.discard)
        await asyncio.wait([task])
        return Released(Reason.SHUTDOWN) if task.cancelled() else task.result()

    async def _committed(self, execution: Execution, outcome: Completed, metadata: str) -> Outcome:
        if isinstance(outcome.effects, ChildEffects):
            return await self._committed_by_child(execution, outcome, metadata)
        commit = EffectsCommit(
            self._pool, self._worker_id, execution, outcome, metadata, publish_results=self._publish_results
        )
        try:
            await commit.run()
        except LeaseLost:
            raise
        except BaseException as error:
            # Effects are an author's code: every error that they raise is the job's.
            if isinstance(error, asyncio.CancelledError) and being_cancelled():
                raise
            return after(error)
        return outcome

    async def _committed_by_child(self, execution: Execution, outcome: Completed, metadata: str) -> Outcome:
        effects = outcome.effects
        assert isinstance(effects, ChildEffects)
        limit = execution.attempt.timeout_seconds or execution.pipeline.timeout
        try:
            with tracing.record([execution.span.traceparent], 1):
                async with asyncio.timeout(limit + GRACE_SECONDS):
                    written = await effects.commit(Commit(metadata, self._publish_results))
            if written is not None:
                return written
            died = effects.died
        except (TimeoutError, asyncio.CancelledError):
            # With the child ends its transaction, and nobody waits for the answer of another one.
            effects.child.terminate(GRACE_SECONDS)
            await asyncio.wait([effects.child.over], timeout=CHILD_SECONDS)
            if being_cancelled():
                raise
            died = after(DeadlinePassed(f"the effects did not end within {limit:g} s"))
        # It has died, perhaps after the commit.
        async with self._reading.use() as conn:
            return outcome if await recorded(conn, [execution.key]) else died

    async def _flush(self, items: Sequence[Item]) -> Sequence[JobState | Exception]:
        """Write one group, and try again until the write is acknowledged or the lease is lost.

        A write that timed out is tried again in smaller portions. If the lease is lost after a try, one question
        remains: which rows has that try written? The question is repeated until the database answers, because until
        then nothing else can be written either.
        """
        done: Recorded = {}
        left = items
        tried = any(item.tried for item in items)
        pause = FIRST_PAUSE_SECONDS
        while left and ((worker_id := self._worker_id()) is not None or tried):
            try:
                async with self._conn.use() as conn:
                    with self._size.run() as limit:
                        portion = left[:limit]
                        # A try whose connection broke may have committed: its rows are not written again.
                        if tried:
                            done |= await recorded(conn, [key_of(item.row) for item in portion])
                        if worker_id is not None:
                            written = await self._write(conn, worker_id, portion, done)
                            done = done | written if done else written
                left = left[len(portion) :]
                if left:
                    _mark_tried(portion)  # a later portion may raise one of BISECTED
            except (DatabaseUnavailable, Error) as error:
                if isinstance(error, BISECTED):
                    raise
                log_at = by_blame(log, error)
                log_at("record.failed", rows=len(items))
                tried = True
                _mark_tried(left)
                await asyncio.sleep(pause)
                pause = min(pause * 2, MAX_PAUSE_SECONDS)
        return [done.get(key_of(row)) or LeaseLost(str(row.job_id)) for row in (item.row for item in items)]

    async def _write(
        self, conn: Connection, worker_id: int, items: Sequence[Item], done: Recorded
    ) -> Recorded:
        # Rows of an earlier lease are left out: those attempts are lost.
        rows = [item.row for item in items if item.holder == worker_id]
        if done:
            rows = [row for row in rows if key_of(row) not in done]
        with tracing.record((item.context for item in items), len(rows)):
            return await write(conn, worker_id, rows, publish_results=self._publish_results)


def _item(execution: Execution, outcome: Outcome, metadata: str) -> Item:
    attempt = execution.attempt
    return Item(attempt.worker_id, record(attempt, outcome, metadata), execution.span.traceparent)


def _written(outcome: Outcome, state: JobState) -> Outcome:
    """Releasing a job whose cancellation was requested cancels the job."""
    return Cancelled() if state is JobState.CANCELLED else outcome


def _mark_tried(items: Sequence[Item]) -> None:
    for item in items:
        item.tried = True
