"""A job's audit trail and progress as Server-Sent Events."""

from __future__ import annotations

import random
from http import HTTPStatus
from typing import Any, Final
from uuid import UUID

import orjson
import structlog
from aiohttp import HttpVersion11, web
from aiohttp_sse import EventSourceResponse

from engine.queries import audit
from engine.queries.audit import AuditRow
from engine.queries.jobs import JobView
from engine.telemetry.metrics import SSE_CONNECTIONS
from web.auth.tokens import READ
from web.operations import Answer, Call, Header, operation
from web.presence import require_client
from web.watcher import Watch
from web.wire import responses

log = structlog.get_logger()

PING_SECONDS: Final = 15.0
RETRY_MILLISECONDS: Final = (1000, 3000)
"""When a client reconnects: not all of them at the same moment."""
PAGE: Final = 200
"""Transitions read at once. A stream keeps a page in memory for as long as its client takes to read it."""


@operation(
    "GET",
    "/pipeline/job/{job_id}/events",
    summary="Stream a job's transitions and progress",
    description="The audit trail and the progress as they happen, until the job ends. A client that "
    "reconnects with `Last-Event-ID` misses nothing.",
    tag="jobs",
    scope=READ,
    headers=(
        Header(
            name="Last-Event-ID", description="The last `id` received: the stream resumes after that event."
        ),
    ),
    answers={
        200: Answer(description="Server-Sent Events `status` and `progress`.", media="text/event-stream"),
        204: Answer(description="The stream is over: the client has received the terminal event."),
    },
)
async def events(call: Call, job_id: UUID) -> web.StreamResponse:
    """Send every transition after Last-Event-ID, and the latest progress, until the job is terminal.

    A stream ends with its token. The client reconnects with a new one, and resumes.
    """
    with call.api.store.watcher.watch(job_id) as watch:
        view = await call.api.store.read(job_id, call.caller.sees)
        # An id above the job's version is another job's or invented. Later events must be sent all the same.
        seen = min(_last_event_id(call.request), view.version)
        if view.state.terminal and view.version == seen:
            return web.Response(status=HTTPStatus.NO_CONTENT)
        response = EventSourceResponse(ping_interval=PING_SECONDS)
        if call.request.version < HttpVersion11:
            # Without chunks only the end of the connection ends the stream.
            response.headers["Connection"] = "close"
            response.force_close()
        if call.request.method == "HEAD":
            return web.Response(headers=response.headers)
        require_client(call.request)
        await response.prepare(call.request)
        async with response:
            with SSE_CONNECTIONS.track_inprogress():
                await _Stream(call, watch, response, seen).run(view)
        return response


class _Stream:
    """One open stream. The status line has been sent, so an error can only end the stream; the client reconnects."""

    def __init__(self, call: Call, watch: Watch, response: EventSourceResponse, seen: int) -> None:
        self._call = call
        self._watch = watch
        self._response = response
        self._seen = seen
        self._progress: responses.Progress | None = None

    async def run(self, view: JobView) -> None:
        try:
            pause = random.randint(*RETRY_MILLISECONDS)  # noqa: S311 - no secret depends on it
            await self._response.write(b"retry: %d\r\n\r\n" % pause)
            while not await self._send_news(view):
                if not await self._call.changed(self._watch, view):
                    return
                view = await self._call.api.store.read(view.job_id, self._call.caller.sees)
        except (ConnectionError, TimeoutError):
            pass  # the client has gone, or no longer reads
        except Exception as error:
            # Any other error, too, would write a second response into this one.
            log.warning("stream.broken", exc_info=error)

    async def _send_news(self, view: JobView) -> bool:
        """Send new transitions and progress. True once the job is terminal and every transition is sent."""
        ended = view.state.terminal
        while view.version > self._seen and self._call.caller.seconds_left > 0:
            if not (rows := await self._page(view)):
                break
            for row in rows:
                await self._send("status", responses.transition(row), id=str(row.seq))
                self._seen = row.seq
                ended = row.to_state.terminal
        progress = responses.progress(view)
        if progress is not None and progress != self._progress and not ended:
            await self._send("progress", progress)
        self._progress = progress
        return ended

    async def _page(self, view: JobView) -> list[AuditRow] | None:
        """The next transitions to send. The connection is given back before the client has read any of them."""
        async with self._call.api.store.connection() as conn:
            return await audit.history(
                conn, view.job_id, self._call.caller.sees, after=self._seen, limit=PAGE
            )

    async def _send(self, event: str, body: Any, id: str | None = None) -> None:  # noqa: A002 - the field's name
        await self._response.send(orjson.dumps(body, option=orjson.OPT_UTC_Z).decode(), id=id, event=event)


def _last_event_id(request: web.Request) -> int:
    """The `seq` after which to resume; -1, before the first, without a valid id."""
    given = request.headers.get("Last-Event-ID", "")
    return int(given) if given.isascii() and given.isdigit() and len(given) < 10 else -1
