"""/healthz and /readyz: liveness and readiness of the web process."""

from __future__ import annotations

import asyncio

from aiohttp import web

from engine.process import admin
from web.operations import Answer, Call, operation
from web.wire.responses import Health


@operation(
    "GET",
    "/healthz",
    summary="Check liveness",
    description="Answers as soon as the process serves requests. The database is not asked.",
    tag="health",
    answers={200: Answer(description="The process is alive.", model=Health)},
)
async def alive(_call: Call) -> web.Response:
    return await admin.health({})


@operation(
    "GET",
    "/readyz",
    summary="Check readiness",
    description="Whether the process can serve requests: its needs are there, and it is not stopping.",
    tag="health",
    answers={
        200: Answer(description="The process can serve requests.", model=Health),
        503: Answer(
            description="The process cannot serve requests now: `checks` says why.",
            model=Health,
            headers={"Retry-After": "Seconds to wait before the next request."},
        ),
    },
)
async def ready(call: Call) -> web.Response:
    return await admin.health(call.api.checks)


def checks(needed: admin.Checks, draining: asyncio.Event) -> admin.Checks:
    """The readiness checks: what the process needs is there, and the process is not stopping."""
    return {**needed, "accepting": admin.accepting(draining)}
