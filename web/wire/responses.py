"""The responses, each defined once: the bytes come from the dict, and the schema from the dict's type."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from http import HTTPStatus
from typing import Annotated, Any, Final, Literal, cast
from uuid import UUID

import orjson
from aiohttp import web
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, WithJsonSchema, with_config
from typing_extensions import TypeAliasType, TypedDict

from engine.model import JobState, Reason
from engine.pipeline import Pipeline, Registry
from engine.queries.audit import AuditRow
from engine.queries.explain import Explanation
from engine.queries.jobs import JobView
from web.wire.answer import JSON, Answer
from web.wire.schema_text import schema_text

UNREGISTERED: Final = Pipeline(preset="unregistered", function=lambda _job, _run: None)
"""Stands in for a preset that this installation no longer has; supplies a pipeline's defaults."""

Status = TypeAliasType("Status", Literal["pending", "processing", "completed", "failed", "cancelled"])
"""One type in the document, so that clients have one, too."""
JobId = Annotated[str, Field(json_schema_extra={"format": "uuid"})]
JsonObject = Annotated[Any, WithJsonSchema({"type": "object", "additionalProperties": True})]
"""JSON text that is embedded as it is stored, not parsed again."""
JsonAny = Annotated[Any, WithJsonSchema({})]
ReasonText = Annotated[str, WithJsonSchema({"type": "string", "enum": [*Reason]})]

closed = with_config(ConfigDict(extra="forbid"))
"""Closes a response's schema: no other members."""


@closed
class Links(TypedDict):
    self: str
    history: str
    events: str
    cancel: str


@closed
class Accepted(TypedDict):
    job_id: JobId
    status: Literal["pending"]
    links: Links


@closed
class AcceptedBatch(TypedDict):
    job_ids: list[JobId]


@closed
class Progress(TypedDict):
    fraction: Annotated[float, Field(ge=0, le=1)]
    message: str


@closed
class LatestError(TypedDict):
    type: str
    message: str
    attempt: int


@closed
class ListedJob(TypedDict):
    """A job in a list: all members of a job but `content` and `result`."""

    job_id: JobId
    status: Status
    preset: str
    metadata: JsonObject
    priority: int
    attempt: Annotated[
        int, Field(description="Number of starts so far. May exceed max_attempts, which limits errors.")
    ]
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


@closed
class JobObject(ListedJob):
    """A job."""

    content: str
    result: JsonAny


@closed
class JobsPage(TypedDict):
    jobs: list[ListedJob]
    next_cursor: str | None
    limit: int
    offset: int


@closed
class Transition(TypedDict):
    seq: int
    from_status: Status | None
    to_status: Status
    timestamp: AwareDatetime
    attempt: int
    reason: ReasonText | None
    metadata: dict[str, JsonValue] | None


@closed
class History(TypedDict):
    history: list[Transition]
    next_cursor: str | None


@closed
class Standing(TypedDict):
    job_id: JobId
    status: Status
    links: Links


@closed
class FactShown(TypedDict):
    code: str
    detail: str


@closed
class ExplanationShown(TypedDict):
    status: Status
    summary: str
    facts: list[FactShown]
    estimate_seconds: float | None


@closed
class Preset(TypedDict):
    preset: str
    description: str
    metadata_schema: dict[str, JsonValue] | None
    timeout_seconds: float
    max_attempts: int


@closed
class Presets(TypedDict):
    presets: list[Preset]


@closed
class Health(TypedDict):
    status: Literal["ok", "unavailable"]
    checks: dict[str, str]


def reply(
    body: Any, *, status: HTTPStatus = HTTPStatus.OK, headers: Mapping[str, str] | None = None
) -> web.Response:
    """A response of one of the types above."""
    return Answer(
        body=orjson.dumps(body, option=orjson.OPT_UTC_Z), status=status, content_type=JSON, headers=headers
    )


def status_of(state: JobState) -> Status:
    return STATUSES[state]


def links(job_id: UUID | str) -> Links:
    path = f"/pipeline/job/{job_id}"
    return {
        "self": path,
        "history": f"{path}/history",
        "events": f"{path}/events",
        "cancel": f"{path}/cancel",
    }


def accepted(job_id: str) -> Accepted:
    return {"job_id": job_id, "status": "pending", "links": links(job_id)}


def job(view: JobView, registry: Registry) -> JobObject:
    return {
        **listed(view, registry),
        "content": view.content or "",
        "result": None if view.output is None else orjson.Fragment(view.output),
    }


def listed(view: JobView, registry: Registry) -> ListedJob:
    pipeline = registry.get(view.preset, UNREGISTERED)
    return {
        "job_id": str(view.job_id),
        "status": status_of(view.state),
        "preset": view.preset,
        "metadata": orjson.Fragment(view.metadata),
        "priority": view.priority,
        "attempt": view.attempt,
        "max_attempts": view.max_attempts or pipeline.max_attempts,
        "timeout_seconds": view.timeout_seconds or _shortest(pipeline.timeout),
        "created_at": utc(view.created_at),
        "updated_at": utc(view.updated_at),
        "run_at": utc(view.run_at),
        "started_at": view.started_at and utc(view.started_at),
        "completed_at": view.completed_at and utc(view.completed_at),
        "progress": progress(view),
        "error": cast("LatestError | None", view.error),
        "links": links(view.job_id),
    }


def progress(view: JobView) -> Progress | None:
    if view.fraction is None:
        return None
    return {"fraction": view.fraction, "message": view.message or ""}


def transition(row: AuditRow) -> Transition:
    return {
        "seq": row.seq,
        "from_status": None if row.from_state is None else status_of(row.from_state),
        "to_status": status_of(row.to_state),
        "timestamp": utc(row.timestamp),
        "attempt": row.attempt,
        "reason": row.reason,
        "metadata": row.metadata,
    }


def standing(job_id: UUID, state: JobState) -> Standing:
    return {"job_id": str(job_id), "status": status_of(state), "links": links(job_id)}


def explanation(found: Explanation) -> ExplanationShown:
    return {
        "status": status_of(found.status),
        "summary": found.summary,
        "facts": [{"code": fact.code, "detail": fact.detail} for fact in found.facts],
        "estimate_seconds": found.estimate_seconds,
    }


def presets(registry: Registry) -> Presets:
    return {"presets": [preset(pipeline) for pipeline in registry.values()]}


def preset(pipeline: Pipeline) -> Preset:
    return {
        "preset": pipeline.preset,
        "description": pipeline.description,
        "metadata_schema": None if pipeline.metadata is None else _schema(pipeline.metadata),
        "timeout_seconds": _shortest(pipeline.timeout),
        "max_attempts": pipeline.max_attempts,
    }


def utc(moment: datetime) -> datetime:
    """`moment` in UTC: orjson writes `Z` for UTC only, and the database's session may use another time zone."""
    return moment.astimezone(UTC)


STATUSES: Final[Mapping[JobState, Status]] = {
    JobState.PENDING: "pending",
    JobState.PROCESSING: "processing",
    JobState.COMPLETED: "completed",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
}


# The cache is finite: the models are those of the registered presets.
@cache
def _schema(model: type[BaseModel]) -> Any:
    return orjson.Fragment(schema_text(model.model_json_schema()))


def _shortest(seconds: float) -> float:
    return int(seconds) if seconds == int(seconds) else seconds
