"""Clients are held to the same table of limits as the library, in the same words."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from pydantic import ValidationError

from engine.errors import InvalidJob, Problem
from engine.limits import (
    DELAY_SECONDS,
    MAX_ATTEMPTS,
    METADATA,
    RUN_AT,
    TIMEOUT_SECONDS,
    Limit,
)
from engine.model import NewJob
from engine.moves.validation import check as check_new
from engine.pipeline import Pipeline, Registry
from engine.text import MAX_PROBLEMS
from tests.engine.test_limits import STORED, Case, inside, outside
from web.wire.parsing import parsed
from web.wire.request_models import Batch, HistoryQuery, JobsQuery, JobToRun, check

REGISTRY = Registry([Pipeline(preset="p", function=lambda _job, _run: None)])
JOB = {"content": "text", "preset": "p"}


CASES = {field: STORED[field] for field in ("content", "priority", "max_attempts", "timeout_seconds")} | {
    "delay_seconds": Case(
        DELAY_SECONDS,
        (0, 5e-324, 31_536_000),
        (-5e-324, math.nextafter(31_536_000, math.inf), 31_536_001, 1e308),
    ),
    "run_at": Case(
        RUN_AT,
        ("9999-01-01T00:00:00Z", "9998-12-31T23:59:59.999999Z", "9999-01-01T01:00:00+01:00"),
        ("9999-01-01T00:00:00.000001Z", "9999-01-01T00:00:00-01:00", "9999-12-31T23:59:59Z"),
    ),
}


def document(**given: Any) -> bytes:
    return json.dumps(JOB | given).encode()


@pytest.mark.parametrize(("field", "value"), inside(CASES))
def test_a_value_at_a_bound_passes_and_the_library_takes_it(field: str, value: Any) -> None:
    asked = parsed(JobToRun, document(**{field: value}))
    check(asked, REGISTRY)
    new = asked.new(owner="ann", traceparent=None)
    check_new(new)
    if field != "run_at":
        assert getattr(new, field) == value


@pytest.mark.parametrize(("field", "value", "limit"), outside(CASES))
def test_the_next_one_is_refused_in_the_limits_words(field: str, value: Any, limit: Limit) -> None:
    with pytest.raises(InvalidJob) as refused:
        parsed(JobToRun, document(**{field: value}))
    assert refused.value.problems == (Problem(f"/{field}", limit.fault),)


@pytest.mark.parametrize("field", ["priority", "max_attempts", "timeout_seconds"])
def test_a_whole_number_may_be_written_with_a_point_and_is_held_to_the_same_bounds(field: str) -> None:
    case = CASES[field]
    for value in case.inside:
        kept = getattr(parsed(JobToRun, document(**{field: float(value)})), field)
        assert (kept, type(kept)) == (value, int)
    for value in case.outside:
        with pytest.raises(InvalidJob) as refused:
            parsed(JobToRun, document(**{field: float(value)}))
        assert refused.value.problems == (Problem(f"/{field}", case.limit.fault),)


def test_every_limit_that_is_broken_is_reported_at_once() -> None:
    broken = {field: case.outside[-1] for field, case in CASES.items()}
    with pytest.raises(InvalidJob) as refused:
        parsed(JobToRun, document(**broken))
    assert dict(refused.value.problems) == {f"/{field}": case.limit.fault for field, case in CASES.items()}


def test_a_batch_reports_all_that_is_wrong_with_its_first_wrong_job_and_where_that_is() -> None:
    jobs = [JOB, JOB, JOB | {"max_attempts": 0, "timeout_seconds": 86_401}, JOB | {"priority": 5}]
    with pytest.raises(InvalidJob) as refused:
        parsed(Batch, json.dumps({"jobs": jobs}).encode())
    assert refused.value.problems == (
        Problem("/jobs/2/max_attempts", MAX_ATTEMPTS.fault),
        Problem("/jobs/2/timeout_seconds", TIMEOUT_SECONDS.fault),
    )


@pytest.mark.parametrize("optional", sorted(JobToRun.model_fields.keys() - {"content", "preset"}))
def test_an_optional_member_that_is_null_is_absent(optional: str) -> None:
    absent = parsed(JobToRun, document()).new(owner="ann", traceparent=None)
    asked = parsed(JobToRun, document(**{optional: None}))
    check(asked, REGISTRY)
    assert asked.new(owner="ann", traceparent=None) == absent
    [job] = parsed(Batch, json.dumps({"jobs": [JOB | {optional: None}]}).encode()).jobs
    assert job.new(owner="ann", traceparent=None) == absent
    given: dict[str, Any] = JOB | {"user_id": "ann", optional: None}
    assert NewJob(**given) == absent


@pytest.mark.parametrize("required", ["content", "preset"])
def test_a_required_member_that_is_null_is_refused(required: str) -> None:
    with pytest.raises(InvalidJob) as refused:
        parsed(JobToRun, document(**{required: None}))
    assert [problem.pointer for problem in refused.value.problems] == [f"/{required}"]


def test_a_past_time_and_a_delay_exclude_each_other_as_others_do() -> None:
    with pytest.raises(InvalidJob, match="exclude each other"):
        parsed(JobToRun, document(run_at="1960-01-01T00:00:00Z", delay_seconds=0))


@pytest.mark.parametrize("text", ["1_0", " 5", "5 ", "+5", "٣", "1e1", "5.0", "true", "0x5", "", "-1", "101"])
def test_a_number_in_a_query_is_digits_alone(text: str) -> None:
    for model in (JobsQuery, HistoryQuery):
        assert model.model_validate_strings({"limit": "5"}).limit == 5
        if text != "101" or model is JobsQuery:
            with pytest.raises(ValidationError):
                model.model_validate_strings({"limit": text})
    with pytest.raises(ValidationError):
        JobsQuery.model_validate_strings({"offset": text if text != "101" else "10001"})


@pytest.mark.parametrize(
    "metadata",
    [
        pytest.param({"a": "x" * (METADATA.high - 8)}, id="bytes"),
        pytest.param({"a": "é" * (METADATA.high // 2 - 4)}, id="bytes as UTF-8"),
        pytest.param({"a": ["\n" * ((METADATA.high - 10) // 2)]}, id="bytes as JSON"),
    ],
)
def test_metadata_of_its_size_passes_and_a_byte_more_is_refused_in_the_limits_words(
    metadata: dict[str, Any],
) -> None:
    check(parsed(JobToRun, document(metadata=metadata)), REGISTRY)
    [name] = metadata
    larger = parsed(JobToRun, document(metadata={name + "b": metadata[name]}))
    with pytest.raises(InvalidJob) as refused:
        check(larger, REGISTRY)
    assert refused.value.problems == (Problem("/metadata", METADATA.fault),)
    batch = Batch(jobs=[JobToRun(content="text", preset="p"), larger])
    with pytest.raises(InvalidJob) as refused:
        check(batch, REGISTRY)
    assert refused.value.problems == (Problem("/jobs/1/metadata", METADATA.fault),)


def test_no_more_faults_are_reported_than_are_looked_for() -> None:
    jobs = Batch(jobs=[JobToRun(content="text", preset="nobody")] * (MAX_PROBLEMS + 1))
    with pytest.raises(InvalidJob) as refused:
        check(jobs, REGISTRY)
    assert [problem.pointer for problem in refused.value.problems] == [
        f"/jobs/{n}/preset" for n in range(MAX_PROBLEMS)
    ]
