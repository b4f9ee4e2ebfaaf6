"""The listening socket: aiohttp's runner. Errors of aiohttp's own parser become problems, too."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

from engine.errors import ConfigurationError
from web import problems
from web.middleware import REQUEST_ID, new_request_id
from web.problems import Refused

KEEPALIVE_SECONDS: Final = 620.0
"""Longer than Google's load balancers keep connections (600 s): they would send into closing ones."""
MAX_HEADER_BYTES: Final = 16 * 1024
"""Room for the longest token, so that a longer one is refused as a token and not as a header."""
BACKLOG: Final = 1024


class _Response(web.Response):
    """A response without the Server header, for answers that send no signal."""

    async def _prepare_headers(self) -> None:
        await super()._prepare_headers()
        self.headers.popall("Server", None)


class _Protocol(RequestHandler):
    """Answers malformed HTTP, which never reaches a middleware. That is the client's fault: nothing is logged."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = HTTPStatus.INTERNAL_SERVER_ERROR,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - it quotes the input; the signature is aiohttp's
    ) -> web.StreamResponse:
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return super().handle_error(request, status, exc)
        request_id = new_request_id()
        rendered = problems.render(
            Refused(status, "This is not a well-formed HTTP request."), instance="", request_id=request_id
        )
        response = _Response(
            status=status,
            body=rendered.body,
            content_type=problems.CONTENT_TYPE,
            headers={REQUEST_ID: request_id},
        )
        response.force_close()
        return response

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Skip a body that proves broken while its rest is drained: the client already has its 400."""
        if not isinstance(kw.get("exc_info"), HttpProcessingError | web.RequestPayloadError):
            super().log_exception(*args, **kw)


class _Server(web.Server):
    def __call__(self) -> RequestHandler:
        return _Protocol(self, loop=self._loop, **self._kwargs)


class _Runner(web.AppRunner):
    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(made.request_handler, request_factory=made.request_factory, **made._kwargs)


@asynccontextmanager
async def serving(app: web.Application, host: str, port: int, *, drain_seconds: float) -> AsyncIterator[int]:
    """Serve `app` until the block ends; yields the port. Requests in flight have `drain_seconds` to end.

    Raises ConfigurationError if the server cannot listen on the address.
    """
    options: dict[str, Any] = {
        "access_log": None,
        "keepalive_timeout": KEEPALIVE_SECONDS,
        "max_field_size": MAX_HEADER_BYTES,
        "shutdown_timeout": drain_seconds,
    }
    runner = _Runner(app, **options)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port, backlog=BACKLOG).start()
        except OSError as error:
            raise ConfigurationError([f"cannot listen on {host}:{port}: {error.strerror}"]) from error
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
