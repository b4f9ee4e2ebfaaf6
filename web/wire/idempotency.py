"""The Idempotency-Key header (draft-ietf-httpapi-idempotency-key-header), quoted or bare."""

from __future__ import annotations

import hashlib
import re
from http import HTTPStatus
from typing import Final

import orjson
from aiohttp import web

from engine.errors import Problem
from engine.tables.idempotency import IdempotencyKey
from web.problems import Refused

HEADER: Final = "Idempotency-Key"
PATTERN: Final = r'^([!#-~]([ -~]{0,253}[!-~])?|"([ !#-\[\]-~]|\\["\\]){1,255}")$'
"""A bare key, or a quoted one (RFC 8941 §3.3.3): 1 to 255 printable ASCII characters."""
KEY: Final = re.compile(PATTERN)
ESCAPE: Final = re.compile(r'\\(["\\])')


def key_of(
    request: web.Request, *, owner: str, route: str, document: bytes = b"null"
) -> IdempotencyKey | None:
    """The key of a request with this body, or None without the header. Raises Refused (422).

    Two bodies are the same if they are equal as JSON, in whatever order of members. A member that is null and one that
    is left out are two bodies.
    """
    given = request.headers.getall(HEADER, ())
    if not given:
        return None
    if len(given) > 1 or not KEY.fullmatch(given[0]):
        detail = f"{HEADER} must be one value of 1 to 255 printable ASCII characters."
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, detail, errors=[Problem(f"/{HEADER}", detail)])
    key = ESCAPE.sub(r"\1", given[0][1:-1]) if given[0].startswith('"') else given[0]
    body = orjson.dumps(orjson.loads(document), option=orjson.OPT_SORT_KEYS)
    return IdempotencyKey(owner, route, key, hashlib.sha256(body).digest())
