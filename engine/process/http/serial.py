"""aiohttp's loop over the requests of a connection, without a task for each request."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp.http import StreamWriter
from aiohttp.web_protocol import _PAYLOAD_ACCESS_ERROR, ERROR, RequestHandler, _ErrInfo


class SerialHandler(RequestHandler):
    """Answers one request after the other in the connection's own task.

    A task for each would cost a tenth of a submission. All that it would be for is a context of its own: what is set in
    a context variable during a request must be reset by whoever sets it. There is no access log, and no lingering.
    """

    __slots__ = ()

    async def start(self) -> None:
        try:
            while not self._force_close:
                if not self._messages:
                    await self._next()
                if not await self._serve(*self._messages.popleft()):
                    break
        except asyncio.CancelledError:
            self.force_close()
            raise
        if not self._force_close:
            self._task_handler = None
            if self.transport is not None:
                self.transport.close()

    async def _next(self) -> None:
        """Wait for the next request."""
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    async def _serve(self, message: Any, payload: Any) -> bool:
        """Answer one request. False if it was the last one."""
        if self._parser is not None:
            self._parser.message_consumed()
        if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
            self._resume_reading_if_drained()
        assert self._manager is not None
        self._manager.requests_count += 1
        handler: Any = self._request_handler
        if isinstance(message, _ErrInfo):
            handler, message = self._make_error_handler(message), ERROR
        task: Any = self._task_handler
        request: Any = self._request_factory(message, payload, self, StreamWriter(self, self._loop), task)  # type: ignore[misc] # set until the connection is lost
        try:
            response, gone = await self._handle_request(request, None, handler)
        except ConnectionError:
            return False
        except Exception as error:  # noqa: BLE001 - as aiohttp: the connection ends, the server goes on
            self.log_exception("Unhandled exception", exc_info=error)
            self.force_close()
            return False
        finally:
            # Otherwise request and task would be a cycle.
            request._task = None
        if gone:
            return False
        self._keepalive = bool(response.keep_alive)
        if not payload.is_eof():
            self.close()
        payload.set_exception(_PAYLOAD_ACCESS_ERROR)
        if not self._keepalive or self._close or self._force_close:
            return False
        self._await_next()
        return True

    def _await_next(self) -> None:
        """Bound how long the connection is kept open without a request."""
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        if self._keepalive_handle is None:
            self._keepalive_handle = self._loop.call_at(
                self._next_keepalive_close_time, self._process_keepalive
            )
