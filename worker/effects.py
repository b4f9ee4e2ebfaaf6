"""Commits a result together with its effects: the author's statements and the engine's in one transaction."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from inspect import isawaitable
from typing import Final, LiteralString, Protocol

import structlog
from psycopg import AsyncCursor, Error, errors
from psycopg.pq import TransactionStatus

from engine.errors import DatabaseUnavailable, LeaseLost, PermanentError
from engine.model import Attempt, Completed
from engine.moves import recorded
from engine.pipeline import Pipeline
from engine.process import fork
from engine.storage import session
from engine.storage.adapters import lend_adapters, regain_adapters
from engine.storage.connections import Connection, Pool, borrow
from engine.storage.deadline import transient
from engine.storage.faults import by_blame
from engine.storage.statements import fetchone
from engine.telemetry import tracing
from engine.telemetry.spans import Span
from worker.execution import GRACE_SECONDS
from worker.outcome import DeadlinePassed, leaves, record
from worker.rows import write

TRIES: Final = 3
"""One lost connection is no error of the job. Effects that cause one at every try are an error."""
CONFLICTS: Final = 8
"""The same for deadlocks and serialization failures, of which a crowd of innocent jobs may have several in a row.

At the end they are an error too: a job that was released unspent each time would never end if its effects are at fault.
"""
PAUSE_SECONDS: Final = 0.05
MAX_PAUSE_SECONDS: Final = 1.0

# Proves that the attempt is still this worker's, and locks its row: nothing else takes the attempt while effects run.
# The answer names the transaction.
FENCE: LiteralString = """
SELECT pg_current_xact_id()::text FROM outbox WHERE job_id = %s AND attempt = %s AND worker_id = %s FOR UPDATE
"""
# An author's statements find the names and the time zone of the role. Between two of them the author may take as long
# as the effects may.
LEND: LiteralString = """
SET LOCAL search_path TO DEFAULT; SET LOCAL TimeZone TO DEFAULT;
SET LOCAL idle_in_transaction_session_timeout TO """
PLAIN: Final = "the effects are a plain function: they must be an async one, whose statements are awaited"
ENDED: Final = "the effects ended the transaction that they run in: they must neither commit nor roll back"

log = structlog.get_logger()


class Committed(Protocol):
    """The attempt that is committed: an Execution, or what a child knows of it."""

    @property
    def attempt(self) -> Attempt: ...
    @property
    def pipeline(self) -> Pipeline: ...
    @property
    def span(self) -> Span: ...


class EffectsCommit:
    """Commits one completed attempt. The commit is tried again after an outage or a deadlock.

    A bounded number of tries run the effects, because an author's code may itself cause the deadlock.
    """

    def __init__(
        self,
        pool: Pool,
        worker_id: Callable[[], int | None],
        execution: Committed,
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
                if self._tries >= _most_tries(error):
                    raise
                log_at = by_blame(log, error)
                log_at("record.failed", rows=1)
                # Two that have met must not meet again.
                pause = min(PAUSE_SECONDS * 2**self._tries, MAX_PAUSE_SECONDS)
                await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - jitter, not a secret
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
                fence = await fetchone(conn, FENCE, [*attempt.key, attempt.worker_id])
                if fence is None:
                    raise LeaseLost(str(attempt.job.id))
                # Counted after the fence: only a try that got this far can have committed.
                self._tries += 1
                if self._effects is not None:
                    async with _lent(conn, fence[0], self._seconds):
                        with tracing.step("effects"):
                            await awaitable(self._effects(conn))
                if not await write(
                    conn, attempt.worker_id, [self._ending], publish_results=self._publish_results
                ):
                    raise LeaseLost(str(attempt.job.id))


@asynccontextmanager
async def _lent(conn: Connection, transaction: str, seconds: float) -> AsyncIterator[None]:
    """Lend the open `transaction` to an author. Afterwards the session is ours again, whatever the author has set.

    Raises PermanentError if the author ended the transaction. What the author wrote is committed without the result
    then, and another attempt would write it again.
    """
    await conn.execute(f"{LEND}{round(seconds * 1000)}".encode())
    lend_adapters(conn)
    try:
        yield
        # A child that effects forked must not go on with our connection.
        fork.end_if_child()
    finally:
        regain_adapters(conn)
        if conn.info.transaction_status is TransactionStatus.IDLE:
            raise PermanentError(ENDED)
    conn.cursor_factory = AsyncCursor
    found = await session.set_up(conn, regain=True)
    if found.transaction != transaction:
        raise PermanentError(ENDED)
    if found.read_only:
        raise PermanentError("the effects made their transaction read-only, so the result cannot be written")


def awaitable(written: object) -> Awaitable[object]:
    """What the effects returned. Raises PermanentError if that cannot be awaited: no statement of theirs has run."""
    if not isawaitable(written):
        raise PermanentError(PLAIN)
    return written


def _most_tries(error: BaseException) -> int:
    """How many tries `error` may end before it counts as an error of the effects. 0: it does not pass by itself.

    A group passes by itself if all in it do.
    """
    return min(CONFLICTS if transient(each) else TRIES if _passing(each) else 0 for each in leaves(error))


def _passing(error: BaseException) -> bool:
    return isinstance(error, DatabaseUnavailable | errors.QueryCanceled | errors.LockNotAvailable)
