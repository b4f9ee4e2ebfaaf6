"""Stored metadata, as one attempt finds them: they fit the pipeline's model, or other code may read them, or none."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import orjson
import pytest
from pydantic import ConfigDict, field_validator

from engine.errors import PermanentError
from engine.model import Completed, Failed, JobError, Outcome, Retry, Unreadable
from engine.pipeline import Metadata, Pipeline
from tests.worker.test_execution import Watched
from tests.worker.test_outcome import attempt, made
from worker.outcome import describe, encode

RAISED = {13: SystemExit(), 14: ConnectionError("away"), 15: PermanentError("never")}


class Strict(Metadata):
    speed: int

    @field_validator("speed")
    @classmethod
    def _judge(cls, speed: int) -> int:
        if speed in RAISED:
            raise RAISED[speed]
        if speed == 16:
            raise ValueError("too fast")
        return speed


def given(metadata: dict[str, Any], pipeline: Pipeline) -> Watched:
    return Watched(pipeline, job=attempt().job._replace(metadata=metadata))


@pytest.mark.parametrize("metadata", [{}, {"speed": "fast"}, {"speed": 1, "sped": 2}, {"speed": 16}])
async def test_stored_metadata_that_does_not_fit_its_model_is_left_to_other_code(
    metadata: dict[str, Any],
) -> None:
    outcome = await given(metadata, made(metadata=Strict)).run()
    assert isinstance(outcome, Unreadable)
    assert describe(outcome.error).message.startswith("metadata: ")


@pytest.mark.parametrize(("speed", "kind"), [(13, Retry), (14, Retry), (15, Failed)])
async def test_what_else_a_validator_raises_is_an_error_of_the_attempt(
    speed: int, kind: type[Outcome]
) -> None:
    outcome = await given({"speed": speed}, made(metadata=Strict)).run()
    assert isinstance(outcome, kind)


async def test_stored_metadata_that_cannot_be_read_fails_the_job() -> None:
    outcome = await Watched(made(), undecodable="number out of range").run()
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, JobError)
    assert "number out of range" in outcome.error.message


async def test_metadata_reaches_the_pipeline_as_its_model() -> None:
    pipeline = made(metadata=Strict, function=lambda job, _run: job.metadata.speed)
    outcome = await given({"speed": 7}, pipeline).run()
    assert isinstance(outcome, Completed)
    assert outcome.output.text == "7"


class Level(StrEnum):
    HIGH = "high"


class Exact(Metadata):
    """A model that coerces nothing: JSON has no times, ids, sets or tuples of its own."""

    model_config = ConfigDict(strict=True)

    at: datetime
    id: UUID
    tags: frozenset[str]
    pair: tuple[int, float]
    level: Level


async def test_a_strict_model_reads_in_the_worker_what_the_api_has_accepted_as_json() -> None:
    asked = {
        "at": "2030-01-01T00:00:00Z",
        "id": "0197b3c0-0000-7000-8000-000000000000",
        "tags": ["a", "b"],
        "pair": [1, 1e20],
        "level": "high",
    }
    Exact.model_validate_json(orjson.dumps(asked))
    pipeline = made(function=lambda job, _run: job.metadata.at.year, metadata=Exact)
    assert await given(asked, pipeline).run() == Completed(encode(2030))
