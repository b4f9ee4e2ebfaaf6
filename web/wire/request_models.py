"""What clients send, checked with these models; what is wrong with it, as problems with JSON pointers.

The bounds and their words are those of engine/limits.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from typing import Annotated, Any, Final

import orjson
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from engine.errors import InvalidJob, Problem
from engine.limits import (
    CONTENT,
    DELAY_SECONDS,
    MAX_ATTEMPTS,
    PRESET,
    PRIORITY,
    RUN_AT,
    TIMEOUT_SECONDS,
    USER_ID,
    Limit,
    Range,
)
from engine.model import DEFAULT_PRIORITY, NewJob
from engine.moves.validation import metadata_problems
from engine.pipeline import Registry
from engine.text import MAX_PROBLEMS, escape, text_fault, whole
from web.wire.paging import CURSOR
from web.wire.responses import Status

MAX_BATCH: Final = 1000
MAX_OFFSET: Final = 10_000


def _storable(text: str) -> str:
    if fault := text_fault(text):
        raise PydanticCustomError("unstorable", "{fault}", {"fault": fault})
    return text


def _within(limit: Limit) -> AfterValidator:
    """Refuse a value outside of a limit, in the limit's words."""

    def check(value: Any) -> Any:
        if value not in limit:
            raise _outside(limit)
        return value

    return AfterValidator(check)


def _outside(limit: Limit) -> PydanticCustomError:
    return PydanticCustomError("outside", "{fault}", {"fault": limit.fault})


def _sized(content: str) -> str:
    # A character is 4 bytes at most: short texts need not be encoded to know that they fit.
    if not content or (len(content) * 4 > CONTENT.high and len(content.encode()) > CONTENT.high):
        raise _outside(CONTENT)
    return _storable(content)


def _in_range(moment: datetime) -> datetime | None:
    if moment not in RUN_AT:
        raise _outside(RUN_AT)
    # Long past is simply "at once".
    return moment if moment >= RUN_AT.first else None


def _bounds(limit: Range) -> dict[str, Any]:
    """For the schema: the check itself is `_within`."""
    return {"minimum": limit.low, "maximum": limit.high}


Priority = Annotated[
    int, Field(strict=False, json_schema_extra=_bounds(PRIORITY)), BeforeValidator(whole), _within(PRIORITY)
]
MaxAttempts = Annotated[
    int,
    Field(strict=False, json_schema_extra=_bounds(MAX_ATTEMPTS)),
    BeforeValidator(whole),
    _within(MAX_ATTEMPTS),
]
TimeoutSeconds = Annotated[
    int,
    Field(strict=False, json_schema_extra=_bounds(TIMEOUT_SECONDS)),
    BeforeValidator(whole),
    _within(TIMEOUT_SECONDS),
]
Delay = Annotated[
    float, Field(allow_inf_nan=False, json_schema_extra=_bounds(DELAY_SECONDS)), _within(DELAY_SECONDS)
]


class Asked(BaseModel):
    """Base of what clients send: nothing is coerced. `check` refuses unknown members: pydantic would list millions."""

    model_config = ConfigDict(extra="allow", strict=True, json_schema_extra={"additionalProperties": False})


