"""Whether the client of a request is still there. aiohttp does not cancel the handler of one that leaves."""

from __future__ import annotations

from aiohttp import ClientConnectionResetError, web

from engine.errors import Overloaded


def gone(request: web.BaseRequest) -> bool:
    transport = request.transport
    return transport is None or transport.is_closing()


def require_client(request: web.BaseRequest) -> None:
    """Raise ClientConnectionResetError, as writing to the client would, if the client has left."""
    if gone(request):
        raise ClientConnectionResetError("the client has left")


def left(request: web.BaseRequest, error: Exception) -> bool:
    """Whether `error` only says that the client has left, or turns away a client that has left.

    A fault of ours stays one, such as a lost database.
    """
    return isinstance(error, ClientConnectionResetError | Overloaded) and gone(request)
