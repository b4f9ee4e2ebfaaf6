"""Runs one attempt: calls the pipeline, on the event loop or in a thread, and turns its end into an outcome."""

from __future__ import annotations

import asyncio
import contextvars
import math
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from inspect import isawaitable
from typing import Any, Final

import orjson
import structlog
from pydantic import ValidationError

from engine.errors import PermanentError
from engine.model import Attempt, Job, JobError, Outcome, Retry, Snoozed, Unreadable
from engine.pipeline import Pipeline
from engine.process.fork import end_if_child
from engine.telemetry import tracing
from worker import threads
from worker.attempt_run import AttemptRun
from worker.interpreter import ThreadClock
from worker.outcome import DeadlinePassed, after, describe, interpret, leaves

GRACE_SECONDS: Final = 1.0
"""How long a pipeline may take to unwind after a stop before it counts as stuck, still in its slot."""

THREADLESS_SECONDS: Final = 5.0
"""Delay of the next attempt when the process could not start a thread."""

MAX_AWAITS: Final = 8
"""How deep an awaitable is awaited that brings another one: a decorator may forget its own `await`."""

MAX_PROGRESS_MESSAGE: Final = 500

Ended = Outcome | Awaitable[Any]
"""What a plain function came to in its thread: its outcome, or what the event loop must await for it."""

log = structlog.get_logger()


