"""What clients send, checked with these models; what is wrong with it, as problems with JSON pointers."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
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

from engine.enqueue import MAX_CONTENT_BYTES, MAX_DELAY_SECONDS, MAX_METADATA_BYTES
from engine.errors import InvalidJob, Problem
from engine.model import DEFAULT_PRIORITY, NewJob
from engine.pipeline import PRESET, Registry
from engine.text import MAX_PROBLEMS, escape, json_faults, text_fault, whole
from web.paging import CURSOR
from web.shown import Status

MAX_BATCH: Final = 1000
MAX_OFFSET: Final = 10_000
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
LAST_RUN_AT: Final = datetime(9999, 1, 1, tzinfo=UTC)


def _storable(text: str) -> str:
    if fault := text_fault(text):
        raise PydanticCustomError("unstorable", "{fault}", {"fault": fault})
    return text


def _sized(content: str) -> str:
    # A character is 4 bytes at most: short texts need not be encoded to know that they fit.
    if len(content) * 4 > MAX_CONTENT_BYTES and len(content.encode()) > MAX_CONTENT_BYTES:
        raise PydanticCustomError("too_long", "more than {max} bytes as UTF-8", {"max": MAX_CONTENT_BYTES})
    return _storable(content)


def _in_range(moment: datetime) -> datetime | None:
    if moment >= LAST_RUN_AT:
        raise PydanticCustomError("too_late", "later than the year 9998")
    # Long past is simply "at once"; in UTC, for PostgreSQL knows no zone beyond 15:59.
    return moment.astimezone(UTC) if moment >= EPOCH else None


class Asked(BaseModel):
    """Base of what clients send: nothing is coerced. `check` refuses unknown members: pydantic would list millions."""

    model_config = ConfigDict(extra="allow", strict=True, json_schema_extra={"additionalProperties": False})


class JobToRun(Asked):
    """A job to run."""

    content: Annotated[str, Field(min_length=1), AfterValidator(_sized)] = Field(
        description="What the pipeline works on: 1 byte to 256 KiB as UTF-8, without NUL.",
        json_schema_extra={"pattern": "^[^\\u0000]*$"},
    )
    preset: str = Field(description="Which pipeline runs it; see /pipeline/presets.")
    metadata: dict[str, Any] = Field(
        default_factory=dict, description="Checked against the preset's schema; 256 KiB as JSON at most."
    )
    priority: Annotated[int, Field(ge=1, le=4, strict=False), BeforeValidator(whole)] = Field(
        default=DEFAULT_PRIORITY, description="1 is first."
    )
    run_at: Annotated[AwareDatetime, AfterValidator(_in_range)] | None = Field(
        default=None, description="Not before this time. Not together with delay_seconds."
    )
    delay_seconds: Annotated[float, Field(ge=0, le=MAX_DELAY_SECONDS, allow_inf_nan=False)] | None = Field(
        default=None, description="Not before so many seconds have passed. Not together with run_at."
    )
    max_attempts: Annotated[int, Field(ge=1, le=25, strict=False), BeforeValidator(whole)] | None = Field(
        default=None, description="How many errors the job survives; the preset's own by default."
    )
    timeout_seconds: Annotated[int, Field(ge=1, le=86_400, strict=False), BeforeValidator(whole)] | None = (
        Field(default=None, description="How long one attempt may take; the preset's own by default.")
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
    preset: Annotated[str, Field(pattern=f"^{PRESET.pattern}$")] | None = None
    owner: Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_storable)] | None = Field(
        default=None, description="Whose jobs; needs the scope jobs:admin."
    )


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
    if job.metadata and (unstorable := _metadata_faults(job.metadata, where)):
        yield from unstorable
    elif expected is not None:
        try:
            expected.model_validate_json(orjson.dumps(job.metadata))
        except ValidationError as error:
            yield from faults(error, where)
        except Exception as error:  # noqa: BLE001 - an author's validator may raise anything; it is about the input
            yield Problem(where, f"refused by the preset: {type(error).__name__}")


def _metadata_faults(metadata: dict[str, Any], where: str) -> list[Problem]:
    try:
        size = len(orjson.dumps(metadata))
    except orjson.JSONEncodeError:  # for a fault that is found below, or for nesting
        size = 0
    if size > MAX_METADATA_BYTES:
        return [Problem(where, f"more than {MAX_METADATA_BYTES} bytes as JSON")]
    return list(json_faults(metadata, where))


def faults(error: ValidationError, where: str = "") -> list[Problem]:
    """Pydantic's findings as problems, each with its JSON pointer."""
    return [
        Problem(
            where + "".join(f"/{escape(str(step))}" for step in fault["loc"]),
            fault["msg"].removeprefix("Value error, "),
        )
        for fault in error.errors(include_url=False, include_input=False, include_context=False)
    ]
