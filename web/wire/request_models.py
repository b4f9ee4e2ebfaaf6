"""The models of request bodies and queries, and their faults as problems with JSON pointers (RFC 6901).

The bounds and their texts are those of engine/limits.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any, Final

from pydantic import (
    AfterValidator,
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
from engine.queries.audit import PAGE
from engine.text import MAX_PROBLEMS, digits, escape, json_bytes, text_fault, whole
from web.wire.paging import CURSOR, HISTORY_CURSOR
from web.wire.responses import Status
from web.wire.times import Moment

MAX_BATCH: Final = 1000
MAX_OFFSET: Final = 10_000


def _storable(text: str) -> str:
    if fault := text_fault(text):
        raise PydanticCustomError("unstorable", "{fault}", {"fault": fault})
    return text


def _within(limit: Limit) -> AfterValidator:
    """A validator that refuses values outside `limit`, with the limit's text."""

    def check(value: Any) -> Any:
        if value not in limit:
            raise _outside(limit)
        return value

    return AfterValidator(check)


def _outside(limit: Limit) -> PydanticCustomError:
    return PydanticCustomError("outside", "{fault}", {"fault": limit.fault})


def _sized(content: str) -> str:
    # A character has at most 4 bytes, so a short text fits without being encoded.
    if not content or (len(content) * 4 > CONTENT.high and len(content.encode()) > CONTENT.high):
        raise _outside(CONTENT)
    return _storable(content)


def _bounds(limit: Range) -> dict[str, Any]:
    """The bounds for the JSON schema; `_within` checks them."""
    return {"minimum": limit.low, "maximum": limit.high}


Digits = BeforeValidator(digits)
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
    """Base of request bodies: no value is coerced. `check` refuses unknown members: pydantic would list millions."""

    model_config = ConfigDict(extra="allow", strict=True, json_schema_extra={"additionalProperties": False})


class JobToRun(Asked):
    """A job to run. Null is absent: an optional member that is null has its default."""

    content: Annotated[str, AfterValidator(_sized)] = Field(
        description="The pipeline's input: 1 byte to 256 KiB as UTF-8, without NUL.",
        json_schema_extra={"minLength": CONTENT.low, "pattern": "^[^\\u0000]*$"},
    )
    preset: str = Field(description="The preset whose pipeline runs the job; see /pipeline/presets.")
    metadata: dict[str, Any] | None = Field(
        default_factory=dict,
        description="Input that fits the preset's metadata schema; at most 256 KiB as JSON.",
    )
    priority: Priority | None = Field(default=DEFAULT_PRIORITY, description="Jobs with priority 1 run first.")
    run_at: Annotated[Moment, _within(RUN_AT)] | None = Field(
        default=None, description="The job starts no earlier than this time. Excludes delay_seconds."
    )
    delay_seconds: Delay | None = Field(
        default=None,
        description="The job starts no earlier than this many seconds from now. Excludes run_at.",
    )
    max_attempts: MaxAttempts | None = Field(
        default=None, description="The job fails at this number of errors. The default is the preset's."
    )
    timeout_seconds: TimeoutSeconds | None = Field(
        default=None, description="How long one attempt may take. The default is the preset's."
    )

    @model_validator(mode="after")
    def _one_time(self) -> JobToRun:
        if self.run_at is not None and self.delay_seconds is not None:
            raise PydanticCustomError("two_times", "run_at and delay_seconds exclude each other")
        return self

    def new(self, *, owner: str, traceparent: str | None) -> NewJob:
        return NewJob(
            user_id=owner,
            preset=self.preset,
            content=self.content,
            metadata=self.metadata or {},
            priority=DEFAULT_PRIORITY if self.priority is None else self.priority,
            run_at=self.run_at,
            delay_seconds=self.delay_seconds,
            max_attempts=self.max_attempts,
            timeout_seconds=self.timeout_seconds,
            traceparent=traceparent,
        )


class Batch(Asked):
    """Jobs to run: all or none are accepted."""

    jobs: Annotated[list[JobToRun], Field(min_length=1, max_length=MAX_BATCH, fail_fast=True)]


class JobsQuery(BaseModel):
    """Which jobs to list."""

    model_config = ConfigDict(extra="forbid")

    limit: Annotated[int, Field(ge=1, le=100), Digits] = 20
    offset: Annotated[int, Field(ge=0, le=MAX_OFFSET), Digits] = Field(
        default=0, description="How many jobs to skip, from the newest or from the cursor."
    )
    cursor: Annotated[str, Field(pattern=CURSOR)] | None = Field(
        default=None, description="The `next_cursor` of the previous page."
    )
    status: Status | None = None
    preset: Annotated[str, Field(pattern=f"^{PRESET.regex.pattern}$")] | None = None
    owner: (
        Annotated[str, Field(min_length=USER_ID.low, max_length=USER_ID.high), AfterValidator(_storable)]
        | None
    ) = Field(
        default=None, description="The owner of the jobs, by default the caller. Needs the scope jobs:admin."
    )


class HistoryQuery(BaseModel):
    """Which part of a job's history to read."""

    model_config = ConfigDict(extra="forbid")

    limit: Annotated[int, Field(ge=1, le=PAGE), Digits] = PAGE
    cursor: Annotated[str, Field(pattern=HISTORY_CURSOR)] | None = Field(
        default=None, description="The `next_cursor` of the previous page."
    )


def check(asked: Asked, registry: Registry) -> None:
    """Raise InvalidJob with the faults that the models do not find, at most MAX_PROBLEMS."""
    if problems := list(islice(_beyond_shape(asked, registry), MAX_PROBLEMS)):
        raise InvalidJob(problems)


def _beyond_shape(asked: Asked, registry: Registry, where: str = "") -> Iterator[Problem]:
    for name in asked.model_extra or ():
        yield Problem(f"{where}/{escape(name)}", "unknown member")
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
    metadata = job.metadata or {}
    if metadata and (unstorable := metadata_problems(metadata, where)):
        yield from unstorable
    elif expected is not None:
        try:
            expected.model_validate_json(json_bytes(metadata))
        except ValidationError as error:
            yield from faults(error, where)
        except Exception as error:  # noqa: BLE001 - an author's validator may raise anything; it is about the input
            yield Problem(where, f"refused by the preset: {type(error).__name__}")


def faults(error: ValidationError, where: str = "") -> list[Problem]:
    """Pydantic's errors as problems, each with its JSON pointer."""
    return [
        Problem(
            where + "".join(f"/{escape(str(step))}" for step in fault["loc"]),
            fault["msg"].removeprefix("Value error, "),
        )
        for fault in error.errors(include_url=False, include_input=False, include_context=False)
    ]
