"""Jobs over HTTP: each call is parse, call, render. Whose job it is, the SQL decides."""

from __future__ import annotations

import asyncio
from functools import partial
from http import HTTPStatus
from typing import Final
from uuid import UUID

from aiohttp import web

from engine import moves
from engine.errors import JobNotFound
from engine.model import JobState
from engine.queries import audit, jobs
from engine.queries.explain import explain
from engine.queries.jobs import JobView
from web import metrics
from web.auth.tokens import ADMIN, READ, WRITE
from web.operations import Answer, Call, Header, operation
from web.wire import paging, parsing, request_models, responses
from web.wire.responses import reply

IF_NONE_MATCH: Final = Header(name="If-None-Match", description="An ETag: 304 while the job is unchanged.")
PREFER: Final = Header(
    name="Prefer", description="`wait=N`: wait up to N (30 at most) seconds for a terminal status."
)


@operation(
    "GET",
    "/pipeline/job/{job_id}",
    summary="One job",
    scope=READ,
    headers=(IF_NONE_MATCH, PREFER),
    answers={
        200: Answer(
            description="The job as it stands.",
            model=responses.JobObject,
            headers={"ETag": "Changes with the job.", "Preference-Applied": "The wait that was granted."},
        ),
        304: Answer(description="Unchanged.", headers={"ETag": "The job's."}),
    },
)
async def job(call: Call, job_id: UUID) -> web.Response:
    wait = parsing.preferred_wait(call.request)
    if wait is None:
        view = await call.api.store.read(job_id, call.caller.sees)
        headers = {}
    else:
        view = await _terminal(call, job_id, wait)
        headers = {"Preference-Applied": f"wait={wait}"}
    headers["ETag"] = tag = f'"{view.version}.{view.progress_n}"'
    if parsing.matches(call.request, tag):
        return web.Response(status=HTTPStatus.NOT_MODIFIED, headers=headers)
    return reply(responses.job(view, call.api.registry), headers=headers)


@operation(
    "GET",
    "/pipeline/job/{job_id}/history",
    summary="How the job got where it is",
    scope=READ,
    answers={200: Answer(description="The audit trail, oldest first.", model=responses.History)},
)
async def history(call: Call, job_id: UUID) -> web.Response:
    async with call.api.store.connection() as conn:
        rows = await audit.history(conn, job_id, call.caller.sees)
    if rows is None:
        raise JobNotFound(job_id)
    body: responses.History = {"history": [responses.transition(row) for row in rows]}
    return reply(body)


@operation(
    "GET",
    "/pipeline/jobs",
    summary="The caller's jobs, newest first",
    scope=READ,
    answers={
        200: Answer(
            description="A page.",
            model=responses.JobsPage,
            headers={"Link": 'rel="next", where more follow.'},
        )
    },
)
async def list_jobs(call: Call, query: request_models.JobsQuery) -> web.Response:
    """A page costs an index range scan; with `preset`, that of all the owner's jobs in the status asked for."""
    if query.owner is not None:
        call.caller.require(ADMIN)
    async with call.api.store.connection() as conn:
        found = await jobs.page(
            conn,
            owner=query.owner or call.caller.owner,
            state=JobState[query.status.upper()] if query.status else None,
            preset=query.preset,
            before=paging.job_before(query.cursor) if query.cursor is not None else None,
            offset=query.offset,
            limit=query.limit + 1,
        )
    listed, more = found[: query.limit], len(found) > query.limit
    cursor = paging.cursor_after(listed[-1].job_id) if more else None
    link = paging.next_link(
        "/pipeline/jobs",
        {**query.model_dump(include={"limit", "status", "preset", "owner"}), "cursor": cursor},
    )
    body: responses.JobsPage = {
        "jobs": [responses.listed(view, call.api.registry) for view in listed],
        "next_cursor": cursor,
        "limit": query.limit,
        "offset": query.offset,
    }
    return reply(body, headers={"Link": link} if more else None)


@operation(
    "POST",
    "/pipeline/job/{job_id}/cancel",
    summary="Cancel the job",
    scope=WRITE,
    refuses=(409,),
    answers={
        200: Answer(description="It is cancelled.", model=responses.Standing),
        202: Answer(description="Its running attempt is being stopped.", model=responses.Standing),
    },
)
async def cancel(call: Call, job_id: UUID) -> web.Response:
    async with call.api.store.connection() as conn:
        state = await moves.cancel(
            conn,
            job_id,
            call.caller.sees,
            publish_results=call.api.publish_results,
            on_result=partial(metrics.cancelled, call.api.registry),
        )
    status = HTTPStatus.OK if state.terminal else HTTPStatus.ACCEPTED
    return reply(responses.standing(job_id, state), status=status)


@operation(
    "POST",
    "/pipeline/job/{job_id}/retry",
    summary="Run a failed or cancelled job again",
    scope=WRITE,
    refuses=(409,),
    answers={202: Answer(description="It is queued again.", model=responses.Standing)},
)
async def retry(call: Call, job_id: UUID) -> web.Response:
    async with call.api.store.connection() as conn:
        preset = await moves.redrive(conn, job_id, call.caller.sees)
    metrics.redriven(call.api.registry, preset)
    call.api.store.notify()
    return reply(responses.standing(job_id, JobState.PENDING), status=HTTPStatus.ACCEPTED)


@operation(
    "GET",
    "/pipeline/job/{job_id}/explain",
    summary="Why the job is where it is",
    scope=READ,
    answers={
        200: Answer(description="A sentence, and the facts behind it.", model=responses.ExplanationShown)
    },
)
async def explained(call: Call, job_id: UUID) -> web.Response:
    async with call.api.store.connection() as conn:
        found = await explain(conn, call.api.registry, job_id, call.caller.sees)
    return reply(responses.explanation(found))


async def _terminal(call: Call, job_id: UUID, seconds: int) -> JobView:
    """The job once it is terminal, or as it stands after `seconds`."""
    clock = asyncio.get_running_loop().time
    until = clock() + seconds
    with call.api.store.watcher.watch(job_id) as watch:
        view = await call.api.store.read(job_id, call.caller.sees)
        while not view.state.terminal and await call.changed(watch, view, until - clock()):
            view = await call.api.store.read(job_id, call.caller.sees)
    return view
