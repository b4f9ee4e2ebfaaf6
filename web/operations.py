"""Declares the operations of the API: the routes, their checks and /openapi.json come from one declaration."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, ParamSpec, TypeVar, get_type_hints

from aiohttp import web
from pydantic import BaseModel

from engine.pipeline import Registry
from engine.process.admin import Checks
from engine.queries.jobs import JobView
from web.auth.tokens import ANYONE, Authenticator, Caller
from web.offload import LARGE_BYTES, Offload
from web.presence import gone
from web.record import RECORD
from web.store import Store
from web.watcher import Watch
from web.wire import parsing

MIB: Final = 1 << 20
PATIENCE_SECONDS: Final = 5.0
"""How often a request that waits for its job checks that its client is still connected."""

P = ParamSpec("P")
R = TypeVar("R")
Function = Callable[..., Awaitable[web.StreamResponse]]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """The dependencies of the handlers. `checks` decide readiness; `draining` is set when the process is to stop.

    `publish_results`: whether results that are written here are published to Pub/Sub. `cors_origins`: the origins
    whose pages may use the API (see web/cors.py).
    """

    registry: Registry
    auth: Authenticator
    store: Store
    checks: Checks
    draining: asyncio.Event
    publish_results: bool = False
    cors_origins: tuple[str, ...] = ()
    offload: Offload = field(default_factory=Offload)


@dataclass(slots=True)
class Call:
    """One authorized request. `document` is the request's body if the operation takes one."""

    request: web.Request
    api: Api
    caller: Caller
    document: bytes = b""

    async def offload(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call `work` on the document, in a thread if the document is large.

        Raises Overloaded, or ClientConnectionResetError if the client leaves before its turn.
        """
        size = len(self.document)
        if size <= LARGE_BYTES:
            return work(*args, **kwargs)
        return await self.api.offload.run(self.request, size, work, *args, **kwargs)

    async def changed(self, watch: Watch, view: JobView, seconds: float = math.inf) -> bool:
        """Wait until the job differs from `view`.

        False after `seconds`, at a stop, when the token expires, or when the client has left.
        """
        clock = asyncio.get_running_loop().time
        until = clock() + seconds
        while not watch.closed and not gone(self.request):
            if (left := min(until - clock(), self.caller.seconds_left)) <= 0:
                break
            if await watch.wait((view.version, view.progress_n), min(left, PATIENCE_SECONDS)):
                return True
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A request header that an operation reads."""

    name: str
    description: str
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "string"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A success. `model` is one of the types in web/wire/responses.py; `headers` maps names to descriptions."""

    description: str
    model: Any = None
    media: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """An operation of the API. `function(call, …)` gets those of `job_id`, `query` and `body` that it names."""

    method: str
    path: str
    function: Function
    summary: str
    description: str
    tag: str
    scope: str | None
    answers: Mapping[int, Answer]
    refuses: tuple[int, ...]
    headers: tuple[Header, ...]
    links: tuple[str, ...]
    max_body: int
    parts: Mapping[str, type[Any]]

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def query(self) -> type[BaseModel] | None:
        return self.parts.get("query")

    @property
    def body(self) -> type[BaseModel] | None:
        return self.parts.get("body")

    def bind(self, api: Api) -> Handler:
        """The aiohttp handler: authenticates, authorizes and checks the request, then calls `function`."""

        function, query_model, body_model = self.function, self.query, self.body
        takes_id = "job_id" in self.parts

        async def handle(request: web.Request) -> web.StreamResponse:
            caller = ANYONE
            if self.scope is not None:
                caller = await api.auth.caller(request.headers.getall("Authorization", ()))
                request[RECORD].known = True
                caller.require(self.scope)
            given: dict[str, Any] = {}
            if (query := parsing.query(request, query_model)) is not None:
                given["query"] = query
            if takes_id:
                given["job_id"] = parsing.job_id(request)
            if body_model is None:
                return await function(Call(request, api, caller), **given)
            call = Call(request, api, caller, await parsing.body(request, self.max_body, api.offload))
            body = await call.offload(parsing.parsed, body_model, call.document)
            return await function(call, body=body, **given)

        return handle


def operation(
    method: str,
    path: str,
    *,
    summary: str,
    description: str,
    tag: str,
    answers: Mapping[int, Answer],
    scope: str | None = None,
    refuses: tuple[int, ...] = (),
    headers: tuple[Header, ...] = (),
    links: tuple[str, ...] = (),
    max_body: int = MIB,
) -> Callable[[Function], Operation]:
    """Declare the decorated function as an operation.

    `description` is for people who call the operation; `tag` is one of web/openapi's. `refuses` are error statuses
    beyond those that the operation's parts imply. `links` name the operations that take the `job_id` of the answer.
    """

    def declare(function: Function) -> Operation:
        hints = get_type_hints(function)
        return Operation(
            method=method,
            path=path,
            function=function,
            summary=summary,
            description=description,
            tag=tag,
            scope=scope,
            answers=answers,
            refuses=refuses,
            headers=headers,
            links=links,
            max_body=max_body,
            parts={name: hints[name] for name in ("job_id", "query", "body") if name in hints},
        )

    return declare
