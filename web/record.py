"""What is noted of a request beside what the client sent: for its answer's headers, its log line and its trace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from aiohttp import web

from engine.telemetry.spans import OFF, Span


@dataclass(slots=True)
class Record:
    """The middleware begins the record of each request; the handlers complete it.

    `traceparent` is the caller's, else that of the request's own span if spans are exported. `known` is set once the
    request's token is verified. `job_id` is the id of the job that the request has created.
    """

    request_id: str
    traceparent: str | None = None
    span: Span = OFF
    known: bool = False
    job_id: str | None = None


RECORD: Final = web.RequestKey("record", Record)
