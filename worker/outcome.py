"""Decides what a pipeline's return value or error means for the job. No I/O."""

from __future__ import annotations

import hashlib
import json
import random
import re
from asyncio import CancelledError
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, Final, NamedTuple, assert_never, get_args

import orjson

from engine.errors import PermanentError
from engine.limits import DELAY_SECONDS
from engine.model import (
    UNREADABLE_SECONDS,
    Attempt,
    Cancelled,
    Completed,
    Effects,
    Failed,
    JobError,
    JobState,
    Outcome,
    Reason,
    Released,
    Retry,
    Snoozed,
    TimedOut,
    Unreadable,
)
from engine.moves import Ending, Release
from engine.pipeline import Pipeline
from engine.text import MAX_DEPTH, too_deep

MAX_OUTPUT_BYTES: Final = 4 << 20
MAX_BACKOFF_SECONDS: Final = 600.0
UNREADABLE_PAUSE: Final = 1.0
MAX_UNREADABLE_PAUSE: Final = 30.0
MAX_LEAVES: Final = 1000
"""The most errors of an exception group that are looked at. A group may hold one group many times."""
MAX_TYPE: Final = 200
MAX_MESSAGE: Final = 2000
ESCAPED_NUL: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
STRICT: Final = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME
VARYING: Final = re.compile(r"0x[0-9a-fA-F]+|[0-9a-fA-F]{8}-[0-9a-fA-F-]{27}|\d+")

LABELS: Final[dict[type, str]] = {kind: kind.__name__.lower() for kind in get_args(Outcome)}
"""The kinds of outcome by their names in metrics and logs."""


class DeadlinePassed(Exception):
    """The engine stopped an attempt or its effects at their deadline."""


class Encoded(NamedTuple):
    """An output that is JSON text already: `interpret` encodes it in the thread that ran the pipeline."""

    text: str


NOTHING: Final = Completed(Encoded("null"))
"""The outcome of a pipeline that returns nothing."""


def interpret(returned: Any) -> Outcome:
    """The outcome of a return value.

    An output that cannot be stored fails the job. A delay that is no number is an error of the attempt: the job was
    to run again.
    """
    if returned is None:
        return NOTHING
    match returned:
        case Failed(error):
            return Failed(describe(error))
        case Retry() | Snoozed():
            return _later(returned)
        case Completed(output, effects):
            return _completed(output, effects)
        case _:
            return _completed(returned)


def after(error: BaseException) -> Outcome:
    """The outcome of an exception that a pipeline or its effects raised.

    One PermanentError in an exception group is enough to fail the job: another attempt would meet it again.
    """
    known = describe(error)
    return Failed(known) if isinstance(_telling(leaves(error)), PermanentError) else Retry(None, known)


def leaves(error: BaseException) -> list[BaseException]:
    """The errors in an exception group and the groups inside it, MAX_LEAVES at most; any other error is its own leaf.

    A task group cancels its other tasks after an error, so their CancelledErrors count only where nothing else is.
    """
    found = list(islice(_leaves(error), MAX_LEAVES))
    return [each for each in found if not isinstance(each, CancelledError)] or found


def describe(error: BaseException | JobError | str) -> JobError:
    """`error` as text that can be stored and logged. Never raises, although an author's `__str__` may.

    Of an exception group the most telling error is described, and the others are counted.
    """
    match error:
        case JobError():
            return error
        case DeadlinePassed():
            return TimedOut(TimeoutError.__name__, str(error))
        case str():
            return JobError("Error", _text(error, MAX_MESSAGE) or "Error")
    others = leaves(error)
    told = _telling(others)
    name = _clean(type(told).__name__, MAX_TYPE)
    more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
    return JobError(name, (_text(told, MAX_MESSAGE - len(more)) or name) + more)


def encode(output: Any) -> Encoded:
    """JSON text of at most 4 MiB, nested at most MAX_DEPTH deep.

    Raises ValueError or TypeError for any other value, and for one that JSON or PostgreSQL cannot hold.
    """
    if isinstance(output, Encoded):
        return output
    encoded = orjson.dumps(output, option=STRICT)
    if len(encoded) > MAX_OUTPUT_BYTES:
        raise ValueError(f"{len(encoded)} bytes of JSON; the limit is {MAX_OUTPUT_BYTES}")
    if too_deep(encoded):
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
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


