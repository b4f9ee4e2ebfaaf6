"""Jobs over HTTP: parse the request, call the engine, render the answer. The SQL checks the owner of a job."""

from __future__ import annotations

import asyncio
from functools import partial
from http import HTTPStatus
from typing import Final
from uuid import UUID

from aiohttp import web

from engine import moves
from engine.errors import InvalidJob, JobNotFound, Overloaded, Problem
from engine.model import JobState
from engine.queries import audit, jobs
from engine.queries.explain import explain
from engine.queries.jobs import JobView
from web import metrics
from web.api.idempotency import IDEMPOTENCY_KEY, REPLAYED, answered
from web.auth.tokens import ADMIN, READ, WRITE
from web.lists import ListTooLong
from web.operations import Answer, Call, Header, operation
from web.wire import idempotency, paging, parsing, request_models, responses
from web.wire.responses import reply

IF_NONE_MATCH: Final = Header(
    name="If-None-Match", description="An ETag of the job. The answer is 304 while the job is unchanged."
)
NEXT: Final = '`rel="next"`: the next page, if there is one.'
PREFER: Final = Header(
    name="Prefer",
    description="`wait=N` (RFC 7240): the answer waits up to N seconds, at most 30, for a terminal status.",
)


@operation(
    "GET",
    "/pipeline/job/{job_id}",
    summary="Read a job",
    description="A job of the caller's, with its result once completed. With `Prefer: wait=N` the answer "
    "waits for the job to end.",
    tag="jobs",
    scope=READ,
    headers=(IF_NONE_MATCH, PREFER),
    answers={
        200: Answer(
            description="The job in its current state.",
            model=responses.JobObject,
            headers={
                "ETag": "Changes whenever the job changes.",
                "Preference-Applied": "The wait that was applied, as `wait=N`.",
            },
        ),
        304: Answer(description="The job is unchanged.", headers={"ETag": "The job's current ETag."}),
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
    summary="Read a job's audit trail",
    description="Every change of the job's status: when, why, and in which attempt.",
    tag="jobs",
    scope=READ,
    answers={
        200: Answer(
            description="One page of the job's transitions, oldest first.",
            model=responses.History,
            headers={"Link": NEXT},
        )
    },
)
async def history(call: Call, job_id: UUID, query: request_models.HistoryQuery) -> web.Response:
    after = -1 if query.cursor is None else paging.seq_before(query.cursor)
    async with call.api.store.connection() as conn:
        rows = await audit.history(conn, job_id, call.caller.sees, after=after, limit=query.limit + 1)
    if rows is None:
        raise JobNotFound(job_id)
    shown, more = rows[: query.limit], len(rows) > query.limit
    cursor = paging.cursor_after_seq(shown[-1].seq) if more else None
    body: responses.History = {
        "history": [responses.transition(row) for row in shown],
        "next_cursor": cursor,
    }
    link = paging.next_link(responses.links(job_id)["history"], {"limit": query.limit, "cursor": cursor})
    return reply(body, headers={"Link": link} if more else None)


@operation(
    "GET",
    "/pipeline/jobs",
    summary="List the caller's jobs, newest first",
    description="Pages by `cursor` are stable while jobs are added. The list leaves out `content` and "
    "`result`.",
    tag="jobs",
    scope=READ,
    answers={
        200: Answer(
            description="One page of jobs.",
            model=responses.JobsPage,
            headers={"Link": NEXT},
        )
    },
)
async def list_jobs(call: Call, query: request_models.JobsQuery) -> web.Response:
    """A page costs an index range scan. With `preset` the scan may cover all of the owner's jobs.

    A list that reads for too long is refused. An owner's lists wait for one another, and nobody else waits for them.
    """
    if query.owner is not None:
        call.caller.require(ADMIN)
    try:
        async with call.api.store.lists.connection(call.caller.owner) as conn:
            found = await jobs.page(
                conn,
                owner=query.owner or call.caller.owner,
                state=JobState[query.status.upper()] if query.status else None,
                preset=query.preset,
                before=paging.job_before(query.cursor) if query.cursor is not None else None,
                offset=query.offset,
                limit=query.limit + 1,
            )
    except ListTooLong as error:
        raise _too_long(query) from error
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
    summary="Cancel a job",
    description="A waiting job is cancelled at once. A running attempt is told to stop. A repeated call "
    "changes nothing.",
    tag="jobs",
    scope=WRITE,
    refuses=(409,),
    answers={
        200: Answer(description="The job is cancelled.", model=responses.Standing),
        202: Answer(description="The job's running attempt is being stopped.", model=responses.Standing),
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
    description="The job gets a new budget of errors. Its audit trail goes on.",
    tag="jobs",
    scope=WRITE,
    headers=(IDEMPOTENCY_KEY,),
    refuses=(409, 422),
    answers={
        202: Answer(description="The job is pending again.", model=responses.Standing, headers=REPLAYED)
    },
)
async def retry(call: Call, job_id: UUID) -> web.Response:
    """With a key, a repeated request is answered as the first was, whatever has become of the job meanwhile."""
    route = f"/pipeline/job/{job_id}/retry"
    key = idempotency.key_of(call.request, owner=call.caller.owner, route=route)
    async with call.api.store.connection() as conn:
        preset = await moves.redrive(conn, job_id, call.caller.sees, key)
    if preset is not None:
        metrics.redriven(call.api.registry, preset)
        call.api.store.notify({preset})
    headers = {} if key is None else answered(replayed=preset is None)
    return reply(responses.standing(job_id, JobState.PENDING), status=HTTPStatus.ACCEPTED, headers=headers)


@operation(
    "GET",
    "/pipeline/job/{job_id}/explain",
    summary="Explain a job's state",
    description="Why the job is where it is, and what it waits for.",
    tag="jobs",
    scope=READ,
    answers={
        200: Answer(description="A summary, and the facts behind it.", model=responses.ExplanationShown)
    },
)
async def explained(call: Call, job_id: UUID) -> web.Response:
    async with call.api.store.connection() as conn:
        found = await explain(conn, call.api.registry, job_id, call.caller.sees)
    return reply(responses.explanation(found))


def _too_long(query: request_models.JobsQuery) -> Exception:
    """Without a preset every list is served by an index, so the database is at fault, not the list."""
    if query.preset is None:
        return Overloaded("the database is too busy for a list")
    ways = "a later `cursor`" if query.status else "a `status` or a later `cursor`"
    fault = (
        f"too many jobs without this preset would be read: narrow the list by {ways}, or leave the preset out"
    )
    return InvalidJob([Problem("/preset", fault)])


async def _terminal(call: Call, job_id: UUID, seconds: int) -> JobView:
    """The job once its state is terminal, or the job's state after `seconds`."""
    clock = asyncio.get_running_loop().time
    until = clock() + seconds
    with call.api.store.watcher.watch(job_id) as watch:
        view = await call.api.store.read(job_id, call.caller.sees)
        while not view.state.terminal and await call.changed(watch, view, until - clock()):
            view = await call.api.store.read(job_id, call.caller.sees)
    return view
