"""Decides what a pipeline's return value or error means for the job. No I/O."""

from __future__ import annotations

import hashlib
import json
import random
import re
from typing import Any, Final, NamedTuple, assert_never, get_args

import orjson

from engine.errors import PermanentError
from engine.limits import DELAY_SECONDS
from engine.model import (
    Attempt,
    Cancelled,
    Completed,
    Failed,
    JobError,
    JobState,
    Outcome,
    Reason,
    Released,
    Retry,
    Snoozed,
)
from engine.moves import Ending, Release
from engine.pipeline import Pipeline

MAX_OUTPUT_BYTES: Final = 4 << 20
MAX_BACKOFF_SECONDS: Final = 600.0
MAX_TYPE: Final = 200
MAX_MESSAGE: Final = 2000
ESCAPED_NUL: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
STRICT: Final = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME
VARYING: Final = re.compile(r"0x[0-9a-fA-F]+|[0-9a-fA-F]{8}-[0-9a-fA-F-]{27}|\d+")

LABELS: Final[dict[type, str]] = {kind: kind.__name__.lower() for kind in get_args(Outcome)}
"""The kinds of outcome by their names in metrics and logs."""


class Encoded(NamedTuple):
    """An output that is JSON text already: `interpret` encodes it in the thread that ran the pipeline."""

    text: str


def interpret(returned: Any) -> Outcome:
    """The outcome of a return value. A value that cannot be stored fails the job, because a retry would not help."""
    try:
        match returned:
            case Retry(delay, error):
                return Retry(None if delay is None else _bounded(delay), describe(error))
            case Failed(error):
                return Failed(describe(error))
            case Snoozed(delay):
                return Snoozed(_bounded(delay))
            case Completed(output, effects):
                return Completed(encode(output), effects)
            case _:
                return Completed(encode(returned))
    except (TypeError, ValueError, OverflowError, RecursionError) as fault:
        return Failed(describe(f"the outcome cannot be stored: {fault}"))


def after(error: BaseException) -> Outcome:
    """The outcome of an exception that a pipeline or its effects raised."""
    if isinstance(error, PermanentError):
        return Failed(describe(error))
    return Retry(None, describe(error))


def describe(error: BaseException | JobError | str) -> JobError:
    """`error` as text that can be stored and logged. Never raises, although an author's `__str__` may."""
    if isinstance(error, JobError):
        return error
    name = "Error" if isinstance(error, str) else _clean(type(error).__name__, MAX_TYPE)
    try:
        return JobError(name, _clean(str(error), MAX_MESSAGE) or name)
    except BaseException:  # noqa: BLE001
        return JobError(name, "the error's message cannot be read")


def encode(output: Any) -> Encoded:
    """JSON text of at most 4 MiB. Raises ValueError or TypeError for a value that JSON or PostgreSQL cannot hold."""
    if isinstance(output, Encoded):
        return output
    encoded = orjson.dumps(output, option=STRICT)
    if len(encoded) > MAX_OUTPUT_BYTES:
        raise ValueError(f"{len(encoded)} bytes of JSON; the limit is {MAX_OUTPUT_BYTES}")
    if b"null" in encoded and output is not None:
        json.dumps(output, allow_nan=False, default=str)  # orjson writes NaN as null; this raises
    if b"\\u0000" in encoded and ESCAPED_NUL.search(encoded):  # the pattern alone takes 0.2 s
        raise ValueError("the output contains U+0000")
    return Encoded(encoded.decode())


def within_budget(attempt: Attempt, pipeline: Pipeline, outcome: Outcome, rng: random.Random) -> Outcome:
    """Apply the job's budget: a Retry beyond `max_attempts` becomes Failed. Draws the delay of a Retry without one."""
    match outcome:
        case Retry(delay, error):
            if attempt.errors + 1 >= (attempt.max_attempts or pipeline.max_attempts):
                return Failed(error)
            return Retry(backoff(pipeline, attempt.errors, rng) if delay is None else delay, error)
        case _:
            return outcome


def backoff(pipeline: Pipeline, errors: int, rng: random.Random) -> float:
    """Seconds to wait: exponential back-off with full jitter.

    The rule is that of "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    return rng.uniform(0, min(MAX_BACKOFF_SECONDS, pipeline.backoff * 2.0**errors))


def record(attempt: Attempt, outcome: Outcome, metadata: str = "{}") -> Ending | Release:
    """The row to write for an outcome that `within_budget` has returned."""
    job_id, number = attempt.job.id, attempt.number
    match outcome:
        case Completed(output):
            return Ending(
                job_id, number, JobState.COMPLETED, Reason.COMPLETED, encode(output).text, metadata=metadata
            )
        case Failed(error):
            known = describe(error)
            return Ending(
                job_id,
                number,
                JobState.FAILED,
                Reason.FAILED,
                None,
                _json(known, number),
                fingerprint(known),
                metadata,
                1,
            )
        case Retry(delay, error):
            return Release(job_id, number, Reason.ERROR, delay, _json(describe(error), number), 1)
        case Snoozed(delay):
            return Release(job_id, number, Reason.SNOOZED, delay)
        case Released(reason):
            return Release(job_id, number, reason)
        case Cancelled():
            return Ending(job_id, number, JobState.CANCELLED, Reason.CANCELLED, metadata=metadata)
        case _:
            assert_never(outcome)


def label(outcome: Outcome) -> str:
    """The outcome's name in metrics and logs."""
    if isinstance(outcome, Retry | Failed) and describe(outcome.error).type == TimeoutError.__name__:
        return "timeout"
    return LABELS[type(outcome)]


def fingerprint(error: JobError) -> str:
    """16 hex digits, equal for errors that differ only in numbers, ids and addresses."""
    likeness = f"{error.type}:{VARYING.sub('#', error.message)}"
    return hashlib.sha256(likeness.encode()).hexdigest()[:16]


def _bounded(delay: float) -> float:
    return min(max(float(delay), 0.0), DELAY_SECONDS.high) if delay == delay else 0.0  # NaN is not a delay


def _json(error: JobError, number: int) -> str:
    return orjson.dumps({"type": error.type, "message": error.message, "attempt": number}).decode()


def _clean(text: str, limit: int) -> str:
    """`text` as PostgreSQL can store it: at most `limit` characters, without NUL or lone surrogates."""
    return text[:limit].replace("\0", "\ufffd").encode(errors="replace").decode()
