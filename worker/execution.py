"""Runs one attempt: calls the pipeline, on the event loop or in a thread, and turns its end into an outcome."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from inspect import isawaitable
from types import CoroutineType
from typing import Any, Final

import structlog

from engine.model import Attempt, Completed, Job, Outcome, Retry, Snoozed
from engine.pipeline import Pipeline
from engine.process.fork import end_if_child
from engine.telemetry import tracing
from worker import threads
from worker.attempt_run import AttemptRun
from worker.children.handle import Child, ChildUnavailable, NotBegun
from worker.children.pool import Children
from worker.interpreter import ThreadClock
from worker.invocation import Invocation, awaited, discard
from worker.outcome import DeadlinePassed, describe, interpret
from worker.report import clamped, storable

GRACE_SECONDS: Final = 1.0
"""How long a pipeline may take to unwind after a stop before it counts as stuck, still in its slot."""

THREADLESS_SECONDS: Final = 5.0
"""Delay of the next attempt when the process could not start a thread."""

CHILD_TRIES: Final = 3
"""Children that an attempt is handed to, if one after the other has died before."""

Ended = Outcome | Awaitable[Any]
"""What a plain function came to in its thread: its outcome, or what the event loop must await for it."""

log = structlog.get_logger()


class Execution(Invocation):
    """A running attempt. Times are on the monotonic clock.

    An attempt ends once, when its outcome is known. Usually the pipeline has returned by then. A pipeline that does
    not stop when asked is stuck: `on_stuck` gets the outcome, and the pipeline keeps its slot until it returns.
    """

    # What most attempts never change is kept once, in the class.
    waited = 0.0
    """Seconds from when the job was due to its claim."""
    ended = False
    progress_n = 0
    reported_n = 0
    latest: tuple[float | None, str] = (None, "")
    latest_step: str | None = None
    task: asyncio.Task[None] | None = None
    """Runs the attempt from claim to its end. Kept here, because the event loop's own reference is weak."""
    thread: ThreadClock | None = None
    """The CPU time of the thread that runs a plain function, from its first step on."""
    child: Child | None = None
    """The process that runs the attempt, until it has returned or ended."""
    _seen = 0
    _progress_refused = False
    """Whether a report was refused. Only the first one of an attempt is logged: a loop may send thousands."""
    _unwinding: asyncio.Task[None] | None = None
    _stopped_as: Outcome | None = None
    _cancelled: threading.Event | None = None

    def __init__(
        self,
        attempt: Attempt,
        pipeline: Pipeline,
        on_stuck: Callable[[Execution, Outcome], None],
        stopping: threading.Event,
        children: Children | None = None,
    ) -> None:
        """`stopping` is set when the worker begins to drain."""
        super().__init__(attempt, pipeline)
        self.number = attempt.number
        self.key = attempt.key
        self.started = self.ended_at = time.monotonic()
        self.deadline = self.started + (attempt.timeout_seconds or pipeline.timeout)
        self.span = tracing.attempt(attempt)
        self.stopping = stopping
        self._children = children
        self._on_stuck = on_stuck
        if pipeline.runs == "thread":
            self._cancelled = threading.Event()

    @property
    def cancelled(self) -> threading.Event:
        """Set when the attempt should stop. Created at first use, because few async pipelines read it."""
        if self._cancelled is None:
            self._cancelled = threading.Event()
            if self._stopped_as is not None:
                self._cancelled.set()
        return self._cancelled

    def progress(self, fraction: float, message: str) -> None:
        """Remember the latest progress. The worker writes it at most once a second."""
        try:
            latest = clamped(fraction, message)
        except Exception as error:  # noqa: BLE001 - a pipeline must not fail for how it reports its progress
            if not self._progress_refused:
                self._progress_refused = True
                job_id, why = self.attempt.job.id, describe(error).message
                log.warning("progress.refused", job_id=job_id, attempt=self.number, error=why)
            return
        self.latest = latest
        self.progress_n += 1

    def began_step(self, name: str) -> None:
        """Remember the step that began last: if the attempt kills its worker, the job's error names the step."""
        with suppress(Exception):  # the span refuses the name, too, and the pipeline goes on
            self.latest_step = storable(name)
            self.progress_n += 1

    async def run(self) -> Outcome:
        """Run the pipeline and return the outcome."""
        if self._stopped_as is not None:  # stopped before the first step
            return self._stopped_as
        runs = self.pipeline.runs
        if runs == "process":
            return await self._in_child()
        job = self.prepared()
        if not isinstance(job, Job):
            return job
        if runs == "task":
            return await self._on_loop(self.pipeline.function, job, AttemptRun(self))
        ended = await self._in_thread(job)
        if not isawaitable(ended):
            return ended
        if self._stopped_as is None:
            return await self._on_loop(lambda: ended)
        discard(ended)
        return self._stopped_as

    def time_out(self) -> None:
        """Stop the pipeline at its deadline. A time-out counts as an error of the job."""
        self.stop(
            Retry(None, DeadlinePassed(f"the attempt did not end within {self.deadline - self.started:g} s"))
        )

    def stop(self, outcome: Outcome) -> None:
        """Ask the pipeline to stop; the attempt ends as `outcome`.

        In a thread the attempt ends at once, because no one can interrupt a thread. On the event loop the attempt ends
        once the pipeline has unwound, or after GRACE_SECONDS.
        """
        if self.ended or self._stopped_as is not None:
            return
        self._stopped_as = outcome
        if self._cancelled is not None:
            self._cancelled.set()
        if self._unwinding is not None:
            # The future that an author's code awaits may raise from its `cancel`. Then the pipeline is stuck.
            with suppress(Exception):
                self._unwinding.cancel()
        elif self.pipeline.runs == "process":
            if self.child is not None:
                self.child.terminate(GRACE_SECONDS)
            # What runs in the child ends by the grace, and the end takes a moment to be seen.
            asyncio.get_running_loop().call_later(2 * GRACE_SECONDS, self._give_up, outcome)
            return
        elif not self.pipeline.is_async:
            self._give_up(outcome)
            return
        asyncio.get_running_loop().call_later(GRACE_SECONDS, self._give_up, outcome)

    def end(self) -> bool:
        """Note that the outcome is known. Returns False if the outcome was known before."""
        if self.ended:
            return False
        self.ended = True
        self.ended_at = time.monotonic()
        return True

    def _give_up(self, outcome: Outcome) -> None:
        if self.end():
            self._on_stuck(self, outcome)

    async def _on_loop(self, call: Callable[..., Awaitable[Any]], *arguments: Any) -> Outcome:
        task = self.task
        assert task is not None
        self._unwinding = task
        try:
            output = call(*arguments)
            # As a rule a coroutine that returns a plain value. `awaited` handles the rest.
            if type(output) is CoroutineType:
                output = await output
            if output is not None:
                output = await awaited(output)
            end_if_child()
            outcome = interpret(output)
        except BaseException as error:
            still_runs: bool = asyncio.current_task(task.get_loop()) is task
            if not still_runs:
                # The event loop has closed this coroutine, so nothing can be awaited any more.
                raise
            end_if_child(error)
            if self._stopped_as is not None:
                outcome = self._stopped_as
            elif isinstance(error, asyncio.CancelledError) and task.cancelling():
                raise  # the process ends
            else:
                outcome = self.raised(error)
        finally:
            self._unwinding = None
        # The hook of a plain function has been called in its thread.
        if self.pipeline.is_async:
            self.call_hook()
        return outcome

    async def _in_child(self) -> Outcome:
        children = self._children
        assert children is not None
        try:
            outcome = await self._in_one_of(children)
        except ChildUnavailable as error:
            log.warning("attempt.refused", job_id=self.attempt.job.id, attempt=self.number, error=str(error))
            outcome = Snoozed(THREADLESS_SECONDS)
        if self._stopped_as is not None:
            outcome = self._stopped_as
        if not (isinstance(outcome, Completed) and outcome.effects):
            self.release_child()
        return outcome

    async def _in_one_of(self, children: Children) -> Outcome:
        """Raises ChildUnavailable."""
        for left in reversed(range(CHILD_TRIES)):
            child = await children.take()
            if self._stopped_as is not None:
                children.give(child)
                return self._stopped_as
            self.child, self._seen = child, child.board.count
            try:
                return await child.run(self.attempt, self.pipeline.memory_mb, self.span)
            except NotBegun:
                # It has died while it waited for an attempt. That is no fault of this one.
                self.release_child()
                if not left:
                    raise
        raise AssertionError("the last try returns or raises")

    def release_child(self) -> None:
        """The child, if there is one, has nothing more to do for this attempt."""
        child, self.child = self.child, None
        if child is not None and self._children is not None:
            self._children.give(child)

    def look(self) -> None:
        """Read what a child has reported since the last look."""
        if self.child is None:
            return
        report = self.child.report
        if report.n != self._seen:
            self._seen = report.n
            self.latest, self.latest_step = (report.fraction, report.message), report.step or None
            self.progress_n += 1

    async def _in_thread(self, job: Job) -> Ended:
        loop = asyncio.get_running_loop()
        returned: asyncio.Future[Ended] = loop.create_future()

        def work() -> Ended:
            self.thread = clock = ThreadClock()
            try:
                return self.call(job, AttemptRun(self))
            finally:
                clock.stop()

        def done(outcome: Ended) -> None:
            # The event loop may have closed. Then the job was released at shutdown, and this outcome is void.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(_settle, returned, outcome)

        try:
            threads.call(f"attempt {job.id}", partial(contextvars.copy_context().run, work), done)
        except RuntimeError as error:
            # The process or its container has reached its limit of threads.
            log.warning("attempt.refused", job_id=job.id, attempt=self.number, error=str(error))
            return Snoozed(THREADLESS_SECONDS)
        return await returned


def _settle(returned: asyncio.Future[Ended], outcome: Ended) -> None:
    if not returned.done():  # cancelled when the process ends
        returned.set_result(outcome)
