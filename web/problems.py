"""Turns errors into HTTP answers, here and nowhere else: every refusal is `application/problem+json` (RFC 9457)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Final, NotRequired
from urllib.parse import quote

import orjson
import psycopg
from aiohttp import web
from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from engine.errors import (
    DatabaseUnavailable,
    IdempotencyMismatch,
    InvalidJob,
    JobNotFound,
    KeysUnavailable,
    OutriderError,
    Overloaded,
    Problem,
    StateConflict,
)
from engine.storage.faults import Blame, blame
from engine.text import MAX_PROBLEMS

CONTENT_TYPE: Final = "application/problem+json"
RETRY_SECONDS: Final = "1"
PATH: Final = "/%:@!$&'()*+,;=~"
"""What a path may hold beside letters, digits and `-._` (RFC 3986 §3.3)."""
STRAY_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
MAX_TEXT: Final = 300
"""Most characters of a pointer or detail: both may quote names of any length that the client has invented."""

closed = with_config(ConfigDict(extra="forbid"))


@closed
class Fault(TypedDict):
    pointer: str
    detail: str


@closed
class ProblemDetails(TypedDict):
    """Problem details (RFC 9457). `errors` is present if the status is 422."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    request_id: str
    errors: NotRequired[list[Fault]]


class Refused(OutriderError):
    """A refused request: HTTP `status`, a `detail` for people, and the headers that the status requires."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        errors: Sequence[Problem] = (),
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers or {}
        self.errors = errors


UNREACHABLE: Final = (HTTPStatus.SERVICE_UNAVAILABLE, "The database cannot be reached at present.")
FAILED: Final = (HTTPStatus.INTERNAL_SERVER_ERROR, "The server has failed to handle this request.")

STATUS: Final[Mapping[type[Exception], tuple[HTTPStatus, str]]] = {
    JobNotFound: (HTTPStatus.NOT_FOUND, "There is no such job."),
    InvalidJob: (HTTPStatus.UNPROCESSABLE_ENTITY, "The request is well-formed but invalid."),
    IdempotencyMismatch: (
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "This Idempotency-Key was used before, with another body.",
    ),
    KeysUnavailable: (
        HTTPStatus.SERVICE_UNAVAILABLE,
        "The token issuer's keys are not available at present.",
    ),
    DatabaseUnavailable: UNREACHABLE,
    Exception: FAILED,
}

STATUS_OF_SQL: Final[Mapping[Blame, tuple[HTTPStatus, str]]] = {
    Blame.SERVER: UNREACHABLE,
    # Input that passes the checks and that PostgreSQL refuses is still the client's fault.
    Blame.VALUE: (HTTPStatus.UNPROCESSABLE_ENTITY, "The request contains a value that cannot be stored."),
    Blame.CODE: FAILED,
}


def reference(target: str) -> str:
    """The raw path of a request as a URI reference (RFC 3986 §4.2), which a `//` at its start must not make a host."""
    # What came as bytes outside of UTF-8 is percent-encoded as it came.
    encoded = quote(STRAY_PERCENT.sub("%25", target).encode(errors="surrogateescape"), safe=PATH)
    return f"/.{encoded}" if encoded.startswith("//") else encoded


def refusal(error: Exception) -> Refused:
    """The refusal that answers `error`."""
    match error:
        case Refused():
            return error
        case web.HTTPException():
            return Refused(error.status, error.reason + ".")
        case StateConflict():
            return Refused(HTTPStatus.CONFLICT, f"{str(error).capitalize()}.")
        case Overloaded():
            status, detail = HTTPStatus.SERVICE_UNAVAILABLE, f"{str(error).capitalize()}. Try again shortly."
        case psycopg.Error():
            status, detail = STATUS_OF_SQL[blame(error)]
        case _:
            status, detail = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    errors: Sequence[Problem] = ()
    headers: Mapping[str, str] = {}
    if status == HTTPStatus.UNPROCESSABLE_ENTITY:
        errors = error.problems if isinstance(error, InvalidJob) else (Problem("", detail),)
    elif status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers = {"Retry-After": RETRY_SECONDS}
    return Refused(status, detail, headers=headers, errors=errors)


def render(refused: Refused, *, instance: str, request_id: str) -> web.Response:
    """The response. The body is bytes, because the media type has no charset."""
    body: ProblemDetails = {
        "type": "about:blank",
        "title": HTTPStatus(refused.status).phrase,
        "status": int(refused.status),
        "detail": refused.detail,
        "instance": instance,
        "request_id": request_id,
    }
    if refused.status == HTTPStatus.UNPROCESSABLE_ENTITY:
        body["errors"] = [
            {"pointer": _pointer(fault.pointer), "detail": fault.detail[:MAX_TEXT]}
            for fault in refused.errors[:MAX_PROBLEMS]
        ]
    return web.Response(
        status=refused.status,
        body=orjson.dumps(body),
        content_type=CONTENT_TYPE,
        headers=refused.headers,
    )


def _pointer(pointer: str) -> str:
    """`pointer`, or if it is too long the innermost enclosing place that fits."""
    return pointer if len(pointer) <= MAX_TEXT else pointer[: pointer.rfind("/", 0, MAX_TEXT)]
