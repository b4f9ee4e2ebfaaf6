"""The calls of the API: each is parse, call, render. Whose job it is, the SQL decides."""

from __future__ import annotations

import asyncio
from functools import cache
from http import HTTPStatus
from typing import Final
from uuid import UUID

from aiohttp import web
from prometheus_client import Counter

from engine import audit, jobs, metrics, moves
from engine.enqueue import Accepted, Submission
from engine.errors import IdempotencyMismatch, JobNotFound
from engine.explain import explain
from engine.jobs import JobView
from engine.model import JobState
from web import health, idempotency, paging, render, requests, schemas, streams
from web.auth import READ, WRITE
from web.operations import MIB, Answer, Call, Header, Operation, operation
from web.render import reply
from web.watcher import Watch

PATIENCE_SECONDS: Final = 5.0
"""How often a long poll looks whether its client is still there."""

IDEMPOTENCY_KEY: Final = Header(
    name=idempotency.HEADER,
    description="Same key and same body within 24 h: the first answer again. Quoted or bare.",
    schema={"type": "string", "pattern": idempotency.PATTERN},
)
IF_NONE_MATCH: Final = Header(name="If-None-Match", description="An ETag: 304 while the job is unchanged.")
PREFER: Final = Header(
    name="Prefer", description="`wait=N`: wait up to N (30 at most) seconds for a terminal status."
)
FOLLOW: Final = ("job", "history", "events", "explained", "cancel", "retry")
REPLAYED: Final = {"Idempotent-Replayed": "`true` where the answer is that of an earlier request."}


@operation(
    "POST",
    "/pipeline/run",
    summary="Run one job",
    scope=WRITE,
    headers=(IDEMPOTENCY_KEY,),
    links=FOLLOW,
    answers={
        202: Answer(
            description="Accepted: the job is durable.",
            model=schemas.Accepted,
            headers={"Location": "The job.", "Retry-After": "When to look, in seconds.", **REPLAYED},
        )
    },
)
async def run(call: Call, body: schemas.JobToRun) -> web.Response:
    accepted = await _accepted(call, [body], "/pipeline/run", batch=False)
    job_id = accepted.job_ids[0]
    links = render.links(job_id)
    headers = {"Location": links["self"], "Retry-After": "1"} | _replayed(accepted)
    return reply(
        {"job_id": str(job_id), "status": "pending", "links": links},
        status=HTTPStatus.ACCEPTED,
        headers=headers,
    )


@operation(
    "POST",
    "/pipeline/batch",
    summary="Run up to 1000 jobs, all or none",
    scope=WRITE,
    headers=(IDEMPOTENCY_KEY,),
    max_body=16 * MIB,
    answers={
        202: Answer(
            description="Accepted: ids in the order given.", model=schemas.AcceptedBatch, headers=REPLAYED
        )
    },
)
async def batch(call: Call, body: schemas.Batch) -> web.Response:
    accepted = await _accepted(call, body.jobs, "/pipeline/batch", batch=True)
    ids = [str(job_id) for job_id in accepted.job_ids]
    return reply({"job_ids": ids}, status=HTTPStatus.ACCEPTED, headers=_replayed(accepted))


@operation(
    "GET",
    "/pipeline/job/{job_id}",
    summary="One job",
    scope=READ,
    headers=(IF_NONE_MATCH, PREFER),
    answers={
        200: Answer(
            description="The job as it stands.",
            model=schemas.JobObject,
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
        view = await _settled(call, job_id, wait)
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
    answers={200: Answer(description="The audit trail, oldest first.", model=schemas.History)},
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
            description="A page.", model=schemas.JobsPage, headers={"Link": 'rel="next", where more follow.'}
        )
    },
)
async def list_jobs(call: Call, query: schemas.JobsQuery) -> web.Response:
    if query.owner is not None and not call.caller.admin:
        call.caller.require("jobs:admin")
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
    shown, more = found[: query.limit], len(found) > query.limit
    cursor = paging.cursor_after(shown[-1].job_id) if more else None
    link = paging.next_link(
        "/pipeline/jobs",
        {**query.model_dump(include={"limit", "status", "preset", "owner"}), "cursor": cursor},
    )
    body = {
        "jobs": [render.listed(view, call.api.registry) for view in shown],
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
        200: Answer(description="It is cancelled.", model=schemas.Standing),
        202: Answer(description="Its running attempt is being stopped.", model=schemas.Standing),
    },
)
async def cancel(call: Call, job_id: UUID) -> web.Response:
    async with call.api.store.connection() as conn:
        state = await moves.cancel(conn, job_id, call.caller.sees)
    status = HTTPStatus.OK if state.terminal else HTTPStatus.ACCEPTED
    return _standing(job_id, state, status)


