"""Commits a result together with its effects: the author's statements and the engine's in one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, LiteralString

import structlog
from psycopg import Error, errors

from engine.errors import DatabaseUnavailable, LeaseLost
from engine.model import Completed
from engine.moves import recorded
from engine.storage.connections import Connection, Pool, borrow
from engine.storage.deadline import transient
from engine.storage.statements import fetchone
from engine.telemetry import tracing
from worker.execution import GRACE_SECONDS, Execution
from worker.outcome import DeadlinePassed, leaves, record
from worker.rows import write

TRIES: Final = 3
"""One deadlock or lost connection is no error of the job. Effects that cause one at every try are an error."""
PAUSE_SECONDS: Final = 0.05

# Proves that the attempt is still this worker's, and locks its row: nothing else takes the attempt while effects run.
FENCE: LiteralString = "SELECT 1 FROM outbox WHERE job_id = %s AND attempt = %s AND worker_id = %s FOR UPDATE"

log = structlog.get_logger()


class EffectsCommit:
    """Commits one completed attempt. The commit is tried again after an outage or a deadlock.

    At most TRIES tries run the effects, because an author's code may itself cause the deadlock.
    """

    def __init__(
        self,
        pool: Pool,
        worker_id: Callable[[], int | None],
        execution: Execution,
        outcome: Completed,
        metadata: str,
        *,
        publish_results: bool,
    ) -> None:
        self._pool = pool
        self._worker_id = worker_id
        self._attempt = execution.attempt
        self._seconds = execution.attempt.timeout_seconds or execution.pipeline.timeout
        self._traceparent = execution.span.traceparent
        self._effects = outcome.effects
        self._ending = record(execution.attempt, outcome, metadata)
        self._publish_results = publish_results
        self._tries = 0

    async def run(self) -> None:
        """Return once the result and the effects are committed, by this try or by the one before.

        Raises LeaseLost; DeadlinePassed when the effects take longer than an attempt may; or the effects' own error.
        """
        while self._leased or self._tries:
            try:
                async with self._connection() as conn:
                    if self._tries and await self._became_committed(conn):
                        return
                    if not self._leased:
                        break
                    await self._commit(conn)
                    return
            except (DatabaseUnavailable, Error, ExceptionGroup) as error:
                if self._tries == TRIES or not _passing(error):
                    raise
                log.warning("record.failed", error=str(error), rows=1)
                await asyncio.sleep(PAUSE_SECONDS * 2**self._tries)
        raise LeaseLost(str(self._attempt.job.id))

    @property
    def _leased(self) -> bool:
        """Whether the attempt's lease holds. Without the lease one question remains: has the last try committed?"""
        return self._worker_id() == self._attempt.worker_id

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        """A connection for as long as an attempt may take. Waiting for the connection is not counted.

        Raises DeadlinePassed.
        """
        limit: asyncio.Timeout | None = None
        conn: Connection | None = None
        try:
            async with (
                borrow(self._pool, self._seconds + GRACE_SECONDS) as conn,
                asyncio.timeout(self._seconds) as limit,
            ):
                yield conn
        except (TimeoutError, DatabaseUnavailable, Error, BaseExceptionGroup) as error:
            if limit is not None and limit.expired():
                raise DeadlinePassed(f"the effects did not end within {self._seconds:g} s") from error
            # `deadline` recognizes a broken connection by a single error alone.
            if conn is not None and conn.closed and all(isinstance(each, Error) for each in leaves(error)):
                raise DatabaseUnavailable(str(error)) from error
            raise

    async def _became_committed(self, conn: Connection) -> bool:
        """Whether the try before has committed: its connection broke, but the server may have received COMMIT."""
        return bool(await recorded(conn, [self._attempt.key]))

    async def _commit(self, conn: Connection) -> None:
        """Run the fence, then the effects, then write the result and its audit row, in one transaction."""
        attempt = self._attempt
        with tracing.record([self._traceparent], 1):
            async with conn.transaction():
                if not await fetchone(conn, FENCE, [*attempt.key, attempt.worker_id]):
                    raise LeaseLost(str(attempt.job.id))
                # Counted after the fence: only a try that got this far can have committed.
                self._tries += 1
                if self._effects is not None:
                    with tracing.step("effects"):
                        await self._effects(conn)
                if not await write(
                    conn, attempt.worker_id, [self._ending], publish_results=self._publish_results
                ):
                    raise LeaseLost(str(attempt.job.id))


def _passing(error: BaseException) -> bool:
    """Whether the error passes by itself, so that the effects are not at fault. A group passes if all in it do."""
    passing = DatabaseUnavailable | errors.QueryCanceled | errors.LockNotAvailable
    return all(transient(each) or isinstance(each, passing) for each in leaves(error))
