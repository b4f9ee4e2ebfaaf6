"""What a return value or an error means for a job, decided without I/O."""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Self

import pytest

from engine.errors import PermanentError
from engine.ids import uuid7
from engine.limits import DELAY_SECONDS
from engine.model import (
    Attempt,
    Cancelled,
    Completed,
    Failed,
    Job,
    JobError,
    JobState,
    Outcome,
    Reason,
    Released,
    Retry,
    Snoozed,
    Unreadable,
)
from engine.moves import Ending, Release
from engine.pipeline import Pipeline
from tests.support.worker_harness import local
from worker.outcome import (
    MAX_BACKOFF_SECONDS,
    MAX_OUTPUT_BYTES,
    DeadlinePassed,
    after,
    backoff,
    describe,
    encode,
    fingerprint,
    interpret,
    label,
    record,
    within_budget,
)

RNG = random.Random(1)  # noqa: S311 - the same draws each time
NAN = float("nan")


def made(**changes: Any) -> Pipeline:
    known: dict[str, Any] = {"preset": "p", "function": lambda _job, _run: None}
    return local(Pipeline(**(known | changes)))


def attempt(**changes: Any) -> Attempt:
    now = datetime.now(UTC)
    known: dict[str, Any] = {
        "job": Job(uuid7(), "ann", "p", "text", {}, 2, now, None),
        "errors": 0,
        "crashes": 0,
        "max_attempts": None,
        "timeout_seconds": None,
    }
    return Attempt(
        number=4,
        worker_id=1,
        position=1,
        due_at=now,
        started_at=now,
        ready_at=now,
        **(known | changes),
    )


class Colour(StrEnum):
    RED = "red"


@dataclass
class Point:
    x: int = 1


class Mute(Exception):
    def __str__(self) -> str:
        raise SystemExit


class Endless(str):
    def __getitem__(self, _key: Any) -> Self:
        raise RuntimeError


class Odd(Exception):
    def __str__(self) -> str:
        return Endless("odd")


@pytest.mark.parametrize(
    ("output", "text"),
    [
        (None, "null"),
        ({"a": [1, 2.5, True, None, "ä"]}, '{"a":[1,2.5,true,null,"ä"]}'),
        ((1, 2), "[1,2]"),
        (Colour.RED, '"red"'),
        (defaultdict(int, a=1), '{"a":1}'),
        (OrderedDict(b=1, a=None), '{"b":1,"a":null}'),
        (Counter("aa"), '{"a":2}'),
        ("null", '"null"'),
        ("\\u0000", '"\\\\u0000"'),
        (2**64 - 1, "18446744073709551615"),
    ],
)
def test_what_json_can_hold_is_kept(output: Any, text: str) -> None:
    assert encode(output).text == text


CYCLE: list[Any] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    "output",
    [
        NAN,
        [float("inf")],
        {"a": {"b": [None, -float("inf")]}},
        "a\0b",
        {"\0": 1},
        ["\\\0"],
        "\ud800",
        {"\udfff": 1},
        2**64,
        -(2**63) - 1,
        b"bytes",
        {1: 2},
        {1, 2},
        Point(),
        object(),
        datetime.now(UTC),
        CYCLE,
        "x" * MAX_OUTPUT_BYTES,
        Cancelled(),
        Released(Reason.SHUTDOWN),
    ],
    ids=lambda output: repr(output)[:20],
)
def test_what_json_or_postgresql_cannot_hold_fails_the_job_for_good(output: Any) -> None:
    for returned in (output, Completed(output)):
        outcome = interpret(returned)
        assert isinstance(outcome, Failed)
        assert isinstance(outcome.error, JobError)
        assert outcome.error.message.startswith("the outcome cannot be stored")


def test_the_largest_output_is_kept() -> None:
    assert len(encode("x" * (MAX_OUTPUT_BYTES - 2)).text) == MAX_OUTPUT_BYTES


@pytest.mark.parametrize(
    ("returned", "delay"),
    [
        (Snoozed(5), 5),
        (Snoozed(-1), 0),
        (Snoozed(NAN), 0),
        (Snoozed(float("inf")), DELAY_SECONDS.high),
        (Retry(2.5, "busy"), 2.5),
        (Retry(None, "busy"), None),
        (Retry(1e300, "busy"), DELAY_SECONDS.high),
    ],
)
def test_a_delay_is_kept_within_a_year(returned: Any, delay: float | None) -> None:
    outcome = interpret(returned)
    assert isinstance(outcome, Retry | Snoozed)
    assert outcome.delay == delay


@pytest.mark.parametrize("delay", ["soon", object(), 10**400, None])
@pytest.mark.parametrize("kind", ["snoozed", "retry"])
def test_a_delay_that_is_no_number_is_an_error_of_the_attempt_and_not_the_end_of_the_job(
    kind: str, delay: Any
) -> None:
    if kind == "snoozed":
        outcome = interpret(Snoozed(delay))
        assert isinstance(outcome, Retry)
        assert describe(outcome.error).message.startswith("the delay is no number of seconds")
    else:
        outcome = interpret(Retry(delay, "busy"))
        assert isinstance(outcome, Retry)
    assert outcome.delay is None


