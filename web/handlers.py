"""The calls of the API: each is parse, call, render. Whose job it is, the SQL decides."""

from __future__ import annotations

import asyncio
from functools import partial
from http import HTTPStatus
from typing import Final
from uuid import UUID

from aiohttp import web

from engine import audit, jobs, moves
from engine.errors import JobNotFound
from engine.explain import explain
from engine.jobs import JobView
from engine.model import JobState
from web import counters, health, paging, render, requests, schemas, shown, streams, submissions
from web.auth import ADMIN, READ, WRITE
from web.operations import Answer, Call, Header, Operation, operation
from web.render import reply

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
            model=shown.JobObject,
            headers={"ETag": "Changes with the job.", "Preference-Applied": "The wait that was granted."},
        ),
        304: Answer(description="Unchanged.", headers={"ETag": "The job's."}),
    },
)
async def job(call: Call, job_id: UUID) -> web.Response:
    wait = requests.preferred_wait(call.request)
    if wait is None:
        view = await call.api.store.read(job_id, call.caller.sees)
        headers = {}
    else:
        view = await _terminal(call, job_id, wait)
        headers = {"Preference-Applied": f"wait={wait}"}
    headers["ETag"] = tag = f'"{view.version}.{view.progress_n}"'
    if requests.matches(call.request, tag):
        return web.Response(status=HTTPStatus.NOT_MODIFIED, headers=headers)
    return reply(render.job(view, call.api.registry), headers=headers)


@operation(
    "GET",
    "/pipeline/job/{job_id}/history",
    summary="How the job got where it is",
    scope=READ,
    answers={200: Answer(description="The audit trail, oldest first.", model=shown.History)},
)
async def history(call: Call, job_id: UUID) -> web.Response:
    async with call.api.store.connection() as conn:
        rows = await audit.history(conn, job_id, call.caller.sees)
    if rows is None:
        raise JobNotFound(job_id)
    return reply({"history": [render.transition(row) for row in rows]})


@operation(
    "GET",
    "/pipeline/job/{job_id}/events",
    summary="The audit trail and progress as they happen",
    scope=READ,
    headers=(Header(name="Last-Event-ID", description="The last `id` seen: resume after it."),),
    answers={
        200: Answer(description="Server-Sent Events `status` and `progress`.", media="text/event-stream"),
        204: Answer(description="Nothing more will come: the terminal event was seen."),
    },
)
async def events(call: Call, job_id: UUID) -> web.StreamResponse:
    return await streams.events(call, job_id)


@operation(
    "GET",
    "/pipeline/jobs",
    summary="The caller's jobs, newest first",
    scope=READ,
    answers={
        200: Answer(
            description="A page.", model=shown.JobsPage, headers={"Link": 'rel="next", where more follow.'}
        )
    },
)
async def list_jobs(call: Call, query: schemas.JobsQuery) -> web.Response:
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
    body = {
        "jobs": [render.listed(view, call.api.registry) for view in listed],
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
        200: Answer(description="It is cancelled.", model=shown.Standing),
        202: Answer(description="Its running attempt is being stopped.", model=shown.Standing),
    },
)
async def cancel(call: Call, job_id: UUID) -> web.Response:
    async with call.api.store.connection() as conn:
        state = await moves.cancel(
            conn,
            job_id,
            call.caller.sees,
            announce=call.api.announce,
            on_result=partial(counters.cancelled, call.api.registry),
        )
    status = HTTPStatus.OK if state.terminal else HTTPStatus.ACCEPTED
    return _standing(job_id, state, status)


@operation(
    "POST",
    "/pipeline/job/{job_id}/retry",
    summary="Run a failed or cancelled job again",
    scope=WRITE,
    refuses=(409,),
    answers={202: Answer(description="It is queued again.", model=shown.Standing)},
)
async def retry(call: Call, job_id: UUID) -> web.Response:
    async with call.api.store.connection() as conn:
        preset = await moves.redrive(conn, job_id, call.caller.sees)
    counters.redriven(call.api.registry, preset)
    call.api.store.poke()
    return _standing(job_id, JobState.PENDING, HTTPStatus.ACCEPTED)


@operation(
    "GET",
    "/pipeline/job/{job_id}/explain",
    summary="Why the job is where it is",
    scope=READ,
    answers={200: Answer(description="A sentence, and the facts behind it.", model=shown.ExplanationShown)},
)
async def explained(call: Call, job_id: UUID) -> web.Response:
    async with call.api.store.connection() as conn:
        found = await explain(conn, call.api.registry, job_id, call.caller.sees)
    return reply(
        {
            "status": found.status.lower(),
            "summary": found.summary,
            "facts": [{"code": fact.code, "detail": fact.detail} for fact in found.facts],
            "estimate_seconds": found.estimate_seconds,
        }
    )


@operation(
    "GET",
    "/pipeline/presets",
    summary="What can be run",
    scope=READ,
    answers={200: Answer(description="The presets.", model=shown.Presets)},
)
async def presets(call: Call) -> web.Response:
    return reply(render.presets(call.api.registry))


OPERATIONS: Final[tuple[Operation, ...]] = (
    submissions.run,
    submissions.batch,
    list_jobs,
    job,
    history,
    events,
    cancel,
    retry,
    explained,
    presets,
    health.alive,
    health.ready,
)


def _standing(job_id: UUID, state: JobState, status: HTTPStatus) -> web.Response:
    body = {"job_id": str(job_id), "status": state.lower(), "links": render.links(job_id)}
    return reply(body, status=status)


async def _terminal(call: Call, job_id: UUID, seconds: int) -> JobView:
    """The job once it is terminal, or as it stands after `seconds`."""
    clock = asyncio.get_running_loop().time
    until = clock() + seconds
    with call.api.store.watcher.watch(job_id) as watch:
        view = await call.api.store.read(job_id, call.caller.sees)
        while not view.state.terminal and await call.changed(watch, view, until - clock()):
            view = await call.api.store.read(job_id, call.caller.sees)
    return view
