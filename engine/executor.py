"""One attempt: runs the pipeline, on the loop or in a thread, bounds its time and says how it ended."""

from __future__ import annotations

import asyncio
import contextvars
import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import structlog
from pydantic import ValidationError

from engine.errors import PermanentError
from engine.model import Attempt, Failed, Outcome, Retry
from engine.outcome import interpret
from engine.pipeline import Pipeline

GRACE_SECONDS: Final = 1.0
"""How long a cancelled pipeline may take to end before it is left behind, its slot still taken."""

MAX_PROGRESS_MESSAGE: Final = 500

log = structlog.get_logger()


class Execution:
    """A running attempt; also the `Run` its pipeline sees. Ends exactly once, with an outcome.

    `ended` is set with the outcome, `idle` when the pipeline has really returned: a plain function that was
    timed out keeps running, and keeps its slot, until it does. `created_at` is on the monotonic clock.
    """

    def __init__(self, attempt: Attempt, pipeline: Pipeline, on_idle: Callable[[Execution], None]) -> None:
        self.record = attempt
        self.pipeline = pipeline
        self.attempt = attempt.number
        self.cancelled = threading.Event()
        self.created_at = time.monotonic()
        self.progress_n = 0
        self.reported_n = 0
        self.latest: tuple[float, str] = (0.0, "")
        self.idle = False
        self._loop = asyncio.get_running_loop()
        self._on_idle = on_idle
        self._ended: asyncio.Future[Outcome] = self._loop.create_future()
        self._task: asyncio.Task[None] | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self._forced: Outcome | None = None

    def progress(self, fraction: float, message: str = "") -> None:
        """Remember the latest; the consumer writes it at most once a second."""
        try:
            share = float(fraction)
            text = str(message)[:MAX_PROGRESS_MESSAGE].replace("\0", "").encode(errors="replace").decode()
        except (TypeError, ValueError):
            return  # a pipeline must not fail for how it reports its progress
        self.latest = (min(max(share, 0.0), 1.0) if math.isfinite(share) else 0.0, text)
        self.progress_n += 1

    async def run(self) -> Outcome:
        """Start the pipeline and wait for the outcome; the pipeline may go on after it (see `idle`)."""
        seconds = self.record.timeout_seconds or self.pipeline.timeout
        self._start()
        self._timers.append(self._loop.call_later(seconds, self._time_out, seconds))
        try:
            return await self._ended
        finally:
            for timer in self._timers:
                timer.cancel()

    def cancel(self, outcome: Outcome) -> None:
        """Stop the pipeline, to end as `outcome`: at once for a plain function, else once it has unwound."""
        self.cancelled.set()
        if self._ended.done():
            return
        self._forced = outcome
        if self._task is None:
            self._end(outcome)
        else:
            self._task.cancel()
            self._timers.append(self._loop.call_later(GRACE_SECONDS, self._end, outcome))

    def _time_out(self, seconds: float) -> None:
        self.cancel(Retry(None, TimeoutError(f"no end after {seconds:g} s")))

    def _start(self) -> None:
        try:
            attempt = self._prepared()
        except Exception as error:  # noqa: BLE001 - a validator is an author's code and may raise anything
            self._end(Failed(error))
            self._leave()
            return
        if self.pipeline.is_async:
            self._task = self._loop.create_task(self._run_async(attempt))
        else:
            run = contextvars.copy_context().run
            name = f"attempt {attempt.job.id}"
            threading.Thread(target=run, args=(self._run_plain, attempt), name=name, daemon=True).start()

    def _prepared(self) -> Attempt:
        """The attempt with its metadata as the pipeline's model. Raises when the stored metadata does not fit."""
        if self.record.undecodable is not None:
            raise PermanentError(f"the stored metadata cannot be read: {self.record.undecodable}")
        if self.pipeline.metadata is None:
            return self.record
        job = self.record.job
        try:
            return replace(
                self.record, job=replace(job, metadata=self.pipeline.metadata.model_validate(job.metadata))
            )
        except ValidationError as error:
            faults = "; ".join(f"{'/'.join(map(str, f['loc']))}: {f['msg']}" for f in error.errors())
            raise PermanentError(f"metadata: {faults}") from error

    async def _run_async(self, attempt: Attempt) -> None:
        # BaseException, too: a SystemExit that left this task would end the event loop and every neighbour.
        try:
            outcome = interpret(await self.pipeline.function(attempt.job, self))
        except BaseException as error:  # noqa: BLE001
            outcome = self._forced or after(error)
        self._end(outcome)
        self._leave()

    def _run_plain(self, attempt: Attempt) -> None:
        try:
            outcome = interpret(self.pipeline.function(attempt.job, self))
        except BaseException as error:  # noqa: BLE001 - as above: it costs this job and nobody else
            outcome = after(error)
        try:
            self._loop.call_soon_threadsafe(self._end, outcome)
            self._loop.call_soon_threadsafe(self._leave)
        except RuntimeError:
            pass  # the loop has closed: the job was released at shutdown, and this outcome is nobody's

    def _end(self, outcome: Outcome) -> None:
        if not self._ended.done():
            self._ended.set_result(outcome)

    def _leave(self) -> None:
        self.idle = True
        self._on_idle(self)


def after(error: BaseException) -> Outcome:
    """What an exception that left the pipeline means."""
    if isinstance(error, PermanentError):
        return Failed(error)
    return Retry(None, error)
