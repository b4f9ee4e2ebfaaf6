"""CORS (the Fetch standard, §3.2): the pages of which origins may call the API from a browser, and read its answers.

Credentials are never allowed: a page sends its token itself, and the API knows no cookies.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Final

from aiohttp import web

from web.openapi.paths import HEADERS as OF_REFUSALS
from web.operations import Handler, Operation

ANY: Final = "*"
OF_NO_REQUEST: Final = web.AppKey("of_no_request", dict[str, str])
"""The headers that an application adds to answers to what never becomes a request."""
MAX_AGE_SECONDS: Final = 7200
"""How long a browser remembers a preflight. Chromium allows no more."""
READ_OF_ALL: Final = frozenset({"X-Request-Id", "traceparent", "tracestate"})
SENT_WITH_BODY: Final = frozenset({"Content-Type", "Content-Encoding"})
ANSWERED_BY_ALL: Final = frozenset({"X-Request-Id", "Allow"})


class Cors:
    """The rules of one installation. Without `origins` no answer says anything of CORS."""

    def __init__(self, origins: Sequence[str], operations: Sequence[Operation]) -> None:
        self._origins = frozenset(origins)
        self._request_headers = _listed(_request_headers(operations))
        self._exposed = _listed(_exposed(operations))

    @property
    def on(self) -> bool:
        return bool(self._origins)

    async def finish_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """An on_response_prepare signal: every answer needs the headers, refusals and streams, too."""
        # For caches, also where the origin may not read the answer: the next one may.
        response.headers["Vary"] = ", ".join([*response.headers.getall("Vary", ()), "Origin"])
        response.headers.update(self._readable_by(self._allowed(request)))

    def of_no_request(self) -> dict[str, str]:
        """The headers of an answer to what never became a request, so that its origin is unknown.

        A page can read such an answer if one origin alone is allowed, or any.
        """
        if not self.on:
            return {}
        only = next(iter(self._origins)) if len(self._origins) == 1 else None
        return {"Vary": "Origin", **self._readable_by(ANY if ANY in self._origins else only)}

    def preflight(self, allow: str, refuse: Handler) -> Handler:
        """The handler of OPTIONS for a path with the methods `allow`. What is no preflight goes to `refuse`."""
        headers = {
            "Access-Control-Allow-Methods": allow,
            "Access-Control-Allow-Headers": self._request_headers,
            "Access-Control-Max-Age": str(MAX_AGE_SECONDS),
            "Vary": "Access-Control-Request-Method, Access-Control-Request-Headers",
        }

        async def handle(request: web.Request) -> web.StreamResponse:
            if "Access-Control-Request-Method" not in request.headers or self._allowed(request) is None:
                return await refuse(request)
            return web.Response(status=HTTPStatus.NO_CONTENT, headers=headers)

        return handle

    def _readable_by(self, origin: str | None) -> dict[str, str]:
        if origin is None:
            return {}
        return {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": self._exposed}

    def _allowed(self, request: web.Request) -> str | None:
        """The value of Access-Control-Allow-Origin; None if the request names no origin that is allowed."""
        given = request.headers.getall("Origin", ())
        if len(given) != 1:
            return None
        if ANY in self._origins:
            return ANY
        return given[0] if given[0] in self._origins else None


def _request_headers(operations: Iterable[Operation]) -> set[str]:
    """The headers that an operation reads and that a page may not send unasked."""
    names = set(READ_OF_ALL)
    for each in operations:
        names.update(header.name for header in each.headers)
        if each.scope is not None:
            names.add("Authorization")
        if each.body is not None:
            names |= SENT_WITH_BODY
    return names


def _exposed(operations: Iterable[Operation]) -> frozenset[str]:
    """The headers of answers that a page may read."""
    declared = [answer.headers for each in operations for answer in each.answers.values()]
    return ANSWERED_BY_ALL.union(*declared, *OF_REFUSALS.values())


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names, key=str.lower))
