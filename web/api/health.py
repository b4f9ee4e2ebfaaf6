"""/healthz and /readyz: does the process live, and can it do its work."""

from __future__ import annotations

import asyncio

from aiohttp import web

from engine.process import admin
from web.operations import Answer, Call, operation
from web.wire.responses import Health


@operation(
    "GET",
    "/healthz",
    summary="Does the process live",
    answers={200: Answer(description="Yes.", model=Health)},
)
async def alive(_call: Call) -> web.Response:
    return await admin.health({})


@operation(
    "GET",
    "/readyz",
    summary="Can the process do its work",
    answers={
        200: Answer(description="Yes.", model=Health),
        503: Answer(
            description="No.", model=Health, headers={"Retry-After": "When to ask again, in seconds."}
        ),
    },
)
async def ready(call: Call) -> web.Response:
    return await admin.health(call.api.checks)


def checks(schema: admin.Check, draining: asyncio.Event) -> admin.Checks:
    """What readiness depends on: the database with its schema's version, and that we are not about to stop."""
    return {"schema": schema, "accepting": admin.accepting(draining)}
