"""/healthz and /readyz: does the process live, and can it do its work."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from aiohttp import web

import migrations
from engine.admin import Check, Checks, verdict
from engine.errors import OutriderError
from web.operations import Answer, Call, operation
from web.problems import RETRY_SECONDS
from web.render import reply
from web.shown import Health
from web.store import Store


@operation(
    "GET",
    "/healthz",
    summary="Does the process live",
    answers={200: Answer(description="Yes.", model=Health)},
)
async def alive(_call: Call) -> web.Response:
    return reply({"status": "ok", "checks": {}})


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
    good, said = await verdict(call.api.checks)
    body = {"status": "ok" if good else "unavailable", "checks": said}
    if good:
        return reply(body)
    return reply(body, status=HTTPStatus.SERVICE_UNAVAILABLE, headers={"Retry-After": RETRY_SECONDS})


def checks(store: Store, draining: asyncio.Event) -> Checks:
    """What readiness depends on: the database, its schema's version, and that we are not about to stop."""

    async def database() -> None:
        async with store.connection() as conn:
            await conn.execute("SELECT 1")

    async def schema() -> None:
        async with store.connection() as conn:
            await migrations.check(conn)

    async def not_draining() -> None:
        if draining.is_set():
            raise OutriderError("stopping")

    each: dict[str, Check] = {"database": database, "schema": schema, "draining": not_draining}
    return each