def within_patience(outcome: Unreadable, releases: int, seconds: float) -> Unreadable | Failed:
    """Wait longer after each unreadable attempt in a row, and fail the job UNREADABLE_SECONDS after the first one.

    `releases` is the number of such attempts before this one, `seconds` the time since the first of them. The pause
    grows by a second each time. It does not double: where half of the workers have the other code, one job in 2,000
    meets the wrong half eleven times in a row, and that takes a minute instead of three and a half.
    """
    if seconds >= UNREADABLE_SECONDS:
        return Failed(outcome.error)
    return replace(outcome, delay=min(MAX_UNREADABLE_PAUSE, UNREADABLE_PAUSE * (releases + 1)))


def substitutes(outcome: Outcome, fault: Exception) -> list[Outcome]:
    """What to write, in this order, instead of an outcome that PostgreSQL has refused.

    Only an output or the text of an error can be at fault. Any other refusal is the database's, and it may pass: the
    attempt is dropped, and released later.
    """
    unsaid = f"the error cannot be stored: {type(fault).__name__}"
    match outcome:
        case Completed():
            return [Failed(f"the outcome cannot be stored: {fault}"), Failed(unsaid)]
        case Retry():
            return [replace(outcome, error=unsaid), Failed(unsaid)]
        case Failed():
            return [Failed(unsaid)]
        case Unreadable():
            return [replace(outcome, error=unsaid)]
        case Snoozed() | Released() | Cancelled():
            return []
        case _:
            assert_never(outcome)


def record(attempt: Attempt, outcome: Outcome, metadata: str = "{}") -> Ending | Release:
    """The row to write for an outcome that `within_budget` and `within_patience` have returned."""
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
        case Unreadable(error, delay):
            return Release(job_id, number, Reason.UNREADABLE, delay, _json(describe(error), number))
        case Cancelled():
            return Ending(job_id, number, JobState.CANCELLED, Reason.CANCELLED, metadata=metadata)
        case _:
            assert_never(outcome)


def label(outcome: Outcome) -> str:
    """The outcome's name in metrics and logs."""
    if isinstance(outcome, (Retry, Failed)) and isinstance(describe(outcome.error), TimedOut):
        return "timeout"
    return LABELS[type(outcome)]


def fingerprint(error: JobError) -> str:
    """16 hex digits, equal for errors that differ only in numbers, ids and addresses."""
    likeness = f"{error.type}:{VARYING.sub('#', error.message)}"
    return hashlib.sha256(likeness.encode()).hexdigest()[:16]


def _completed(output: Any, effects: Effects | None = None) -> Outcome:
    try:
        return Completed(encode(output), effects)
    except (TypeError, ValueError, OverflowError, RecursionError) as fault:
        return Failed(describe(f"the outcome cannot be stored: {fault}"))


def _later(returned: Retry | Snoozed) -> Outcome:
    try:
        match returned:
            case Retry(delay, error):
                return Retry(None if delay is None else _bounded(delay), describe(error))
            case Snoozed(delay):
                return Snoozed(_bounded(delay))
    except (TypeError, ValueError, OverflowError) as fault:
        return Retry(None, describe(f"the delay is no number of seconds: {fault}"))


def _leaves(error: BaseException) -> Iterator[BaseException]:
    waiting = [error]
    while waiting:
        each = waiting.pop()
        if isinstance(each, BaseExceptionGroup):
            waiting += reversed(each.exceptions)
        else:
            yield each


def _telling(found: list[BaseException]) -> BaseException:
    return next((each for each in found if isinstance(each, PermanentError)), found[0])


def _text(said: BaseException | str, limit: int) -> str:
    try:
        return _clean(str(said), limit)
    except BaseException:  # noqa: BLE001
        return "the error's message cannot be read"


def _bounded(delay: float) -> float:
    return min(max(float(delay), 0.0), DELAY_SECONDS.high) if delay == delay else 0.0  # NaN is not a delay


def _json(error: JobError, number: int) -> str:
    return orjson.dumps({"type": error.type, "message": error.message, "attempt": number}).decode()


def _clean(text: str, limit: int) -> str:
    """`text` as PostgreSQL can store it: at most `limit` characters, without NUL or lone surrogates."""
    return text[:limit].replace("\0", "\ufffd").encode(errors="replace").decode()
