"""Jobs, transitions and presets as the JSON that clients get."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from http import HTTPStatus
from typing import Any, Final
from uuid import UUID

import orjson
from aiohttp import web
from pydantic import BaseModel

from engine.audit import AuditRow
from engine.jobs import JobView
from engine.pipeline import Pipeline, Registry

JSON: Final = "application/json"
UNREGISTERED: Final = Pipeline(preset="unregistered", function=lambda _job, _run: None)
"""Stands in for a preset that this installation no longer has: a pipeline's defaults."""


def reply(
    body: Any, *, status: HTTPStatus = HTTPStatus.OK, headers: Mapping[str, str] | None = None
) -> web.Response:
    return web.Response(
        body=orjson.dumps(body, option=orjson.OPT_UTC_Z), status=status, content_type=JSON, headers=headers
    )


def links(job_id: UUID | str) -> dict[str, str]:
    self = f"/pipeline/job/{job_id}"
    return {
        "self": self,
        "history": f"{self}/history",
        "events": f"{self}/events",
        "cancel": f"{self}/cancel",
    }


def job(view: JobView, registry: Registry) -> dict[str, Any]:
    """The job object. What is JSON text already is embedded, not parsed again."""
    return listed(view, registry) | {
        "content": view.content,
        "result": None if view.output is None else orjson.Fragment(view.output),
    }


def listed(view: JobView, registry: Registry) -> dict[str, Any]:
    """The job as lists show it, without content and result."""
    pipeline = registry.get(view.preset, UNREGISTERED)
    return {
        "job_id": str(view.job_id),
        "status": view.state.lower(),
        "preset": view.preset,
        "metadata": orjson.Fragment(view.metadata),
        "priority": view.priority,
        "attempt": view.attempt,
        "max_attempts": view.max_attempts or pipeline.max_attempts,
        "timeout_seconds": view.timeout_seconds or _shortest(pipeline.timeout),
        "created_at": utc(view.created_at),
        "updated_at": utc(view.updated_at),
        "run_at": utc(view.run_at),
        "started_at": utc(view.started_at),
        "completed_at": utc(view.completed_at),
        "progress": progress(view),
        "error": view.error,
        "links": links(view.job_id),
    }


def progress(view: JobView) -> dict[str, Any] | None:
    return None if view.fraction is None else {"fraction": view.fraction, "message": view.message}


def transition(row: AuditRow) -> dict[str, Any]:
    return {
        "seq": row.seq,
        "from_status": row.from_state and row.from_state.lower(),
        "to_status": row.to_state.lower(),
        "timestamp": utc(row.timestamp),
        "attempt": row.attempt,
        "reason": row.reason,
        "metadata": row.metadata,
    }


def presets(registry: Registry) -> dict[str, Any]:
    return {
        "presets": [
            {
                "preset": each.preset,
                "description": each.description,
                "metadata_schema": each.metadata and _schema(each.metadata),
                "timeout_seconds": _shortest(each.timeout),
                "max_attempts": each.max_attempts,
            }
            for each in registry.values()
        ]
    }


@cache  # finite: the models of the registered presets
def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema()


def utc(moment: datetime | None) -> datetime | None:
    """orjson writes `Z` for UTC only, and the database's session may live elsewhere."""
    return moment and moment.astimezone(UTC)


def _shortest(seconds: float) -> float:
    return int(seconds) if seconds == int(seconds) else seconds