class JobToRun(Asked):
    """A job to run."""

    content: Annotated[str, AfterValidator(_sized)] = Field(
        description="What the pipeline works on: 1 byte to 256 KiB as UTF-8, without NUL.",
        json_schema_extra={"minLength": CONTENT.low, "pattern": "^[^\\u0000]*$"},
    )
    preset: str = Field(description="Which pipeline runs it; see /pipeline/presets.")
    metadata: dict[str, Any] = Field(
        default_factory=dict, description="Checked against the preset's schema; 256 KiB as JSON at most."
    )
    priority: Priority = Field(default=DEFAULT_PRIORITY, description="1 is first.")
    run_at: Annotated[AwareDatetime, AfterValidator(_in_range)] | None = Field(
        default=None, description="Not before this time. Not together with delay_seconds."
    )
    delay_seconds: Delay | None = Field(
        default=None, description="Not before so many seconds have passed. Not together with run_at."
    )
    max_attempts: MaxAttempts | None = Field(
        default=None, description="How many errors the job survives; the preset's own by default."
    )
    timeout_seconds: TimeoutSeconds | None = Field(
        default=None, description="How long one attempt may take; the preset's own by default."
    )

    @model_validator(mode="after")
    def _one_time(self) -> JobToRun:
        if {"run_at", "delay_seconds"} <= self.model_fields_set:
            raise PydanticCustomError("two_times", "run_at and delay_seconds exclude each other")
        return self

    def new(self, *, owner: str, traceparent: str | None) -> NewJob:
        return NewJob(
            user_id=owner,
            preset=self.preset,
            content=self.content,
            metadata=self.metadata,
            priority=self.priority,
            run_at=self.run_at,
            delay_seconds=self.delay_seconds,
            max_attempts=self.max_attempts,
            timeout_seconds=self.timeout_seconds,
            traceparent=traceparent,
        )


class Batch(Asked):
    """Jobs to run, all or none."""

    jobs: Annotated[list[JobToRun], Field(min_length=1, max_length=MAX_BATCH, fail_fast=True)]


class JobsQuery(BaseModel):
    """Which jobs to list."""

    model_config = ConfigDict(extra="forbid")

    limit: Annotated[int, Field(ge=1, le=100)] = 20
    offset: Annotated[int, Field(ge=0, le=MAX_OFFSET)] = Field(
        default=0, description="How many to skip, from the newest or from the cursor."
    )
    cursor: Annotated[str, Field(pattern=CURSOR)] | None = Field(
        default=None, description="`next_cursor` of the page before."
    )
    status: Status | None = None
    preset: Annotated[str, Field(pattern=f"^{PRESET.regex.pattern}$")] | None = None
    owner: (
        Annotated[str, Field(min_length=USER_ID.low, max_length=USER_ID.high), AfterValidator(_storable)]
        | None
    ) = Field(default=None, description="Whose jobs; needs the scope jobs:admin.")


def check(asked: Asked, registry: Registry) -> None:
    """Raise InvalidJob with what is wrong beyond the shape: the first MAX_PROBLEMS faults."""
    if problems := list(islice(_beyond_shape(asked, registry), MAX_PROBLEMS)):
        raise InvalidJob(problems)


def _beyond_shape(asked: Asked, registry: Registry, where: str = "") -> Iterator[Problem]:
    for name in asked.model_extra or ():
        yield Problem(f"{where}/{escape(name)}", "not a member that is known here")
    if isinstance(asked, JobToRun):
        yield from _preset_faults(asked, registry, where)
    elif isinstance(asked, Batch):
        for index, job in enumerate(asked.jobs):
            yield from _beyond_shape(job, registry, f"/jobs/{index}")


def _preset_faults(job: JobToRun, registry: Registry, where: str) -> Iterator[Problem]:
    if (pipeline := registry.get(job.preset)) is None:
        yield Problem(f"{where}/preset", "not a preset of this installation; see /pipeline/presets")
    expected = pipeline.metadata if pipeline is not None else None
    where = f"{where}/metadata"
    if job.metadata and (unstorable := metadata_problems(job.metadata, where)):
        yield from unstorable
    elif expected is not None:
        try:
            expected.model_validate_json(orjson.dumps(job.metadata))
        except ValidationError as error:
            yield from faults(error, where)
        except Exception as error:  # noqa: BLE001 - an author's validator may raise anything; it is about the input
            yield Problem(where, f"refused by the preset: {type(error).__name__}")


def faults(error: ValidationError, where: str = "") -> list[Problem]:
    """Pydantic's findings as problems, each with its JSON pointer."""
    return [
        Problem(
            where + "".join(f"/{escape(str(step))}" for step in fault["loc"]),
            fault["msg"].removeprefix("Value error, "),
        )
        for fault in error.errors(include_url=False, include_input=False, include_context=False)
    ]
