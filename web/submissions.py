"""Accepting jobs: one, or a batch that is accepted whole or not at all."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from aiohttp import web

from engine import metrics, tracing
from engine.enqueue import Accepted, Submission
from engine.errors import IdempotencyMismatch
from web import idempotency, render, requests, schemas, shown
from web.auth import WRITE
from web.operations import MIB, Answer, Call, Header, operation
from web.render import reply

IDEMPOTENCY_KEY: Final = Header(
    name=idempotency.HEADER,
    description="Same key and same body within 24 h: the first answer again. Quoted or bare.",
    schema={"type": "string", "pattern": idempotency.PATTERN},
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
            model=shown.Accepted,
            headers={"Location": "The job.", "Retry-After": "When to look, in seconds.", **REPLAYED},
        )
    },
)
async def run(call: Call, body: schemas.JobToRun) -> web.Response:
    accepted = await _accepted(call, body, [body], "/pipeline/run")
    call.request[requests.JOB] = job_id = str(accepted.job_ids[0])
    links = render.links(job_id)
    headers = {"Location": links["self"], "Retry-After": "1"} | _replayed(accepted)
    return reply(
        {"job_id": job_id, "status": "pending", "links": links},
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
            description="Accepted: ids in the order given.", model=shown.AcceptedBatch, headers=REPLAYED
        )
    },
)
async def batch(call: Call, body: schemas.Batch) -> web.Response:
    accepted = await _accepted(call, body, body.jobs, "/pipeline/batch")
    ids = [str(job_id) for job_id in accepted.job_ids]
    return reply({"job_ids": ids}, status=HTTPStatus.ACCEPTED, headers=_replayed(accepted))


async def _accepted(call: Call, body: schemas.Asked, wanted: list[schemas.JobToRun], route: str) -> Accepted:
    submission = await call.aside(_submission, call, body, wanted, route)
    key = submission.key
    try:
        with tracing.enqueue(len(wanted)):
            accepted = await call.api.store.submit(submission)
    except IdempotencyMismatch:
        metrics.IDEMPOTENCY.labels("mismatch").inc()
        raise
    if key is not None:
        metrics.IDEMPOTENCY.labels("replayed" if accepted.replayed else "first").inc()
    return accepted


def _submission(call: Call, body: schemas.Asked, wanted: list[schemas.JobToRun], route: str) -> Submission:
    """Raises InvalidJob, and Refused for a key that is none."""
    schemas.check(body, call.api.registry)
    owner = call.caller.owner
    key = idempotency.key_of(call.request, owner=owner, route=route, document=call.document)
    traceparent = requests.traceparent(call.request)
    return Submission(tuple(each.new(owner=owner, traceparent=traceparent) for each in wanted), key)


def _replayed(accepted: Accepted) -> dict[str, str]:
    return {"Idempotent-Replayed": "true"} if accepted.replayed else {}
