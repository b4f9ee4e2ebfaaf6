"""The presets of this installation."""

from __future__ import annotations

from aiohttp import web

from web.auth.tokens import READ
from web.operations import Answer, Call, operation
from web.wire import responses
from web.wire.responses import reply


@operation(
    "GET",
    "/pipeline/presets",
    summary="List the presets",
    description="What can be run here, with the JSON schema of each preset's metadata.",
    tag="presets",
    scope=READ,
    answers={200: Answer(description="The presets of this installation.", model=responses.Presets)},
)
async def presets(call: Call) -> web.Response:
    return reply(responses.presets(call.api.registry))
