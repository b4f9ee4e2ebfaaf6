"""Writes what attempts came to: everything that ended while the last write ran goes into the next one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import structlog
from psycopg import Error

from engine.errors import DatabaseUnavailable, LeaseLost
from engine.model import Cancelled, Completed, Failed, JobState, Outcome, Reason, Released
from engine.moves import recorded
from engine.moves.finish import Recorded
from engine.storage.batcher import BISECTED, Batcher
from engine.storage.connections import PinnedConnection, Pool
from engine.telemetry import tracing
from worker.effects import EffectsCommit
from worker.execution import Execution
from worker.outcome import after, record, within_budget
from worker.rows import Row, key_of, size_of, write

MAX_BATCH: Final = 500
FIRST_PAUSE_SECONDS: Final = 0.05
MAX_PAUSE_SECONDS: Final = 2.0

log = structlog.get_logger()


class Item(NamedTuple):
    """A row to write under the lease `holder`, and the context of its attempt's span."""

    holder: int
    row: Row
    context: str | None


class Recorder:
    """Records outcomes for the worker whose lease `worker_id()` tells; None means that the lease is lost.

    Effects run on connections of the pool `effects`, which resets what an author's code leaves on them.
    """

    def __init__(
        self,
        url: str,
        effects: Pool,
        worker_id: Callable[[], int | None],
        *,
        publish_results: bool = False,
    ) -> None:
        self._conn = PinnedConnection(url, name="record")
        self._pool = effects
        self._worker_id = worker_id
        self._publish_results = publish_results
        self._rng = random.Random()  # noqa: S311 - jitter, not a secret
        self._committing: set[asyncio.Task[Outcome]] = set()
        self._rows: Batcher[Item, JobState] = Batcher(
            self._flush, max_group=MAX_BATCH, weigh=lambda item: size_of(item.row), tries=1
        )

    async def record(self, execution: Execution, outcome: Outcome, metadata: str) -> Outcome:
        """Write the outcome, with `metadata` (JSON text) beside a result. Returns what was written in the end.

        That may be another outcome: an error may have used up the budget, effects may have failed, the owner may have
        asked to cancel. Raises LeaseLost when the attempt is no longer the worker's, or the error for which nothing
        can be written.
        """
        outcome = within_budget(execution.attempt, execution.pipeline, outcome, self._rng)
        if isinstance(outcome, Completed) and outcome.effects is not None:
            written = await self._with_effects(execution, outcome, metadata)
            if isinstance(written, Completed):
                return written
            outcome = within_budget(execution.attempt, execution.pipeline, written, self._rng)
        try:
            state = await self._put(execution, outcome, metadata)
        except BISECTED as error:
            if isinstance(outcome, Failed):
                raise
            outcome = Failed(f"the outcome cannot be stored: {error}")
            state = await self._put(execution, outcome, metadata)
        # A job whose owner asked to cancel it is not released.
        return Cancelled() if state is JobState.CANCELLED else outcome

    def release_effects(self) -> None:
        """Stop effects that are still running: what they wrote is rolled back, and their jobs are released."""
        for task in self._committing:
            task.cancel()

    async def aclose(self) -> None:
        self.release_effects()
        await self._conn.aclose()

    def _put(self, execution: Execution, outcome: Outcome, metadata: str) -> asyncio.Future[JobState]:
        row = record(execution.attempt, outcome, metadata)
        return self._rows.put(Item(execution.attempt.worker_id, row, execution.span.traceparent))

    async def _with_effects(self, execution: Execution, outcome: Completed, metadata: str) -> Outcome:
        """`outcome` once it is committed with its effects; else the outcome that is to be written instead."""
        task = asyncio.create_task(self._committed(execution, outcome, metadata))
        self._committing.add(task)
        task.add_done_callback(self._committing.discard)
        await asyncio.wait([task])
        return Released(Reason.SHUTDOWN) if task.cancelled() else task.result()

    async def _committed(self, execution: Execution, outcome: Completed, metadata: str) -> Outcome:
        commit = EffectsCommit(
            self._pool, self._worker_id, execution, outcome, metadata, publish_results=self._publish_results
        )
        try:
            await commit.run()
        except LeaseLost:
            raise
        except BaseException as error:  # effects are an author's code: whatever they raise is the job's error
            if isinstance(error, asyncio.CancelledError) and _being_cancelled():
                raise
            return after(error)
        return outcome

    async def _flush(self, items: Sequence[Item]) -> Sequence[JobState | Exception]:
        """Write one group, again and again until that is acknowledged or the lease under it is lost.

        Where the lease is lost after a try, one question remains: what has that try written? It is asked until the
        database answers; until then nothing else can be written either.
        """
        done: Recorded = {}
        tried = False
        pause = FIRST_PAUSE_SECONDS
        while (worker_id := self._worker_id()) is not None or tried:
            try:
                async with self._conn.use() as conn:
                    if tried:
                        done |= await recorded(conn, [key_of(item.row) for item in items])
                    if worker_id is not None:
                        rows = [
                            item.row
                            for item in items
                            if item.holder == worker_id and key_of(item.row) not in done
                        ]
                        with tracing.record((item.context for item in items), len(rows)):
                            done |= await write(conn, worker_id, rows, publish_results=self._publish_results)
                break
            except (DatabaseUnavailable, Error) as error:
                if isinstance(error, BISECTED):
                    raise
                log.warning("record.failed", error=str(error), rows=len(items))
                tried = True
                await asyncio.sleep(pause)
                pause = min(pause * 2, MAX_PAUSE_SECONDS)
        return [done.get(key_of(row)) or LeaseLost(str(row.job_id)) for _, row, _ in items]


def _being_cancelled() -> bool:
    """Whether the current task is asked to stop, rather than its code raising CancelledError by itself."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
