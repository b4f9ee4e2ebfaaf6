"""One attempt: it ends once, whatever its pipeline does, and its slot is free when the pipeline has returned."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from structlog.testing import capture_logs

from engine.errors import PermanentError
from engine.model import (
    Cancelled,
    Completed,
    Failed,
    JobError,
    Outcome,
    Reason,
    Released,
    Retry,
    Snoozed,
)
from engine.pipeline import Pipeline
from tests.worker.test_outcome import Mute, attempt, made
from worker import threads
from worker.attempt_run import AttemptRun
from worker.execution import Execution
from worker.outcome import describe, label
from worker.report import MAX_MESSAGE

WAIT_SECONDS = 10.0


class Unspeakable:
    def __str__(self) -> str:
        raise LookupError


class Watched:
    """An execution as its consumer runs it. `heard` is each outcome that would be recorded."""

    def __init__(self, pipeline: Pipeline, **changes: Any) -> None:
        self.heard: list[Outcome] = []
        self.ended = asyncio.Event()
        self.idle = asyncio.Event()
        self.execution = Execution(attempt(**changes), pipeline, self._hear, threading.Event())

    def _hear(self, _execution: Execution, outcome: Outcome) -> None:
        self.heard.append(outcome)
        self.ended.set()

    def start(self) -> None:
        self.execution.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        outcome = await self.execution.run()
        self.idle.set()
        if self.execution.end():
            self._hear(self.execution, outcome)

    async def outcome(self) -> Outcome:
        async with asyncio.timeout(WAIT_SECONDS):
            await self.ended.wait()
        return self.heard[0]

    async def run(self) -> Outcome:
        """Start it, and give the outcome once its slot is free."""
        self.start()
        async with asyncio.timeout(WAIT_SECONDS):
            await self.idle.wait()
        [outcome] = self.heard
        return outcome


def raising(error: BaseException, kind: str) -> Pipeline:
    async def on_the_loop(_job: Any, _run: Any) -> None:
        raise error

    def in_a_thread(_job: Any, _run: Any) -> None:
        raise error

    return made(function=on_the_loop if kind == "async" else in_a_thread)


KINDS = ["async", "plain"]


@pytest.mark.parametrize(("own", "seconds"), [(None, 300.0), (7.0, 7.0), (900.0, 900.0)])
async def test_a_job_s_own_time_out_replaces_that_of_its_preset(own: float | None, seconds: float) -> None:
    execution = Watched(made(timeout=300.0), timeout_seconds=own).execution
    assert execution.deadline == execution.started + seconds


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"),
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        asyncio.CancelledError(),
        StopIteration(),
        BaseExceptionGroup("both", [SystemExit(1), ValueError()]),
        Mute(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_whatever_a_pipeline_raises_is_its_own_job_s_error(kind: str, error: BaseException) -> None:
    outcome = await Watched(raising(error, kind)).run()
    assert isinstance(outcome, Retry)
    assert isinstance(outcome.error, JobError)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_permanent_error_fails_the_job(kind: str) -> None:
    outcome = await Watched(raising(PermanentError("never"), kind)).run()
    assert outcome == Failed(JobError("PermanentError", "never"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [TimeoutError("theirs"), type("TimeoutError", (Exception,), {})("theirs")])
async def test_a_time_out_is_the_attempt_s_own_and_no_error_of_that_name(kind: str, error: Exception) -> None:
    outcome = await Watched(raising(error, kind)).run()
    assert label(outcome) == "retry"
    assert isinstance(outcome, Retry)
    assert outcome.error == JobError("TimeoutError", "theirs")


async def test_an_object_with_an_async_call_runs_on_the_loop() -> None:
    class Caller:
        async def __call__(self, _job: Any, _run: Any) -> str:
            return threading.current_thread().name

    outcome = await Watched(made(function=Caller())).run()
    assert isinstance(outcome, Completed)
    assert outcome.output.text == '"MainThread"'


async def test_an_async_pipeline_that_is_stopped_ends_as_it_was_told() -> None:
    started = asyncio.Event()

    async def wait(_job: Any, _run: Any) -> None:
        started.set()
        await asyncio.Event().wait()

    watched = Watched(made(function=wait))
    watched.start()
    async with asyncio.timeout(WAIT_SECONDS):
        await started.wait()
    watched.execution.stop(Cancelled())
    watched.execution.stop(Released(Reason.SHUTDOWN))
    assert await watched.outcome() == Cancelled()
    async with asyncio.timeout(WAIT_SECONDS):
        await watched.idle.wait()
    assert watched.heard == [Cancelled()]


async def test_an_async_pipeline_that_swallows_its_cancellation_is_stuck_in_its_slot() -> None:
    started, let_go = asyncio.Event(), asyncio.Event()

    async def stubborn(_job: Any, _run: Any) -> None:
        started.set()
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue

    watched = Watched(made(function=stubborn))
    watched.start()
    async with asyncio.timeout(WAIT_SECONDS):
        await started.wait()
    watched.execution.time_out()
    try:
        outcome = await watched.outcome()
        assert isinstance(outcome, Retry)
        assert describe(outcome.error).type == "TimeoutError"
        assert not watched.idle.is_set()
    finally:
        let_go.set()
    async with asyncio.timeout(WAIT_SECONDS):
        await watched.idle.wait()
    assert len(watched.heard) == 1


async def test_a_pipeline_whose_future_refuses_to_be_cancelled_is_stuck_and_its_stop_raises_nothing() -> None:
    """The worker stops many attempts in a row: one that raises must not keep the others running."""

    class Refusing(asyncio.Future[None]):
        def cancel(self, msg: Any = None) -> bool:  # noqa: ARG002 - the signature is asyncio's
            raise RuntimeError("never")

    awaited, started = Refusing(), asyncio.Event()

    async def stubborn(_job: Any, _run: Any) -> None:
        started.set()
        await awaited

    watched = Watched(made(function=stubborn))
    watched.start()
    async with asyncio.timeout(WAIT_SECONDS):
        await started.wait()
    watched.execution.stop(Released(Reason.SHUTDOWN))
    assert await watched.outcome() == Released(Reason.SHUTDOWN)
    assert not watched.idle.is_set()
    awaited.set_result(None)
    async with asyncio.timeout(WAIT_SECONDS):
        await watched.idle.wait()


async def test_an_async_pipeline_that_returns_when_cancelled_keeps_its_result() -> None:
    started = asyncio.Event()

    async def quick(_job: Any, _run: Any) -> str:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "done all the same"
        return "never"

    watched = Watched(made(function=quick))
    watched.start()
    async with asyncio.timeout(WAIT_SECONDS):
        await started.wait()
    watched.execution.stop(Cancelled())
    assert isinstance(await watched.outcome(), Completed)


async def test_an_attempt_stopped_before_its_first_step_gives_its_slot_back() -> None:
    async def never(_job: Any, _run: Any) -> None:
        raise AssertionError

    watched = Watched(made(function=never))
    watched.start()
    watched.execution.stop(Released(Reason.LEASE_LOST))
    async with asyncio.timeout(WAIT_SECONDS):
        await watched.idle.wait()
    assert watched.heard == [Released(Reason.LEASE_LOST)]


async def test_a_plain_function_that_is_stopped_ends_at_once_and_keeps_its_slot_until_it_returns() -> None:
    let_go = threading.Event()

    def busy(_job: Any, run: Any) -> str:
        assert run.cancelled.wait(WAIT_SECONDS)
        assert let_go.wait(WAIT_SECONDS)
        return "too late"

    watched = Watched(made(function=busy))
    watched.start()
    watched.execution.stop(Cancelled())
    assert watched.heard == [Cancelled()]
    assert not watched.idle.is_set()
    let_go.set()
    async with asyncio.timeout(WAIT_SECONDS):
        await watched.idle.wait()
    assert watched.heard == [Cancelled()]


async def test_a_process_out_of_threads_snoozes_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads, "_idle", [])
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert isinstance(await Watched(made()).run(), Snoozed)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ((0.5, "half"), (0.5, "half")),
        ((-3, "\0a\ud800"), (0.0, "a?")),
        ((7, "x" * 9999), (1.0, "x" * MAX_MESSAGE)),
        ((float("nan"), 17), (0.0, "17")),
        (("0.25",), (0.25, "")),
        ((10**400, "too much"), None),
        (("half", ""), None),
        ((0.5, Unspeakable()), None),
    ],
    ids=lambda value: str(type(value[-1]).__name__) if value else "nothing",
)
async def test_progress_is_cleaned_and_never_fails_its_pipeline(said: Any, shown: Any) -> None:
    execution = Watched(made()).execution
    with capture_logs() as lines:
        for _ in range(3):
            AttemptRun(execution).progress(*said)
    assert (execution.latest if execution.progress_n else None) == shown
    # A report that shows nothing says so once.
    assert [line["event"] for line in lines] == ([] if shown else ["progress.refused"])


@pytest.mark.parametrize("kind", KINDS)
async def test_the_flag_tells_also_who_looks_at_it_later(kind: str) -> None:
    async def on_the_loop(_job: Any, _run: Any) -> None:
        await asyncio.Event().wait()

    def in_a_thread(_job: Any, run: Any) -> None:
        assert run.cancelled.wait(WAIT_SECONDS)

    watched = Watched(made(function=on_the_loop if kind == "async" else in_a_thread))
    watched.start()
    watched.execution.stop(Cancelled())
    assert watched.execution.cancelled.is_set()
    async with asyncio.timeout(WAIT_SECONDS):
        await watched.idle.wait()


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_a_traceback_goes_to_the_log_unless_the_pipeline_meant_it(kind: str) -> None:
    with capture_logs() as events:
        await Watched(raising(KeyError("lost"), kind)).run()
        await Watched(raising(PermanentError("no"), kind)).run()
        await Watched(raising(ExceptionGroup("g", [PermanentError("no")]), kind)).run()
    [raised] = [event for event in events if event["event"] == "attempt.raised"]
    assert isinstance(raised["exc_info"], KeyError)
