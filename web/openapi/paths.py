"""The paths of the OpenAPI document: parameters, answers and refusals of each operation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Final

from pydantic import BaseModel

from engine.pipeline import Registry
from web.openapi.examples import body_examples
from web.openapi.shapes import REF, ForClients, Json, not_null, ref
from web.operations import Answer, Operation
from web.problems import CONTENT_TYPE, ProblemDetails

BEARER: Final = "bearer"
HEADERS: Final = {
    401: {"WWW-Authenticate": "How to authenticate."},
    403: {"WWW-Authenticate": "The missing scope."},
    415: {"Accept-Post": "The accepted media type.", "Accept-Encoding": "The accepted codings of a body."},
    503: {"Retry-After": "Seconds to wait before the next request."},
}
UNASKED: Final = frozenset({400, 408, 414, 431, 503})
"""The refusals of what never becomes a request: malformed, late, too long, or beyond the cap of connections."""
PROBLEM: Final[Json] = {CONTENT_TYPE: {"schema": ref(ProblemDetails.__name__)}}
JOB_ID: Final[Json] = {
    "name": "job_id",
    "in": "path",
    "required": True,
    "description": "The id that the submission's answer has given.",
    "schema": {"type": "string", "format": "uuid"},
}


def path_items(operations: Sequence[Operation], registry: Registry) -> dict[str, Json]:
    found: dict[str, Json] = {}
    for each in operations:
        found.setdefault(each.path, {})[each.method.lower()] = _operation(each, registry)
    return found


def _operation(each: Operation, registry: Registry) -> Json:
    answers = sorted((_refusals(each) | _answers(each)).items())
    found: Json = {
        "operationId": each.name,
        "summary": each.summary,
        "description": _description(each),
        "tags": [each.tag],
        # An HTTP scheme has no scopes in most tools: the description names the scope.
        "security": [] if each.scope is None else [{BEARER: []}],
        "parameters": _parameters(each),
        "responses": {str(status): answer for status, answer in answers},
    }
    if each.body is not None:
        content = {"schema": ref(each.body.__name__), "examples": body_examples(each.body, registry)}
        found["requestBody"] = {"required": True, "content": {"application/json": content}}
    return found


def _description(each: Operation) -> str:
    return each.description if each.scope is None else f"{each.description} Needs the scope `{each.scope}`."


def _parameters(each: Operation) -> list[Json]:
    headers = [
        {
            "name": header.name,
            "in": "header",
            "description": header.description,
            "schema": dict(header.schema),
        }
        for header in each.headers
    ]
    path = [JOB_ID] if "job_id" in each.parts else []
    return path + (_query(each.query) if each.query is not None else []) + headers


def _query(model: type[BaseModel]) -> list[Json]:
    schema = model.model_json_schema(ref_template=REF, schema_generator=ForClients)
    return [
        {"name": name, "in": "query", "description": found.pop("description", ""), "schema": not_null(found)}
        for name, found in schema["properties"].items()
    ]


def _answers(each: Operation) -> dict[int, Json]:
    found = {
        status: _answer(answer, each.links if status < HTTPStatus.MULTIPLE_CHOICES else ())
        for status, answer in each.answers.items()
    }
    for status in found.keys() & UNASKED:
        found[status]["content"] |= PROBLEM
    return found


def _answer(answer: Answer, links: Sequence[str]) -> Json:
    found: Json = {"description": answer.description, "headers": _headers(answer.headers)}
    if answer.model is not None:
        found["content"] = {answer.media: {"schema": ref(answer.model.__name__)}}
    elif answer.media != "application/json":
        # Not "string": some tools read the schema as that of one event of a stream.
        found["content"] = {answer.media: {"schema": {"description": "Text."}}}
    if links:
        found["links"] = {
            name: {"operationId": name, "parameters": {"job_id": "$response.body#/job_id"}} for name in links
        }
    return found


def _refusals(each: Operation) -> dict[int, Json]:
    statuses = {*UNASKED, *each.refuses}
    if each.scope is not None:
        statuses |= {401, 403}
    if "job_id" in each.parts:
        statuses |= {404}
    if each.query is not None:
        statuses |= {422}
    if each.body is not None:
        statuses |= {413, 415, 422}
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "headers": _headers(HEADERS.get(status, {})),
            "content": PROBLEM,
        }
        for status in statuses
    }


def _headers(described: Mapping[str, str]) -> Json:
    every = {"X-Request-Id": "The id that the caller sent, or a new id of this request.", **described}
    return {name: {"description": text, "schema": {"type": "string"}} for name, text in every.items()}