class Execution:
    """A running attempt. Times are on the monotonic clock.

    An attempt ends once, when its outcome is known. Usually the pipeline has returned by then. A pipeline that does
    not stop when asked is stuck: `on_stuck` gets the outcome, and the pipeline keeps its slot until it returns.
    """

    def __init__(
        self, attempt: Attempt, pipeline: Pipeline, on_stuck: Callable[[Execution, Outcome], None]
    ) -> None:
        self.attempt = attempt
        self.number = attempt.number
        self.pipeline = pipeline
        self.started = time.monotonic()
        self.deadline = self.started + (attempt.timeout_seconds or pipeline.timeout)
        self.waited = 0.0
        """Seconds from when the job was due to its claim."""
        self.ended = False
        self.ended_at = self.started
        self.span = tracing.attempt(attempt)
        self.progress_n = 0
        self.reported_n = 0
        self.latest: tuple[float | None, str] = (None, "")
        self.latest_step: str | None = None
        self._progress_refused = False
        """Whether a report was refused. Only the first one of an attempt is logged: a loop may send thousands."""
        self.task: asyncio.Task[None] | None = None
        """Runs the attempt from claim to record. Kept here, because the event loop's own reference is weak."""
        self.thread: ThreadClock | None = None
        """The CPU time of the thread that runs a plain function, from its first step on."""
        self._on_stuck = on_stuck
        self._unwinding: asyncio.Task[None] | None = None
        self._stopped_as: Outcome | None = None
        self._cancelled: threading.Event | None = None if pipeline.is_async else threading.Event()

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
            share = float(fraction)
            text = _storable(message)
        except Exception as error:  # noqa: BLE001 - a pipeline must not fail for how it reports its progress
            if not self._progress_refused:
                self._progress_refused = True
                job_id, why = self.attempt.job.id, describe(error).message
                log.warning("progress.refused", job_id=job_id, attempt=self.number, error=why)
            return
        self.latest = (min(max(share, 0.0), 1.0) if math.isfinite(share) else 0.0, text)
        self.progress_n += 1

    def began_step(self, name: str) -> None:
        """Remember the step that began last: if the attempt kills its worker, the job's error names the step."""
        with suppress(Exception):  # the span refuses the name, too, and the pipeline goes on
            self.latest_step = _storable(name)
            self.progress_n += 1

    async def run(self) -> Outcome:
        """Run the pipeline and return the outcome. Metadata that do not fit the model are Unreadable.

        Any other error of a validator is the attempt's, because a validator is an author's code, too.
        """
        if self._stopped_as is not None:  # stopped before the first step
            return self._stopped_as
        try:
            job = self._prepared()
        except ValidationError as error:
            return Unreadable(_unfit(error))
        except BaseException as error:  # noqa: BLE001 - an author's code may raise anything; only this job fails
            return self._raised(error)
        if self.pipeline.is_async:
            return await self._on_loop(partial(self.pipeline.function, job, AttemptRun(self)))
        ended = await self._in_thread(job)
        if not isawaitable(ended):
            return ended
        if self._stopped_as is None:
            return await self._on_loop(lambda: ended)
        _discard(ended)
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

    def _prepared(self) -> Job:
        """The job with its metadata as the pipeline's model.

        Raises ValidationError, or PermanentError if no code could read the metadata.
        """
        job = self.attempt.job
        if self.attempt.undecodable is not None:
            raise PermanentError(f"the stored metadata cannot be read: {self.attempt.undecodable}")
        if self.pipeline.metadata is None:
            return job
        # As JSON, as the API has checked them: a strict model reads a time or a set from JSON alone.
        return job._replace(metadata=self.pipeline.metadata.model_validate_json(orjson.dumps(job.metadata)))

    async def _on_loop(self, call: Callable[[], Awaitable[Any]]) -> Outcome:
        task = self.task
        assert task is not None
        self._unwinding = task
        try:
            output = await call()
            for _ in range(MAX_AWAITS):
                if not isawaitable(output):
                    break
                output = await output
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
                outcome = self._raised(error)
        finally:
            self._unwinding = None
        # The hook of a plain function has been called in its thread.
        if self.pipeline.is_async:
            self._call_hook()
        return outcome

    async def _in_thread(self, job: Job) -> Ended:
        loop = asyncio.get_running_loop()
        returned: asyncio.Future[Ended] = loop.create_future()

        def work() -> Ended:
            self.thread = clock = ThreadClock()
            try:
                return self._call(job)
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

    def _call(self, job: Job) -> Ended:
        """Call a plain function, in its thread."""
        ended: Ended
        try:
            output = self.pipeline.function(job, AttemptRun(self))
            end_if_child()
            # Behind a decorator the function may be async: then the event loop awaits what it returned.
            ended = output if isawaitable(output) else interpret(output)
        except BaseException as error:  # noqa: BLE001 - an author's code may raise anything; only this job fails
            end_if_child(error)
            ended = self._raised(error)
        self._call_hook()
        return ended

    def _call_hook(self) -> None:
        """Call the author's `after_attempt`. Its error changes nothing, because the function's outcome is known."""
        hook = self.pipeline.after_attempt
        if hook is None:
            return
        try:
            hook()
            end_if_child()
        except BaseException as error:
            end_if_child(error)
            # As in `_raised`.
            with suppress(BaseException):
                log.warning("hook.raised", **self._named, exc_info=error)

    def _raised(self, error: BaseException) -> Outcome:
        """The outcome of an exception. The traceback goes to the log, because clients never see it."""
        if not all(isinstance(each, PermanentError) for each in leaves(error)):
            # Writing a traceback calls the exception's own __str__, which may raise.
            with suppress(BaseException):
                log.warning("attempt.raised", **self._named, exc_info=error)
        return after(error)

    @property
    def _named(self) -> dict[str, Any]:
        job = self.attempt.job
        return {"job_id": job.id, "preset": job.preset, "attempt": self.number}


def _storable(text: object) -> str:
    return str(text)[:MAX_PROGRESS_MESSAGE].replace("\0", "").encode(errors="replace").decode()


def _settle(returned: asyncio.Future[Ended], outcome: Ended) -> None:
    if not returned.done():  # cancelled when the process ends
        returned.set_result(outcome)


def _unfit(error: ValidationError) -> JobError:
    faults = "; ".join(f"{'/'.join(map(str, f['loc']))}: {f['msg']}" for f in error.errors())
    return JobError(type(error).__name__, describe(f"metadata: {faults}").message)


def _discard(awaitable: Awaitable[Any]) -> None:
    """Close what will not be awaited: Python warns of a coroutine that nobody has awaited."""
    if isinstance(awaitable, Coroutine):
        awaitable.close()
