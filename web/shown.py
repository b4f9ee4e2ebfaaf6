"""What clients get. The handlers render dicts; these models describe them in /openapi.json."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue

Status = Literal["pending", "processing", "completed", "failed", "cancelled"]
JobId = Annotated[str, Field(json_schema_extra={"format": "uuid"})]


class Shown(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Links(Shown):
    self: str
    history: str
    events: str
    cancel: str


class Accepted(Shown):
    job_id: JobId
    status: Literal["pending"]
    links: Links


class AcceptedBatch(Shown):
    job_ids: list[JobId]


class Progress(Shown):
    fraction: Annotated[float, Field(ge=0, le=1)]
    message: str


class LatestError(Shown):
    type: str
    message: str
    attempt: int


class ListedJob(Shown):
    """A job in a list: everything but its content and result."""

    job_id: JobId
    status: Status
    preset: str
    metadata: dict[str, JsonValue]
    priority: int
    attempt: int = Field(description="Starts so far; may exceed max_attempts, which limits errors.")
    max_attempts: int
    timeout_seconds: float
    created_at: AwareDatetime
    updated_at: AwareDatetime
    run_at: AwareDatetime
    started_at: AwareDatetime | None
    completed_at: AwareDatetime | None
    progress: Progress | None
    error: LatestError | None
    links: Links


class JobObject(ListedJob):
    """A job."""

    content: str
    result: JsonValue


class JobsPage(Shown):
    jobs: list[ListedJob]
    next_cursor: str | None
    limit: int
    offset: int


class Transition(Shown):
    seq: int
    from_status: Status | None
    to_status: Status
    timestamp: AwareDatetime
    attempt: int
    reason: str | None
    metadata: dict[str, JsonValue] | None


class History(Shown):
    history: list[Transition]


class Standing(Shown):
    job_id: JobId
    status: Status
    links: Links


class FactShown(Shown):
    code: str
    detail: str


class ExplanationShown(Shown):
    status: Status
    summary: str
    facts: list[FactShown]
    estimate_seconds: float | None


class Preset(Shown):
    preset: str
    description: str
    metadata_schema: dict[str, JsonValue] | None
    timeout_seconds: float
    max_attempts: int


class Presets(Shown):
    presets: list[Preset]


class Health(Shown):
    status: Literal["ok", "unavailable"]
    checks: dict[str, str]


class Fault(Shown):
    pointer: str
    detail: str


class ProblemDetails(Shown):
    """RFC 9457. `errors` is there when the status is 422."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    request_id: str
    errors: list[Fault] | None = None
