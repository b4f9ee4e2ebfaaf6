"""The listening side of every HTTP server of ours: the API's and the admin servers'."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final, cast

from aiohttp import web

from engine.process.http import refusals
from engine.process.http.acceptor import Acceptor, bind
from engine.process.http.admission import Limits
from engine.process.http.connection import Connection
from engine.process.http.door import Door, Server, Visitor
from engine.process.http.refusals import Refusal

KEEPALIVE_SECONDS: Final = 620.0
"""Longer than Google's load balancers keep connections (600 s): they would send into closing ones."""


class _Server(web.Server):
    def __init__(self, made: web.Server) -> None:
        super().__init__(made.request_handler, request_factory=made.request_factory, **made._kwargs)

    def connection(self, door: Door, visitor: Visitor) -> Connection:
        return Connection(door, visitor, self, loop=self._loop, **self._kwargs)


class _Runner(web.AppRunner):
    def __init__(self, app: web.Application, drain_seconds: float) -> None:
        super().__init__(
            app,
            shutdown_timeout=drain_seconds,
            access_log=None,
            # An inflated body is read by whoever bounds it.
            auto_decompress=False,
            keepalive_timeout=KEEPALIVE_SECONDS,
            lingering_time=0.0,
            max_line_size=refusals.MAX_LINE_BYTES,
            max_field_size=refusals.MAX_FIELD_BYTES,
            max_headers=refusals.MAX_FIELDS,
        )

    async def _make_server(self) -> web.Server:
        return _Server(await super()._make_server())


@asynccontextmanager
async def listening(
    app: web.Application,
    host: str,
    port: int,
    *,
    server: Server,
    limits: Limits,
    drain_seconds: float,
    refusal: Refusal = refusals.plain,
    shared: Sequence[socket.socket] = (),
) -> AsyncIterator[int]:
    """Serve `app` until the block ends; yields the port. Requests in flight have `drain_seconds` to end.

    It listens on the address, or else on the sockets that it has `shared` with other processes.
    Raises OSError if the server cannot listen on the address.
    """
    runner = _Runner(app, drain_seconds)
    await runner.setup()
    made = cast("_Server", runner.server)
    try:
        door = Door(server, limits, refusal, lambda visitor: made.connection(door, visitor))
        sockets = list(shared) or await bind(host, port)
        acceptor = Acceptor(sockets, door.arrived, door.make_room, shared=bool(shared))
        try:
            yield acceptor.sockets[0].getsockname()[1]
        finally:
            acceptor.close()
            await door.hear_out()
            door.close()
    finally:
        await runner.cleanup()
