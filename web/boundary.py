"""What surrounds every request: its trace, its id, its errors as problems, one log line, one observation."""

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

from engine import metrics, tracing
from engine.instruments import Histogram
from web import counters, problems, requests
from web.operations import Api, Handler
from web.problems import Refused

REQUEST_ID: Final = "X-Request-Id"
KEPT: Final = web.RequestKey("request_id", str)
SPAN: Final = web.RequestKey("span", tracing.Span)
UNKNOWN_ROUTE: Final = "unknown"


@web.middleware
async def traced(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A middleware around the boundary. A context that is broken is ignored, as the standard says."""
    came = tracing.accept(request.headers.getall("traceparent", ()))
    with tracing.request(request, _route(request.match_info.route.resource), came) as span:
        request[SPAN] = span
        if context := came or span.traceparent:
            request[requests.CONTEXT] = context
        response = await handler(request)
        tracing.answered(span, response.status)
        return response


def boundary(api: Api) -> Middleware:
    """The middleware that answers. aiohttp calls its parameters by name."""
    log = structlog.get_logger().bind()  # now, for the lazy proxy binds anew at each line

    @web.middleware
    async def surround(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.perf_counter()
        request[KEPT] = request_id = requests.request_id(request) or new_request_id()
        metrics.HTTP_IN_FLIGHT.inc()
        try:
            response = await handler(request)
        except Exception as error:  # noqa: BLE001 - the boundary: nothing may pass it but an answer
            refused = problems.refusal(error)
            _tell(error, refused, request)
            response = problems.render(refused, instance=request.path, request_id=request_id)
        finally:
            metrics.HTTP_IN_FLIGHT.dec()
        if api.draining.is_set() and not response.prepared:
            response.force_close()
        seconds = time.perf_counter() - started
        resource = request.match_info.route.resource
        context = request[SPAN].traceparent or requests.traceparent(request)
        _histogram(resource, _method(request, response), response.status).traced(seconds, context)
        counters.answered(_route(resource) or UNKNOWN_ROUTE, response.status)
        made = {"job_id": request[requests.JOB]} if requests.JOB in request else {}
        log.info(
            "request.answered", status=response.status, ms=round(seconds * 1000, 2), **made, **_ids(request)
        )
        return response

    return surround


def _tell(error: Exception, refused: Refused, request: web.Request) -> None:
    """Log what is not the client's fault, with everything by which the client can name it."""
    if error is refused:
        return
    if refused.status == HTTPStatus.SERVICE_UNAVAILABLE:
        structlog.get_logger().warning(
            "request.unserved", error=f"{type(error).__name__}: {error}", **_ids(request)
        )
    elif isinstance(error, psycopg.Error) or refused.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        structlog.get_logger().error("request.failed", exc_info=error, **_ids(request))


def _ids(request: web.Request) -> dict[str, str]:
    """What tells a request from all others in the log."""
    context = request[SPAN].traceparent or requests.traceparent(request)
    return {
        "method": request.method,
        "path": request.path,
        "request_id": request[KEPT],
    } | tracing.ids(context, request[SPAN])


def new_request_id() -> str:
    return f"{random.getrandbits(128):032x}"


async def finish_headers(request: web.Request, response: web.StreamResponse) -> None:
    """An on_response_prepare signal: streams too send their headers through it."""
    response.headers[REQUEST_ID] = request.get(KEPT) or new_request_id()
    response.headers.popall("Server", None)


def _method(request: web.Request, response: web.StreamResponse) -> str:
    """As a label: methods that a route does not have are one, or whoever tries them all makes hundreds of series."""
    allowed = response.status != HTTPStatus.METHOD_NOT_ALLOWED and request.method in tracing.METHODS
    return request.method if allowed else "_OTHER"


@cache  # finite: the routes, their methods, the statuses
def _histogram(resource: web.AbstractResource | None, method: str, status: int) -> Histogram:
    return metrics.HTTP_SECONDS.labels(_route(resource) or UNKNOWN_ROUTE, method, str(status))


def _route(resource: web.AbstractResource | None) -> str | None:
    return None if resource is None or "{path" in resource.canonical else resource.canonical
