"""A group of errors, as a task group raises it, is judged by what is in it."""

from __future__ import annotations

import asyncio
from asyncio import CancelledError
from typing import Any

import pytest
from psycopg import errors

from engine.errors import PermanentError
from engine.model import Completed, Failed, JobError, JobState, Retry
from tests.support.database import Conn, counters
from tests.support.worker_harness import WorkerHarness, preset
from tests.worker.test_execution import Watched
from tests.worker.test_outcome import made
from worker.outcome import after, describe, fingerprint, interpret

NEVER = PermanentError("never")


@pytest.mark.parametrize(
    ("error", "kind", "shown"),
    [
        (ExceptionGroup("g", [NEVER]), Failed, JobError("PermanentError", "never")),
        (
            ExceptionGroup("g", [ValueError("1"), ExceptionGroup("h", [KeyError("2"), NEVER])]),
            Failed,
            JobError("PermanentError", "never (and 2 more)"),
        ),
        (
            BaseExceptionGroup("g", [SystemExit(1), NEVER]),
            Failed,
            JobError("PermanentError", "never (and 1 more)"),
        ),
        (BaseExceptionGroup("g", [CancelledError(), NEVER]), Failed, JobError("PermanentError", "never")),
        (BaseExceptionGroup("g", [CancelledError(), OSError("away")]), Retry, JobError("OSError", "away")),
        (
            ExceptionGroup("g", [ValueError("1"), OSError("2")]),
            Retry,
            JobError("ValueError", "1 (and 1 more)"),
        ),
        (BaseExceptionGroup("g", [CancelledError()]), Retry, JobError("CancelledError", "CancelledError")),
        (
            ExceptionGroup("g", [ValueError("x" * 5000), OSError()]),
            Retry,
            JobError("ValueError", "x" * (2000 - len(" (and 1 more)")) + " (and 1 more)"),
        ),
    ],
)
def test_a_group_of_errors_is_judged_and_told_by_its_most_telling_one(
    error: BaseException, kind: type[Failed | Retry], shown: JobError
) -> None:
    outcome = after(error)
    assert isinstance(outcome, kind)
    assert outcome.error == shown
    for returned in (Failed(error), Retry(1, error)):
        told = interpret(returned)
        assert isinstance(told, type(returned))
        assert told.error == shown


def test_groups_that_differ_in_the_number_of_their_errors_alone_look_alike() -> None:
    def printed(count: int) -> str:
        return fingerprint(describe(ExceptionGroup("g", [ValueError(f"row {n}") for n in range(count)])))

    assert printed(2) == printed(7)
    assert printed(1) == fingerprint(describe(ValueError("row 7")))


def test_a_group_that_holds_itself_again_and_again_is_judged_in_bounded_time() -> None:
    group: ExceptionGroup[Exception] = ExceptionGroup("g", [NEVER])
    for _ in range(100):
        group = ExceptionGroup("g", [group, group])
    assert isinstance(after(group), Failed)


def test_a_cause_decides_nothing() -> None:
    error = ValueError("raised from another")
    error.__cause__ = NEVER
    assert after(error) == Retry(None, JobError("ValueError", "raised from another"))


async def test_a_permanent_error_in_a_task_group_fails_the_job() -> None:
    async def refuse() -> None:
        raise PermanentError("never")

    async def grouped(_job: Any, _run: Any) -> None:
        async with asyncio.TaskGroup() as outer, asyncio.TaskGroup() as inner:
            outer.create_task(asyncio.Event().wait())
            inner.create_task(refuse())

    assert await Watched(made(function=grouped)).run() == Failed(JobError("PermanentError", "never"))


async def raising(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("others", [0, 2])
async def test_a_permanent_error_in_a_task_group_of_the_effects_fails_the_job_at_once(
    harness: WorkerHarness, others: int
) -> None:
    @preset(max_attempts=5)
    async def answer(_job: Any, _run: Any) -> Completed:
        async def effects(_conn: Conn) -> None:
            async with asyncio.TaskGroup() as group:
                for error in [*[ValueError("other")] * others, PermanentError("never")]:
                    group.create_task(raising(error))

        return Completed(None, effects)

    job_id = await harness.enqueue()
    async with harness.worker(answer):
        [job] = await harness.ended(job_id)
    assert job.error
    assert (job.state, job.error["type"]) == (JobState.FAILED, "PermanentError")
    assert job.error["message"] == ("never (and 2 more)" if others else "never")
    assert await counters(harness.conn, job_id) == (1, 1, 0)


@pytest.mark.parametrize("how", ["deadlock", "cut"])
async def test_what_passes_by_itself_spends_nothing_in_a_task_group_of_the_effects_either(
    harness: WorkerHarness, how: str
) -> None:
    calls = 0

    @preset(max_attempts=1)
    async def answer(_job: Any, _run: Any) -> Completed:
        async def effects(conn: Conn) -> None:
            nonlocal calls
            calls += 1
            if calls > 1:
                return
            async with asyncio.TaskGroup() as group:
                if how == "cut":
                    group.create_task(conn.execute("SELECT pg_terminate_backend(pg_backend_pid())"))
                else:
                    group.create_task(raising(errors.DeadlockDetected("deadlock")))

        return Completed("done", effects)

    job_id = await harness.enqueue()
    async with harness.worker(answer):
        [job] = await harness.ended(job_id)
    assert (job.state, calls) == (JobState.COMPLETED, 2)
    assert await counters(harness.conn, job_id) == (1, 0, 0)


async def test_effects_stopped_at_their_deadline_are_a_time_out_whatever_their_task_group_raises(
    harness: WorkerHarness,
) -> None:
    async def resisting() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("while it was stopped")

    @preset(max_attempts=1)
    async def answer(_job: Any, _run: Any) -> Completed:
        async def effects(_conn: Conn) -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(resisting())

        return Completed(None, effects)

    job_id = await harness.enqueue(timeout_seconds=1)
    async with harness.worker(answer):
        [job] = await harness.ended(job_id)
    assert job.error
    assert (job.error["type"], job.error["message"]) == ("TimeoutError", "the effects did not end within 1 s")
