"""The API's listening socket. What never becomes a request is refused by a problem, too."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial

from aiohttp import web

from engine.errors import ConfigurationError
from engine.process.http.acceptor import bind
from engine.process.http.admission import Limits
from engine.process.http.listener import listening
from web import problems
from web.cors import OF_NO_REQUEST
from web.middleware import REQUEST_ID, new_request_id
from web.problems import Refused


class _Response(web.Response):
    """A response without the Server header, for answers that send no signal."""

    async def _prepare_headers(self) -> None:
        await super()._prepare_headers()
        self.headers.popall("Server", None)


def _refusal(more: Mapping[str, str], status: int, detail: str) -> web.Response:
    request_id = new_request_id()
    rendered = problems.render(Refused(status, detail), instance="", request_id=request_id)
    return _Response(
        status=status,
        body=rendered.body,
        content_type=problems.CONTENT_TYPE,
        headers={REQUEST_ID: request_id, **more},
    )


async def listeners(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen on the address, for processes that share them. Raises ConfigurationError."""
    with _told(host, port):
        return await bind(host, port)


@asynccontextmanager
async def serving(
    app: web.Application,
    host: str,
    port: int,
    *,
    drain_seconds: float,
    limits: Limits | None = None,
    shared: Sequence[socket.socket] = (),
) -> AsyncIterator[int]:
    """Serve `app` until the block ends; yields the port. Requests in flight have `drain_seconds` to end.

    The server listens on the address, or else on the sockets that it has `shared` with other processes. Raises
    ConfigurationError if it cannot listen on the address.
    """
    more = app[OF_NO_REQUEST]
    async with AsyncExitStack() as stack:
        listener = listening(
            app,
            host,
            port,
            server="api",
            limits=limits or Limits(),
            drain_seconds=drain_seconds,
            refusal=partial(_refusal, more),
            shared=shared,
        )
        with _told(host, port):
            bound = await stack.enter_async_context(listener)
        yield bound


@contextmanager
def _told(host: str, port: int) -> Iterator[None]:
    """Raise ConfigurationError for an address that cannot be listened on."""
    try:
        yield
    except OSError as error:
        raise ConfigurationError([f"cannot listen on {host}:{port}: {error.strerror}"]) from error