@operation(
    "POST",
    "/pipeline/job/{job_id}/retry",
    summary="Run a failed or cancelled job again",
    scope=WRITE,
    refuses=(409,),
    answers={202: Answer(description="It is queued again.", model=schemas.Standing)},
)
async def retry(call: Call, job_id: UUID) -> web.Response:
    async with call.api.store.connection() as conn:
        await moves.redrive(conn, job_id, call.caller.sees)
    call.api.store.poke()
    return _standing(job_id, JobState.PENDING, HTTPStatus.ACCEPTED)


@operation(
    "GET",
    "/pipeline/job/{job_id}/explain",
    summary="Why the job is where it is",
    scope=READ,
    answers={200: Answer(description="A sentence, and the facts behind it.", model=schemas.ExplanationShown)},
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
    answers={200: Answer(description="The presets.", model=schemas.Presets)},
)
async def presets(call: Call) -> web.Response:
    return reply(render.presets(call.api.registry))


OPERATIONS: Final[tuple[Operation, ...]] = (
    run,
    batch,
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


async def _accepted(call: Call, wanted: list[schemas.JobToRun], route: str, *, batch: bool) -> Accepted:
    schemas.check(wanted, call.api.registry, batch=batch)
    owner = call.caller.owner
    key = idempotency.key_of(call.request, owner=owner, route=route, document=call.document)
    traceparent = requests.traceparent(call.request)
    new = tuple(each.new(owner=owner, traceparent=traceparent) for each in wanted)
    try:
        accepted = await call.api.store.submit(Submission(new, key))
    except IdempotencyMismatch:
        metrics.IDEMPOTENCY.labels("mismatch").inc()
        raise
    if key is not None:
        metrics.IDEMPOTENCY.labels("replayed" if accepted.replayed else "first").inc()
    if not accepted.replayed:
        for each in wanted:
            _enqueued(each.preset).inc()
    return accepted


@cache  # finite: an accepted job's preset is a registered one
def _enqueued(preset: str) -> Counter:
    return metrics.JOBS_ENQUEUED.labels(preset)


def _replayed(accepted: Accepted) -> dict[str, str]:
    return {"Idempotent-Replayed": "true"} if accepted.replayed else {}


def _standing(job_id: UUID, state: JobState, status: HTTPStatus) -> web.Response:
    body = {"job_id": str(job_id), "status": state.lower(), "links": render.links(job_id)}
    return reply(body, status=status)


async def _settled(call: Call, job_id: UUID, seconds: int) -> JobView:
    """The job once it is terminal, or as it stands after `seconds`."""
    clock = asyncio.get_running_loop().time
    until = clock() + seconds
    with call.api.store.watcher.watch(job_id) as watch:
        view = await call.api.store.read(job_id, call.caller.sees)
        while not view.state.terminal and (left := until - clock()) > 0 and _waited_for(call, watch):
            if await watch.wait((view.version, view.progress_n), min(left, PATIENCE_SECONDS)):
                view = await call.api.store.read(job_id, call.caller.sees)
    return view


def _waited_for(call: Call, watch: Watch) -> bool:
    # aiohttp does not cancel a handler whose client has gone: it has to look.
    transport = call.request.transport
    return not watch.closed and transport is not None and not transport.is_closing()
