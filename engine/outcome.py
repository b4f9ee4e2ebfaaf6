"""Decisions about how an attempt ended, without any I/O: what a return value or an error means for the job."""

from __future__ import annotations

import hashlib
import json
import random
import re
from typing import Any, Final, NamedTuple, assert_never

import orjson

from engine.model import (
    Attempt,
    Cancelled,
    Completed,
    Failed,
    JobError,
    JobState,
    Outcome,
    Released,
    Retry,
    Snoozed,
)
from engine.moves import Ending, PutBack
from engine.pipeline import Pipeline

MAX_OUTPUT_BYTES: Final = 4 << 20
MAX_BACKOFF_SECONDS: Final = 600.0
MAX_DELAY_SECONDS: Final = 31_536_000.0
MAX_MESSAGE: Final = 2000
ESCAPED_NUL: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
STRICT: Final = (
    orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS
)
VARYING: Final = re.compile(r"0x[0-9a-fA-F]+|[0-9a-fA-F]{8}-[0-9a-fA-F-]{27}|\d+")


class Encoded(NamedTuple):
    """An output that has become JSON text already, where that is cheapest."""

    text: str


def interpret(returned: Any) -> Outcome:
    """What a pipeline's return value means. Output that cannot be stored fails the job: a retry would not help."""
    if isinstance(returned, Retry | Failed | Snoozed):
        return returned
    completed = returned if isinstance(returned, Completed) else Completed(returned)
    try:
        return Completed(encode(completed.output), completed.effects)
    except (TypeError, ValueError, RecursionError) as error:
        return Failed(f"the output cannot be stored: {error}")


def encode(output: Any) -> Encoded:
    """JSON text of at most 4 MiB. Raises ValueError or TypeError for what JSON or PostgreSQL cannot hold."""
    if isinstance(output, Encoded):
        return output
    encoded = orjson.dumps(output, option=STRICT)
    if len(encoded) > MAX_OUTPUT_BYTES:
        raise ValueError(f"{len(encoded)} bytes of JSON; the limit is {MAX_OUTPUT_BYTES}")
    if b"null" in encoded and output is not None:
        json.dumps(output, allow_nan=False, default=str)  # orjson writes NaN as null; this raises
    if ESCAPED_NUL.search(encoded):
        raise ValueError("it holds U+0000")
    return Encoded(encoded.decode())


def settle(attempt: Attempt, pipeline: Pipeline, outcome: Outcome, rng: random.Random) -> Outcome:
    """`outcome` with its delay drawn and the job's budget applied: a Retry beyond `max_attempts` is Failed."""
    match outcome:
        case Retry(delay, error):
            if attempt.errors + 1 >= (attempt.max_attempts or pipeline.max_attempts):
                return Failed(error)
            return Retry(backoff(pipeline, attempt.errors, rng) if delay is None else _bounded(delay), error)
        case Snoozed(delay):
            return Snoozed(_bounded(delay))
        case _:
            return outcome


def backoff(pipeline: Pipeline, errors: int, rng: random.Random) -> float:
    """Exponential back-off with full jitter ("Exponential Backoff And Jitter", AWS Architecture Blog, 2015)."""
    return rng.uniform(0, min(MAX_BACKOFF_SECONDS, pipeline.backoff * 2.0**errors))


def record(attempt: Attempt, outcome: Outcome, metadata: str = "{}") -> Ending | PutBack:
    """The row to write for a settled outcome."""
    job_id, number = attempt.job.id, attempt.number
    match outcome:
        case Completed(output):
            return Ending(
                job_id, number, JobState.COMPLETED, "completed", encode(output).text, metadata=metadata
            )
        case Failed(error):
            known = JobError.of(error)
            return Ending(
                job_id,
                number,
                JobState.FAILED,
                "failed",
                None,
                _json(known, number),
                fingerprint(known),
                metadata,
                1,
            )
        case Retry(delay, error):
            return PutBack(job_id, number, "error", delay, _json(JobError.of(error), number), 1)
        case Snoozed(delay):
            return PutBack(job_id, number, "snoozed", delay)
        case Released(reason):
            return PutBack(job_id, number, reason)
        case Cancelled():
            return Ending(job_id, number, JobState.CANCELLED, "cancelled", metadata=metadata)
        case _:
            assert_never(outcome)


def label(outcome: Outcome) -> str:
    """The outcome's name in metrics and logs."""
    match outcome:
        case Retry(_, TimeoutError()) | Failed(TimeoutError()):
            return "timeout"
        case _:
            return type(outcome).__name__.lower()


def fingerprint(error: JobError) -> str:
    """Equal for errors that differ only in numbers, ids and addresses."""
    likeness = f"{error.type}:{VARYING.sub('#', error.message)}"
    return hashlib.sha256(likeness.encode(errors="replace")).hexdigest()[:16]


def _bounded(delay: float) -> float:
    return min(max(float(delay), 0.0), MAX_DELAY_SECONDS) if delay == delay else 0.0  # NaN is not a delay


def _json(error: JobError, number: int) -> str:
    shown = {"type": _clean(error.type), "message": _clean(error.message), "attempt": number}
    return orjson.dumps(shown).decode()


def _clean(text: str) -> str:
    """Whatever an exception said, as text that PostgreSQL stores."""
    return text[:MAX_MESSAGE].replace("\0", "\ufffd").encode(errors="replace").decode()
