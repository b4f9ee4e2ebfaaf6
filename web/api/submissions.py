"""Accepts jobs: one job, or a batch that is accepted as a whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from aiohttp import web

from engine.errors import IdempotencyMismatch
from engine.moves.enqueue import Accepted, Submission
from engine.telemetry import tracing
from engine.telemetry.metrics import IDEMPOTENCY
from web.api.idempotency import IDEMPOTENCY_KEY, REPLAYED, answered
from web.auth.tokens import WRITE
from web.operations import MIB, Answer, Call, operation
from web.record import RECORD
from web.wire import idempotency, request_models, responses
from web.wire.responses import reply

FOLLOW: Final = ("job", "history", "events", "explained", "cancel", "retry")


@operation(
    "POST",
    "/pipeline/run",
    summary="Run one job",
    description="Accepts one job. The job is committed before the answer leaves.",
    tag="jobs",
    scope=WRITE,
    headers=(IDEMPOTENCY_KEY,),
    links=FOLLOW,
    answers={
        202: Answer(
            description="The job is accepted and stored durably.",
            model=responses.Accepted,
            headers={
                "Location": "The path of the job.",
                "Retry-After": "Seconds to wait before reading the job.",
                **REPLAYED,
            },
        )
    },
)
async def run(call: Call, body: request_models.JobToRun) -> web.Response:
    accepted, replayed = await _accepted(call, body, [body], "/pipeline/run")
    call.request[RECORD].job_id = job_id = str(accepted.job_ids[0])
    body_out = responses.accepted(job_id)
    headers = {"Location": body_out["links"]["self"], "Retry-After": "1", **replayed}
    return reply(body_out, status=HTTPStatus.ACCEPTED, headers=headers)


@operation(
    "POST",
    "/pipeline/batch",
    summary="Run up to 1000 jobs, all or none",
    description="Accepts all jobs or none, in one transaction.",
    tag="jobs",
    scope=WRITE,
    headers=(IDEMPOTENCY_KEY,),
    max_body=16 * MIB,
    answers={
        202: Answer(
            description="All jobs are accepted and stored durably. The ids are in the order of the request.",
            model=responses.AcceptedBatch,
            headers=REPLAYED,
        )
    },
)
async def batch(call: Call, body: request_models.Batch) -> web.Response:
    accepted, replayed = await _accepted(call, body, body.jobs, "/pipeline/batch")
    ids: responses.AcceptedBatch = {"job_ids": [str(job_id) for job_id in accepted.job_ids]}
    return reply(ids, status=HTTPStatus.ACCEPTED, headers=replayed)


async def _accepted(
    call: Call, body: request_models.Asked, wanted: list[request_models.JobToRun], route: str
) -> tuple[Accepted, Mapping[str, str]]:
    """The accepted jobs, and the headers that say whether an earlier request with the same key made them."""
    submission = await call.offload(_submission, call, body, wanted, route)
    try:
        with tracing.enqueue(len(wanted)):
            accepted = await call.api.store.submit(submission)
    except IdempotencyMismatch:
        IDEMPOTENCY.labels("mismatch").inc()
        raise
    return accepted, {} if submission.key is None else answered(replayed=accepted.replayed)


def _submission(
    call: Call, body: request_models.Asked, wanted: list[request_models.JobToRun], route: str
) -> Submission:
    """The jobs and the key of a request. Raises InvalidJob, or Refused for an invalid Idempotency-Key."""
    request_models.check(body, call.api.registry)
    owner = call.caller.owner
    key = idempotency.key_of(call.request, owner=owner, route=route, document=call.document)
    traceparent = call.request[RECORD].traceparent
    return Submission(tuple(each.new(owner=owner, traceparent=traceparent) for each in wanted), key)
