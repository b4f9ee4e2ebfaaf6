"""Parses and checks the parts of a request: body, query, job id, preferences."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Final, NamedTuple, TypeVar
from urllib.parse import parse_qsl
from uuid import UUID

from aiohttp import ClientConnectionResetError, web
from aiohttp.http_exceptions import HttpProcessingError
from pydantic import BaseModel, ValidationError

from engine.errors import InvalidJob, JobNotFound, Problem
from engine.text import MAX_DEPTH, UNSTORABLE, json_faults
from web.offload import Offload
from web.problems import Refused
from web.wire import inflate
from web.wire.inflate import too_large
from web.wire.request_models import faults

READ_SECONDS: Final = 10.0
"""How long a body may take to arrive. aiohttp itself would wait for ever."""
JSON: Final = "application/json"
MAX_WAIT_SECONDS: Final = 30

CANONICAL_ID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
VALUE: Final = r"[!#$%&'*+.^_`|~A-Za-z0-9-]++"
QUOTED: Final = r'"(?:[^"\\]|\\.)*+"'
PARAMETER: Final = re.compile(
    rf"[ \t]*+;[ \t]*+(?:([A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{{0,126}}+)=({VALUE}|{QUOTED}))?"
)
"""A parameter of a media type: a name as RFC 6838 §4.2 has it, without the star of RFC 8187; or nothing after a `;`."""
MEDIA: Final = re.compile(rf"application/json(?:{PARAMETER.pattern})*+[ \t]*", re.IGNORECASE)
ENTITY_TAG: Final = re.compile(r'(?:W/)?("[^"]*")')
WAIT: Final = re.compile(r'wait[ \t]*=[ \t]*("?)([0-9]+)\1[ \t]*(?:;.*)?', re.IGNORECASE)
NAMED_WAIT: Final = re.compile(r"wait[ \t]*(?:[=;]|$)", re.IGNORECASE)

Model = TypeVar("Model", bound=BaseModel)


class ListGrammar(NamedTuple):
    """A header that is a list with quotes, in which a comma is no separator (RFC 9110 §5.6.1)."""

    line: re.Pattern[str]
    element: re.Pattern[str]

    @classmethod
    def of(cls, quoted: str) -> ListGrammar:
        return cls(re.compile(f'(?:[^"]|{quoted})*+'), re.compile(f'(?:[^",]|{quoted})++'))


TEXT_LIST: Final = ListGrammar.of(r'"(?:[^"\\]|\\.)*+"')
"""Quoted strings have escapes (RFC 9110 §5.6.4)."""
TAG_LIST: Final = ListGrammar.of('"[^"]*+"')
"""In an entity tag a backslash is a character like others (RFC 9110 §8.8.3)."""


async def body(request: web.Request, limit: int, offload: Offload) -> bytes:
    """The inflated but not parsed body, of at most `limit` bytes. Raises Refused (400, 408, 413, 415), Overloaded."""
    _check_media(request)
    coding = inflate.coding(request.headers.getall("Content-Encoding", ()))
    raw = await _raw(request, limit)
    return raw if coding is None else await inflate.inflated(request, raw, coding, limit, offload)


async def _raw(request: web.Request, limit: int) -> bytes:
    content = request.content
    # The usual case: the body arrived with the head, and needs no timer.
    if content.is_eof():
        document = content.read_nowait(-1)
        if len(document) > limit:
            raise too_large(limit)
        return document
    if (request.content_length or 0) > limit:
        raise too_large(limit)
    try:
        async with asyncio.timeout(READ_SECONDS):
            await _ask_for_it(request)
            return await _collected(request, limit)
    except TimeoutError:
        raise Refused(
            HTTPStatus.REQUEST_TIMEOUT,
            f"The body did not arrive within {READ_SECONDS:g} s.",
            headers={"Connection": "close"},
        ) from None
    except OSError as error:
        raise ClientConnectionResetError("the client has left") from error
    except (HttpProcessingError, web.RequestPayloadError) as error:
        raise Refused(HTTPStatus.BAD_REQUEST, "The body is incomplete or wrongly encoded.") from error


async def _ask_for_it(request: web.Request) -> None:
    """Answer `Expect: 100-continue`, now that the body is wanted (RFC 9110 §10.1.1). Others are ignored."""
    if request.headers.get("Expect", "").lower() == "100-continue" and request.version >= (1, 1):
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # Otherwise aiohttp believes that the final status line is sent.
        request.writer.output_size = 0


async def _collected(request: web.Request, limit: int) -> bytes:
    document = bytearray()
    while chunk := await request.content.readany():
        document += chunk
        if len(document) > limit:
            raise too_large(limit)
    return bytes(document)


def _check_media(request: web.Request) -> None:
    given = request.headers.get("Content-Type", "")
    if given != JSON and not is_json(given):
        raise Refused(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "The body must be application/json in UTF-8.",
            headers={"Accept-Post": JSON},
        )


def is_json(media: str) -> bool:
    """Whether a Content-Type is JSON in UTF-8. What is not well-formed (RFC 9110 §8.3.1, RFC 6838 §4.3) is not."""
    if not MEDIA.fullmatch(media):
        return False
    charsets = (value for name, value in PARAMETER.findall(media) if name.lower() == "charset")
    return all(value.strip('"').lower() in ("utf-8", "utf8") for value in charsets)


def parsed(model: type[Model], document: bytes) -> Model:
    """The document as a `model`. Raises Refused (400) if it is not JSON, InvalidJob if it does not fit the model."""
    try:
        return model.model_validate_json(document)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        if found[0]["type"] == "json_invalid":
            raise _malformed(document) from error
        raise InvalidJob(faults(error)) from error


def _malformed(document: bytes) -> Exception:
    """The error for a document that pydantic cannot parse.

    A document that only Python's laxer parser accepts counts as JSON with unacceptable values: InvalidJob, not 400.
    """
    try:
        value = json.loads(document.decode())
    except UnicodeDecodeError:
        return Refused(HTTPStatus.BAD_REQUEST, "The body is not UTF-8.")
    except json.JSONDecodeError as error:
        return Refused(
            HTTPStatus.BAD_REQUEST,
            f"The body is not JSON: {error.msg} (line {error.lineno}, column {error.colno}).",
        )
    except RecursionError:
        return InvalidJob([Problem("", f"nested deeper than {MAX_DEPTH}")])
    except ValueError:
        return InvalidJob([Problem("", "a number has too many digits")])
    return InvalidJob(list(json_faults(value)) or [Problem("", "contains a value that cannot be stored")])


def query(request: web.Request, model: type[Model] | None) -> Model | None:
    """The query parameters as a `model`; None if the operation takes none. Raises Refused (400) or InvalidJob."""
    raw = request.rel_url.raw_query_string
    if not raw and model is None:
        return None
    given = _pairs(raw)
    known = model.model_fields if model is not None else {}
    if unknown := sorted(given.keys() - known.keys()):
        raise Refused(HTTPStatus.BAD_REQUEST, f"This operation has no query parameter {unknown[0][:64]!r}.")
    if model is None:
        return None
    try:
        return model.model_validate_strings(given)
    except ValidationError as error:
        raise InvalidJob(faults(error)) from error


def _pairs(raw: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(raw, keep_blank_values=True, errors="strict", max_num_fields=100)
    except ValueError as error:
        raise Refused(
            HTTPStatus.BAD_REQUEST, "The query string is not UTF-8 or has more than 100 parameters."
        ) from error
    given = dict(pairs)
    if len(given) < len(pairs):
        raise Refused(HTTPStatus.BAD_REQUEST, "A query parameter is repeated.")
    if any(UNSTORABLE.search(text) for pair in pairs for text in pair):
        raise Refused(HTTPStatus.BAD_REQUEST, "The query string is not UTF-8 or contains NUL.")
    return given


def job_id(request: web.Request) -> UUID:
    """The job id in the path. Raises JobNotFound if it is not a UUID."""
    text = request.match_info["job_id"]
    if not CANONICAL_ID.fullmatch(text):
        raise JobNotFound(text)
    return UUID(text)


def request_id(request: web.BaseRequest) -> str | None:
    """The X-Request-Id that the caller sent, if it is safe to repeat; else None."""
    given = request.headers.get("X-Request-Id", "")
    return given if REQUEST_ID.fullmatch(given) else None


def preferred_wait(request: web.Request) -> int | None:
    """Seconds of `Prefer: wait=N` (RFC 7240), at most 30. A preference that is not understood is ignored.

    Of several `wait` the first is meant, even if it is not understood (RFC 7240 §2).
    """
    for preference in _elements(request.headers.getall("Prefer", ()), TEXT_LIST):
        if NAMED_WAIT.match(preference):
            # Nine digits are more than enough, and Python refuses to convert thousands.
            wait = WAIT.fullmatch(preference)
            return min(int(wait[2].lstrip("0")[:9] or "0"), MAX_WAIT_SECONDS) if wait else None
    return None


def matches(request: web.Request, tag: str) -> bool:
    """Whether If-None-Match names `tag` (RFC 9110 §13.1.2: weak comparison)."""
    given = _elements(request.headers.getall("If-None-Match", ()), TAG_LIST)
    return given == ["*"] or any((found := ENTITY_TAG.fullmatch(each)) and found[1] == tag for each in given)


def _elements(lines: Iterable[str], grammar: ListGrammar) -> list[str]:
    """The elements of a header that is a list. A line with a quote that does not end is left out."""
    return [
        element
        for line in lines
        if grammar.line.fullmatch(line)
        for found in grammar.element.findall(line)
        if (element := found.strip(" \t"))
    ]
