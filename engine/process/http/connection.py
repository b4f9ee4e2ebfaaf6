"""One connection: the bounds on what a client can take before it is known.

They are on the time and the bytes of a request's head, on what is read of a body that nobody wants, and on what
the client leaves unread. aiohttp does the rest.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final

from aiohttp import HttpVersion10, HttpVersion11, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import ERROR, _ErrInfo

from engine.process.http import refusals
from engine.process.http.door import LINGER_SECONDS, Door, Visitor
from engine.process.http.serial import SerialHandler

SPOKEN: Final = (HttpVersion11, HttpVersion10)
DRAIN_BYTES: Final = 256 * 1024
DRAIN_SECONDS: Final = 2.0
"""What is read of an unwanted body so that the connection can serve another request."""
LINGER_BYTES: Final = 4 << 20
"""What is discarded after the last answer, for at most LINGER_SECONDS."""


class Connection(SerialHandler):
    """One connection. Malformed HTTP, which never reaches a middleware, is the client's fault: nothing is logged."""

    __slots__ = ("_body", "_broken", "_discarded", "_door", "_head_bytes", "_timer", "_visitor")

    def __init__(self, door: Door, visitor: Visitor, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._door = door
        self._visitor = visitor
        self._timer: asyncio.TimerHandle | None = None
        self._body: StreamReader = EMPTY_PAYLOAD
        self._broken = False
        self._head_bytes = 0
        self._discarded = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._visitor.connection = self
        self._timer = self._loop.call_at(self._visitor.head_due, self._head_late)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._cancel_timer()
        self._door.left(self._visitor)
        super().connection_lost(exc)

    @property
    def has_asked(self) -> bool:
        """Whether a request of this connection is being answered, or was."""
        return bool(self._request_count) and not self._messages

    def replace(self) -> None:
        """Close the connection for another one's sake."""
        self._abort()

    async def shutdown(self, timeout: float | None = None) -> None:
        """Let what is in flight end within `timeout` seconds, then close. aiohttp itself may wait twice as long."""
        try:
            async with asyncio.timeout(timeout):
                await super().shutdown(None)
        except TimeoutError:
            if self._task_handler is not None:
                self._task_handler.cancel()
            self._abort()

    def data_received(self, data: bytes) -> None:
        if self._force_close or self._broken:
            self._discard(len(data))
            return
        heads, in_body = self._request_count, not self._body.is_eof()
        super().data_received(data)
        if self._request_count != heads:
            self._refuse_other_versions(self._request_count - heads)
            self._head_arrived(data)
        elif data and not in_body:
            self._head_goes_on(len(data))

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Go on reading after a pause. aiohttp asks for it whenever a body is read, and would parse nothing again."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def _refuse_other_versions(self, arrived: int) -> None:
        """Take requests of versions that this server does not speak for malformed: the parser knows 0.9 and 2.0."""
        for place in range(-arrived, 0):
            message, _ = self._messages[place]
            if not isinstance(message, _ErrInfo) and message.version not in SPOKEN:
                fault = HttpProcessingError(message="not a version that is spoken here")
                self._messages[place] = (
                    _ErrInfo(HTTPStatus.BAD_REQUEST, fault, fault.message),
                    EMPTY_PAYLOAD,
                )

    def _head_arrived(self, data: bytes) -> None:
        self._door.open.busy(self._visitor)
        self._cancel_timer()
        self._head_bytes = 0
        if self._messages:
            message, self._body = self._messages[-1]
            # Behind what is not HTTP nothing can be understood.
            self._broken = isinstance(message, _ErrInfo)
        if self._body is EMPTY_PAYLOAD and data and not data.endswith(b"\r\n\r\n"):
            # The next head has begun.
            self._head_goes_on(1)

    def _head_goes_on(self, size: int) -> None:
        if not self._request_count:
            self._door.open.silent(self._visitor)
        self._head_bytes += size
        if self._timer is None:
            self._expect_head()
        if self._head_bytes <= refusals.MAX_HEAD_BYTES or self.transport is None:
            return
        if self._request_in_progress or self._messages:
            # The answer to the request before it is given up: nothing may be sent in its place.
            self.transport.abort()
        else:
            self._close_with(*refusals.LONG_HEAD)

    def _expect_head(self) -> None:
        self._timer = self._loop.call_later(self._door.limits.head_seconds, self._head_late)

    def _head_late(self) -> None:
        self._timer = None
        if self._request_in_progress or self._messages:
            # A head that was sent ahead waits for the answers before it.
            self._expect_head()
            return
        self._door.closed("late")
        if self._head_bytes:
            seconds = self._door.limits.head_seconds
            self._close_with(
                HTTPStatus.REQUEST_TIMEOUT, f"The request's head did not arrive within {seconds:g} s."
            )
        else:
            self.force_close()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send the answer. Then read a little of an unwanted body, or close the connection if much is left."""
        body = request._payload
        if not body.is_eof() and not resp.prepared and _much_is_left(request):
            resp.force_close()
        answered, gone = await super().finish_response(request, resp, start_time)
        if not gone and self.transport is not None:
            if resp.keep_alive and not body.is_eof():
                await _drained(body)
            if not body.is_eof() or request._message is ERROR:
                self._linger()
                _forget(body)
        if not self._messages:
            self._door.open.idle(self._visitor)
        return answered, gone

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = HTTPStatus.INTERNAL_SERVER_ERROR,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - it quotes the input; the signature is aiohttp's
    ) -> web.StreamResponse:
        if self.transport is None:
            raise ConnectionResetError("the client has left")
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return super().handle_error(request, status, exc)
        answer = self._door.refusal(*refusals.fault(exc))
        answer.force_close()
        return answer

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Skip a body that proves broken while its rest is drained: the client already has its answer."""
        if not isinstance(kw.get("exc_info"), HttpProcessingError | web.RequestPayloadError):
            super().log_exception(*args, **kw)

    def _close_with(self, status: int, detail: str) -> None:
        """Answer what is no request, and close."""
        assert self.transport is not None
        self.transport.write(refusals.raw(self._door.refusal(status, detail)))
        self._linger()

    def _abort(self) -> None:
        transport = self.transport
        self.force_close()
        if transport is not None:
            # A client that does not read what it was sent would keep the closing connection.
            transport.abort()

    def _linger(self) -> None:
        """Close in a way that lets the client read its answer: say that nothing follows, and discard what comes."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        # Nothing is parsed any more.
        self._force_close = True
        if self._waiter is not None:
            self._waiter.cancel()
        try:
            transport.write_eof()
        except OSError:
            # The client has closed its side meanwhile.
            transport.abort()
            return
        transport.resume_reading()
        self._cancel_timer()
        self._timer = self._loop.call_later(LINGER_SECONDS, transport.abort)
        self._door.open.idle(self._visitor)

    def _discard(self, size: int) -> None:
        self._discarded += size
        if self._discarded > LINGER_BYTES and self.transport is not None:
            self.transport.abort()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _much_is_left(request: web.BaseRequest) -> bool:
    """Whether what is left of the body may be more than is drained. A client that expects a 100 may never send it."""
    length = request.content_length
    return (
        length is None or length - request._payload.total_bytes > DRAIN_BYTES or "Expect" in request.headers
    )


def _forget(body: StreamReader) -> None:
    """Free what was read of the body. Garbage is collected rarely, and a closed connection is some."""
    # A body that has failed raises its error.
    with suppress(Exception):
        body.read_nowait(-1)


async def _drained(body: StreamReader) -> None:
    """Read up to DRAIN_BYTES of what is left, for at most DRAIN_SECONDS."""
    enough = body.total_bytes + DRAIN_BYTES
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while not body.is_eof() and body.total_bytes <= enough:
                await body.readany()
    except (TimeoutError, HttpProcessingError, web.RequestPayloadError, ConnectionError):
        # The rest comes too slowly, is broken or never comes: the connection is closed.
        pass
