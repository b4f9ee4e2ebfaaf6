"""What a server answers to what never becomes a request: the status, the sentence and the bytes."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong

MAX_LINE_BYTES: Final = 8190
MAX_FIELD_BYTES: Final = 16 * 1024
"""Room for the longest token, so that a longer one is refused as a token and not as a header.

The limit tells a long field from a long target, so the two must differ.
"""
MAX_FIELDS: Final = 128
MAX_HEAD_BYTES: Final = 256 * 1024
RETRY_SECONDS: Final = "1"

Refusal = Callable[[int, str], web.Response]
"""Makes the answer, of a status and a sentence."""

MALFORMED: Final = (HTTPStatus.BAD_REQUEST, "This is not a well-formed HTTP request.")
LONG_TARGET: Final = (
    HTTPStatus.REQUEST_URI_TOO_LONG,
    f"The request's URI is longer than {MAX_LINE_BYTES} bytes.",
)
LONG_FIELD: Final = (
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    f"A header field is longer than {MAX_FIELD_BYTES} bytes.",
)
MANY_FIELDS: Final = (
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    f"The request has more than {MAX_FIELDS} header fields.",
)
LONG_HEAD: Final = (
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    f"The request's head is longer than {MAX_HEAD_BYTES} bytes.",
)
NO_ROOM: Final = (HTTPStatus.SERVICE_UNAVAILABLE, "Too many connections are open. Try again shortly.")


def fault(error: BaseException | None) -> tuple[HTTPStatus, str]:
    """The status and the sentence for an error of aiohttp's parser, be it the one in C or the one in Python."""
    if isinstance(error, LineTooLong):
        return LONG_TARGET if error.args[1] == MAX_LINE_BYTES else LONG_FIELD
    if isinstance(error, HttpProcessingError) and error.message.startswith("Too many headers"):
        return MANY_FIELDS
    return MALFORMED


def plain(status: int, detail: str) -> web.Response:
    """The answer of a server that has no other form for its refusals."""
    return web.Response(status=status, text=f"{detail}\n")


def raw(answer: web.Response) -> bytes:
    """The bytes of an answer to a client that has not asked. The connection closes behind them."""
    body = answer.body if isinstance(answer.body, bytes) else b""
    fields = dict(answer.headers) | {"Content-Length": str(len(body)), "Connection": "close"}
    if answer.status == HTTPStatus.SERVICE_UNAVAILABLE:
        fields["Retry-After"] = RETRY_SECONDS
    lines = [f"HTTP/1.1 {answer.status} {answer.reason}", *(f"{name}: {fields[name]}" for name in fields)]
    return "\r\n".join([*lines, "", ""]).encode() + body
