"""One attempt: runs the pipeline, on the loop or in a thread, and says once how it ended."""

from __future__ import annotations

import asyncio
import contextvars
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import structlog
from pydantic import ValidationError

from engine import tracing
from engine.errors import PermanentError
from engine.model import Attempt, Failed, Job, Outcome, Retry, Snoozed
from engine.outcome import after, describe, interpret
from engine.pipeline import Pipeline

GRACE_SECONDS: Final = 1.0
"""How long a cancelled pipeline may take to unwind before it is left behind, its slot still taken."""

THREADLESS_SECONDS: Final = 5.0
"""When to try again where the process could not start a thread."""

MAX_PROGRESS_MESSAGE: Final = 500

log = structlog.get_logger()


class Execution:
    """A running attempt; also the `Run` that its pipeline sees.

    `on_end` is called once, with the outcome; `on_idle` when the pipeline has really returned: a plain function
    that was timed out runs on, and keeps its slot, until it does. Times are on the monotonic clock.
    """

    def __init__(
        self,
        attempt: Attempt,
        pipeline: Pipeline,
        on_end: Callable[[Execution, Outcome], None],
        on_idle: Callable[[Execution], None],
    ) -> None:
        self.claimed = attempt
        self.pipeline = pipeline
        self.attempt = attempt.number
        self.started = time.monotonic()
        self.deadline = self.started + (attempt.timeout_seconds or pipeline.timeout)
        self.ended = False
        self.ended_at = self.started
        self.idle = False
        self.span = tracing.attempt(attempt)
        self.progress_n = 0
        self.reported_n = 0
        self.latest: tuple[float, str] = (0.0, "")
        self._on_end = on_end
        self._on_idle = on_idle
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._forced: Outcome | None = None
        self._cancelled: threading.Event | None = None if pipeline.is_async else threading.Event()

    @property
    def cancelled(self) -> threading.Event:
        """Set when the attempt should stop. Made when first asked for: few async pipelines look at it."""
        if self._cancelled is None:
            self._cancelled = threading.Event()
            if self._forced is not None:
                self._cancelled.set()
        return self._cancelled

    def progress(self, fraction: float, message: str = "") -> None:
        """Remember the latest; the consumer writes it at most once a second."""
        try:
            share = float(fraction)
            text = str(message)[:MAX_PROGRESS_MESSAGE].replace("\0", "").encode(errors="replace").decode()
        except Exception:  # noqa: BLE001 - a pipeline must not fail for how it reports its progress
            return
        self.latest = (min(max(share, 0.0), 1.0) if math.isfinite(share) else 0.0, text)
        self.progress_n += 1

    def step(self, name: str) -> tracing.Span:
        """The attempt's span is the current one wherever its pipeline runs."""
        return tracing.step(name)

    def start(self) -> None:
        """Start the pipeline; metadata that does not fit its model fails the job at once."""
        try:
            job = self._prepared()
        except BaseException as error:  # noqa: BLE001 - a validator is an author's code and may raise anything
            self._finish(Failed(describe(error)))
            return
        if self.pipeline.is_async:
            self._task = self._loop.create_task(self._run_async(job), context=self.span.context())
        else:
            self._start_thread(job)

    def time_out(self) -> None:
        """Stop the pipeline because its time is up: an error like any other."""
        self.cancel(Retry(None, TimeoutError(f"no end after {self.deadline - self.started:g} s")))

    def cancel(self, outcome: Outcome) -> None:
        """Stop the pipeline, to end as `outcome`: at once for a plain function, else once it has unwound."""
        if self.ended or self._forced is not None:
            return
        self._forced = outcome
        if self._cancelled is not None:
            self._cancelled.set()
        if self._task is None:
            self._end(outcome)
        else:
            self._task.cancel()
            self._task.add_done_callback(self._unstarted)
            self._loop.call_later(GRACE_SECONDS, self._end, outcome)

    def _prepared(self) -> Job:
        """The job with its metadata as the pipeline's model. Raises PermanentError when it does not fit."""
        job = self.claimed.job
        if self.claimed.undecodable is not None:
            raise PermanentError(f"the stored metadata cannot be read: {self.claimed.undecodable}")
        if self.pipeline.metadata is None:
            return job
        try:
            return job._replace(metadata=self.pipeline.metadata.model_validate(job.metadata))
        except ValidationError as error:
            faults = "; ".join(f"{'/'.join(map(str, f['loc']))}: {f['msg']}" for f in error.errors())
            raise PermanentError(f"metadata: {faults}") from error

    def _start_thread(self, job: Job) -> None:
        run = (self.span.context() or contextvars.copy_context()).run
        thread = threading.Thread(
            target=run, args=(self._run_plain, job), name=f"attempt {job.id}", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:  # the process, or its container, has no thread left
            log.warning("attempt.refused", job_id=job.id, attempt=self.attempt, error=str(error))
            self._finish(Snoozed(THREADLESS_SECONDS))

    async def _run_async(self, job: Job) -> None:
        # BaseException, too: a SystemExit that left this task would end the event loop and every neighbour.
        try:
            outcome = interpret(await self.pipeline.function(job, self))
        except BaseException as error:  # noqa: BLE001
            outcome = self._forced or self._raised(error)
        self._finish(outcome)

    def _run_plain(self, job: Job) -> None:
        try:
            outcome = interpret(self.pipeline.function(job, self))
        except BaseException as error:  # noqa: BLE001 - as above: it costs this job and nobody else
            outcome = self._raised(error)
        # The loop may have closed: then the job was released at shutdown, and this outcome is nobody's.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._finish, outcome)

    def _raised(self, error: BaseException) -> Outcome:
        """What an exception means; its traceback, which clients never see, goes to the log."""
        if not isinstance(error, PermanentError):
            job = self.claimed.job
            with suppress(BaseException):  # writing a traceback calls the exception's own __str__
                log.warning(
                    "attempt.raised", job_id=job.id, preset=job.preset, attempt=self.attempt, exc_info=error
                )
        return after(error)

    def _unstarted(self, _task: asyncio.Task[None]) -> None:
        """A task that is cancelled before its first step never runs: nothing else would free its slot."""
        if not self.idle and self._forced is not None:
            self._finish(self._forced)

    def _finish(self, outcome: Outcome) -> None:
        self.idle = True
        self._end(outcome)
        self._on_idle(self)

    def _end(self, outcome: Outcome) -> None:
        if not self.ended:
            self.ended = True
            self.ended_at = time.monotonic()
            self._on_end(self, outcome)