@pytest.mark.parametrize("error", [ValueError(), SystemExit(), KeyboardInterrupt(), GeneratorExit()])
def test_any_error_but_a_permanent_one_is_tried_again(error: BaseException) -> None:
    assert after(error) == Retry(None, JobError(type(error).__name__, type(error).__name__))
    assert after(PermanentError("never")) == Failed(JobError("PermanentError", "never"))


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        ("plain words", JobError("Error", "plain words")),
        ("", JobError("Error", "Error")),
        (ValueError("no"), JobError("ValueError", "no")),
        (ValueError("a\0b\ud800"), JobError("ValueError", "a\ufffdb?")),
        (ValueError("x" * 5_000_000), JobError("ValueError", "x" * 2000)),
        (Mute(), JobError("Mute", "the error's message cannot be read")),
        (Odd(), JobError("Odd", "the error's message cannot be read")),
        (type("Z" * 999 + '"\n', (Exception,), {})(), JobError("Z" * 200, "Z" * 200)),
    ],
    ids=lambda value: type(value).__name__[:20],
)
def test_whatever_an_exception_says_becomes_text_that_can_be_stored(error: Any, shown: JobError) -> None:
    assert describe(error) == shown
    ending = record(attempt(), Failed(error))
    assert isinstance(ending, Ending)
    assert ending.error is not None
    ending.error.encode()


@pytest.mark.parametrize(
    ("errors", "preset", "own", "again"),
    [
        (0, 3, None, True),
        (1, 3, None, True),
        (2, 3, None, False),
        (0, 1, None, False),
        (2, 3, 5, True),
        (4, 3, 5, False),
        (0, 3, 1, False),
    ],
)
def test_an_error_beyond_the_budget_fails_the_job(
    errors: int, preset: int, own: int | None, again: bool
) -> None:
    outcome = within_budget(
        attempt(errors=errors, max_attempts=own), made(max_attempts=preset), Retry(None, "e"), RNG
    )
    assert isinstance(outcome, Retry if again else Failed)


def test_crashes_leave_the_budget_of_errors_alone() -> None:
    outcome = within_budget(attempt(errors=1, crashes=2), made(max_attempts=3), Retry(None, "e"), RNG)
    assert isinstance(outcome, Retry)


@pytest.mark.parametrize(
    "outcome", [Completed(1), Failed("e"), Snoozed(3), Released(Reason.UNKNOWN), Cancelled(), Unreadable("e")]
)
def test_only_an_error_spends_the_budget(outcome: Any) -> None:
    assert within_budget(attempt(errors=2), made(max_attempts=3), outcome, RNG) is outcome


@pytest.mark.parametrize(
    ("base", "errors", "limit"),
    [
        (1, 0, 1),
        (1, 1, 2),
        (1, 4, 16),
        (1, 9, 512),
        (1, 10, 600),
        (1, 24, 600),
        (0.5, 3, 4),
        (600, 5, 600),
        (0, 9, 0),
    ],
)
def test_the_back_off_is_drawn_from_all_of_an_interval_that_doubles(
    base: float, errors: int, limit: float
) -> None:
    drawn = [backoff(made(backoff=base), errors, RNG) for _ in range(300)]
    assert 0 <= min(drawn) <= 0.05 * limit
    assert 0.95 * limit <= max(drawn) <= limit <= MAX_BACKOFF_SECONDS


def test_a_pipeline_s_own_delay_replaces_the_back_off() -> None:
    assert within_budget(attempt(), made(), Retry(42, "e"), RNG) == Retry(42, "e")


@pytest.mark.parametrize(
    ("outcome", "row", "named"),
    [
        (Completed(encode([1])), (JobState.COMPLETED, "completed", "[1]", None, 0), "completed"),
        (Failed("no"), (JobState.FAILED, "failed", None, "no", 1), "failed"),
        (Cancelled(), (JobState.CANCELLED, "cancelled", None, None, 0), "cancelled"),
        (Retry(2, DeadlinePassed("late")), ("error", 2, "late", 1), "timeout"),
        (after(DeadlinePassed("late")), ("error", None, "late", 1), "timeout"),
        (Failed(DeadlinePassed("late")), (JobState.FAILED, "failed", None, "late", 1), "timeout"),
        (Retry(2, TimeoutError("theirs")), ("error", 2, "theirs", 1), "retry"),
        (Failed(TimeoutError("theirs")), (JobState.FAILED, "failed", None, "theirs", 1), "failed"),
        (Retry(2, JobError("TimeoutError", "theirs")), ("error", 2, "theirs", 1), "retry"),
        (Unreadable("no", 4), ("unreadable to its worker", 4, "no", 0), "unreadable"),
        (Retry(2, "no"), ("error", 2, "no", 1), "retry"),
        (Snoozed(3), ("snoozed", 3, None, 0), "snoozed"),
        (Released(Reason.SHUTDOWN), ("shutdown", None, None, 0), "released"),
    ],
)
def test_each_outcome_has_its_row_and_its_name(outcome: Any, row: Any, named: str) -> None:
    written = record(attempt(), outcome)
    message = written.error and written.error.split('"message":"')[1].split('"')[0]
    match written:
        case Ending():
            assert (written.state, written.reason, written.output, message, written.spent) == row
        case Release():
            assert (written.reason, written.delay, message, written.spent) == row
    assert label(outcome) == named


def test_errors_that_differ_in_numbers_and_ids_alone_look_alike() -> None:
    def printed(message: str, name: str = "E") -> str:
        return fingerprint(JobError(name, message))

    assert printed(f"row 17 of {uuid7()} at 0x7f3a") == printed(f"row 4 of {uuid7()} at 0xdead")
    assert printed("row 17") != printed("column 17")
    assert printed("row 17") != printed("row 17", "F")


@pytest.mark.parametrize(("levels", "kind"), [(64, Completed), (65, Failed), (200, Failed)])
def test_an_output_is_nested_as_deep_as_metadata_may_be(levels: int, kind: type[Outcome]) -> None:
    output: Any = ["[" * 100, {"wide": [[]] * 100}]
    for _ in range(levels - 4):
        output = [output]
    outcome = interpret(output)
    assert isinstance(outcome, kind)
    if isinstance(outcome, Failed):
        assert describe(outcome.error).message == "the outcome cannot be stored: nested deeper than 64"
