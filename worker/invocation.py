"""The call of an attempt's pipeline, in whatever task, thread or process it runs."""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine
from contextlib import suppress
from inspect import isawaitable
from typing import Any, Final

import orjson
import structlog
from pydantic import ValidationError

from engine.errors import PermanentError
from engine.model import Attempt, Job, JobError, Outcome, Unreadable
from engine.pipeline import Pipeline, Run
from engine.process.fork import end_if_child
from worker.outcome import after, describe, interpret, leaves

MAX_AWAITS: Final = 8
"""How deep an awaitable is awaited that brings another one: a decorator may forget its own `await`."""

log = structlog.get_logger()


class Stopped(BaseException):
    """Raised in a plain function in a child, whose attempt is to end: its time is up, or its job is cancelled."""


class Invocation:
    """One call of `pipeline` for `attempt`."""

    __slots__ = ("attempt", "pipeline")

    def __init__(self, attempt: Attempt, pipeline: Pipeline) -> None:
        self.attempt = attempt
        self.pipeline = pipeline

    def prepared(self) -> Job | Outcome:
        """The job with its metadata as the pipeline's model, or the outcome if there is nothing to call.

        Metadata that do not fit the model are Unreadable. Any other error of a validator is the attempt's, because a
        validator is an author's code, too.
        """
        try:
            return self._job()
        except ValidationError as error:
            return Unreadable(_unfit(error))
        except BaseException as error:  # noqa: BLE001 - an author's code may raise anything; only this job fails
            return self.raised(error)

    def call(self, job: Job, run: Run) -> Outcome | Awaitable[Any]:
        """Call a plain function and its hook: its outcome, or what an event loop must await for it."""
        ended: Outcome | Awaitable[Any]
        try:
            output = self.pipeline.function(job, run)
            end_if_child()
            # Behind a decorator the function may be async: then an event loop awaits what it returned.
            ended = output if isawaitable(output) else interpret(output)
        except Stopped:
            raise
        except BaseException as error:  # noqa: BLE001 - an author's code may raise anything; only this job fails
            end_if_child(error)
            ended = self.raised(error)
        self.call_hook()
        return ended

    def call_hook(self) -> None:
        """Call the author's `after_attempt`. Its error changes nothing, because the function's outcome is known."""
        hook = self.pipeline.after_attempt
        if hook is None:
            return
        try:
            hook()
            end_if_child()
        except BaseException as error:
            end_if_child(error)
            # As in `raised`.
            with suppress(BaseException):
                log.warning("hook.raised", **self._named, exc_info=error)

    def raised(self, error: BaseException) -> Outcome:
        """The outcome of an exception. The traceback goes to the log, because clients never see it."""
        if not all(isinstance(each, PermanentError) for each in leaves(error)):
            # Writing a traceback calls the exception's own __str__, which may raise.
            with suppress(BaseException):
                log.warning("attempt.raised", **self._named, exc_info=error)
        return after(error)

    def _job(self) -> Job:
        """Raises ValidationError, or PermanentError if no code could read the metadata."""
        job = self.attempt.job
        if self.attempt.undecodable is not None:
            raise PermanentError(f"the stored metadata cannot be read: {self.attempt.undecodable}")
        if self.pipeline.metadata is None:
            return job
        # As JSON, as the API has checked them: a strict model reads a time or a set from JSON alone.
        return job._replace(metadata=self.pipeline.metadata.model_validate_json(orjson.dumps(job.metadata)))

    @property
    def _named(self) -> dict[str, Any]:
        job = self.attempt.job
        return {"job_id": job.id, "preset": job.preset, "attempt": self.attempt.number}


async def awaited(output: Any) -> Any:
    """What `output` comes to, awaited as deep as MAX_AWAITS."""
    for _ in range(MAX_AWAITS):
        if not isawaitable(output):
            break
        output = await output
    return output


def discard(awaitable: Awaitable[Any]) -> None:
    """Close what will not be awaited: Python warns of a coroutine that nobody has awaited."""
    if isinstance(awaitable, Coroutine):
        awaitable.close()


def _unfit(error: ValidationError) -> JobError:
    faults = "; ".join(f"{'/'.join(map(str, f['loc']))}: {f['msg']}" for f in error.errors())
    return JobError(type(error).__name__, describe(f"metadata: {faults}").message)
