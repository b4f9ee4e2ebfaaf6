"""The middleware of every request: its trace, its id, its errors as problems, one log line, one observation."""

from __future__ import annotations

import random
import time
from functools import cache
from http import HTTPStatus
from typing import Final

import psycopg
import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware

from engine.telemetry import traceparent, tracing
from engine.telemetry.instruments import Histogram
from engine.telemetry.metrics import HTTP_IN_FLIGHT, HTTP_SECONDS
from engine.telemetry.spans import OFF, Span
from web import metrics, problems
from web.log_quota import LogQuota
from web.operations import Api, Handler
from web.presence import left
from web.problems import Refused
from web.record import RECORD, Record
from web.wire import parsing

REQUEST_ID: Final = "X-Request-Id"
CLIENT_LEFT: Final = 499
"""The status, which nobody receives, of a request whose client has left. It is nginx's, and no fault of ours."""
UNKNOWN_ROUTE: Final = "unknown"
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})


def boundary(api: Api) -> Middleware:
    """The middleware that begins the record of a request and turns errors into answers.

    aiohttp passes its parameters by name. A broken traceparent is ignored, as W3C Trace Context says.
    """
    # Bound once, because the lazy proxy binds again at each line.
    log = structlog.get_logger().bind()
    quota = LogQuota()

    @web.middleware
    async def surround(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.perf_counter()
        came = traceparent.accept(request.headers.getall("traceparent", ()))
        resource = request.match_info.route.resource
        record = request[RECORD] = Record(parsing.request_id(request) or new_request_id(), came)
        with _span(request, resource, came) as span:
            record.span = span
            record.traceparent = came or span.traceparent
            HTTP_IN_FLIGHT.inc()
            try:
                response = await handler(request)
            except Exception as error:  # noqa: BLE001 - only an answer may pass the boundary
                response = _refusing(request, error, quota)
            finally:
                HTTP_IN_FLIGHT.dec()
            _answered(span, response.status)
        if api.draining.is_set() and not response.prepared:
            response.force_close()
        seconds = time.perf_counter() - started
        observe = _histogram(resource, _method(request, response), response.status).traced
        observe(seconds, span.traceparent or record.traceparent)
        metrics.answered(_route(resource) or UNKNOWN_ROUTE, response.status)
        if record.known or quota.allows():
            made = {"job_id": record.job_id} if record.job_id is not None else {}
            log.info(
                "request.answered",
                status=response.status,
                ms=round(seconds * 1000, 2),
                **made,
                **_ids(request, record),
            )
        return response

    return surround


def _refusing(request: web.Request, error: Exception, quota: LogQuota) -> web.Response:
    """The answer to a failed request. The error is held by no frame of its traceback: that would keep the body."""
    if left(request, error):
        return web.Response(status=CLIENT_LEFT, reason="Client Closed Request")
    refused = problems.refusal(error)
    record = request[RECORD]
    _log_error(error, refused, request, record, quota)
    instance = problems.reference(request.rel_url.raw_path)
    return problems.render(refused, instance=instance, request_id=record.request_id)


def _log_error(
    error: Exception, refused: Refused, request: web.Request, record: Record, quota: LogQuota
) -> None:
    """Log an error that is not the client's fault, with the ids by which the client can name the request."""
    if error is refused:
        return
    if refused.status == HTTPStatus.SERVICE_UNAVAILABLE:
        if not record.known and not quota.allows():
            return
        structlog.get_logger().warning(
            "request.unserved", error=f"{type(error).__name__}: {error}", **_ids(request, record)
        )
    elif isinstance(error, psycopg.Error) or refused.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        structlog.get_logger().error("request.failed", exc_info=error, **_ids(request, record))


def _ids(request: web.Request, record: Record) -> dict[str, str]:
    """The fields that identify a request in the log."""
    named = {"method": request.method, "path": request.path, "request_id": record.request_id}
    if record.traceparent is not None:
        named |= traceparent.ids(record.traceparent, record.span)
    return named


def new_request_id() -> str:
    return f"{random.getrandbits(128):032x}"


async def finish_headers(request: web.Request, response: web.StreamResponse) -> None:
    """An on_response_prepare signal, because streams send their headers through it, too."""
    # aiohttp itself refuses some requests before the middleware, such as `OPTIONS *` with an unknown expectation.
    record = request.get(RECORD)
    response.headers[REQUEST_ID] = new_request_id() if record is None else record.request_id
    response.headers.popall("Server", None)


def _method(request: web.Request, response: web.StreamResponse) -> str:
    """The method as a label. Methods that a route lacks share one label, or a client could make hundreds of series."""
    allowed = response.status != HTTPStatus.METHOD_NOT_ALLOWED and request.method in METHODS
    return request.method if allowed else "_OTHER"


# The cache is finite: the routes, their methods and the statuses are.
@cache
def _histogram(resource: web.AbstractResource | None, method: str, status: int) -> Histogram:
    return HTTP_SECONDS.labels(_route(resource) or UNKNOWN_ROUTE, method, str(status))


def _route(resource: web.AbstractResource | None) -> str | None:
    return None if resource is None or "{path" in resource.canonical else resource.canonical


def _span(request: web.Request, resource: web.AbstractResource | None, came: str | None) -> Span:
    """The span of a request until its answer, by OpenTelemetry's conventions. `came` is the caller's traceparent."""
    if not tracing.enabled():
        return OFF
    method = request.method if request.method in METHODS else "HTTP"
    attributes = {
        "http.request.method": request.method if method == request.method else "_OTHER",
        "url.scheme": request.scheme,
        "url.path": request.path,
    }
    route = _route(resource)
    if route is None:
        return tracing.start(method, "server", attributes, came)
    return tracing.start(f"{method} {route}", "server", attributes | {"http.route": route}, came)


def _answered(span: Span, status: int) -> None:
    span.note("http.response.status_code", status)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        span.fail(str(status))
