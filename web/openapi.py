"""The OpenAPI 3.1 document of a list of operations, for the presets of one installation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from engine import version
from engine.pipeline import Pipeline, Registry
from web.operations import Answer, Operation
from web.problems import CONTENT_TYPE, ProblemDetails
from web.wire import request_models

Json = dict[str, Any]

ASKED: Final[JsonSchemaMode] = "validation"
ANSWERED: Final[JsonSchemaMode] = "serialization"
REF: Final = "#/components/schemas/{model}"
BEARER: Final = "bearer"
HEADERS: Final = {
    401: {"WWW-Authenticate": "How to authenticate."},
    403: {"WWW-Authenticate": "The missing scope."},
    415: {"Accept-Post": "The accepted media type."},
    503: {"Retry-After": "Seconds to wait before the next request."},
}
JOB_ID: Final[Json] = {
    "name": "job_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "format": "uuid"},
}


def document(operations: Sequence[Operation], registry: Registry) -> Json:
    """The whole document. JobToRun has one variant per preset, with that preset's metadata schema."""
    paths: dict[str, Json] = {}
    for each in operations:
        paths.setdefault(each.path, {})[each.method.lower()] = _operation(each)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Outrider",
            "version": version.installed(),
            "description": "Jobs in, results out: a transactional-outbox job engine.",
        },
        "paths": paths,
        "components": {
            "schemas": _schemas(operations, registry),
            "securitySchemes": {BEARER: {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


def _operation(each: Operation) -> Json:
    found: Json = {
        "operationId": each.name,
        "summary": each.summary,
        "parameters": _parameters(each),
        "responses": {
            str(status): answer for status, answer in sorted((_answers(each) | _refusals(each)).items())
        },
    }
    if each.scope is not None:
        found["security"] = [{BEARER: [each.scope]}]
    if each.body is not None:
        found["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _ref(each.body)}},
        }
    return found


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
    return [
        {
            "name": name,
            "in": "query",
            "description": schema.pop("description", ""),
            "schema": _present(schema),
        }
        for name, schema in model.model_json_schema()["properties"].items()
    ]


def _present(schema: Json) -> Json:
    """The schema without null: an optional parameter is left out, and never null."""
    alternatives = [each for each in schema.get("anyOf", ()) if each.get("type") != "null"]
    return alternatives[0] if alternatives else schema


def _answers(each: Operation) -> dict[int, Json]:
    return {
        status: _answer(answer, each.links if status < HTTPStatus.MULTIPLE_CHOICES else ())
        for status, answer in each.answers.items()
    }


def _answer(answer: Answer, links: Sequence[str]) -> Json:
    found: Json = {"description": answer.description, "headers": _headers(answer.headers)}
    if answer.model is not None:
        found["content"] = {answer.media: {"schema": _ref(answer.model)}}
    elif answer.media != "application/json":
        found["content"] = {answer.media: {}}
    if links:
        found["links"] = {
            name: {"operationId": name, "parameters": {"job_id": "$response.body#/job_id"}} for name in links
        }
    return found


def _refusals(each: Operation) -> dict[int, Json]:
    statuses = {400, *each.refuses}
    if each.scope is not None:
        statuses |= {401, 403, 503}
    if "job_id" in each.parts:
        statuses |= {404}
    if each.query is not None:
        statuses |= {422}
    if each.body is not None:
        statuses |= {408, 413, 415, 422}
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "headers": _headers(HEADERS.get(status, {})),
            "content": {CONTENT_TYPE: {"schema": _ref(ProblemDetails)}},
        }
        for status in statuses - each.answers.keys()
    }


def _headers(described: Mapping[str, str]) -> Json:
    every = {"X-Request-Id": "The id that the caller sent, or a new id of this request.", **described}
    return {name: {"description": text, "schema": {"type": "string"}} for name, text in every.items()}


def _schemas(operations: Sequence[Operation], registry: Registry) -> Json:
    asked: list[Any] = [each.body for each in operations if each.body is not None]
    answered: list[Any] = [ProblemDetails]
    answered += [
        answer.model for each in operations for answer in each.answers.values() if answer.model is not None
    ]
    modes: list[tuple[str, JsonSchemaMode, TypeAdapter[Any]]] = [
        (model.__name__, mode, TypeAdapter(model))
        for models, mode in ((asked, ASKED), (answered, ANSWERED))
        for model in models
    ]
    _, generated = TypeAdapter.json_schemas(modes, ref_template=REF)
    found: Json = generated["$defs"]
    base = found[request_models.JobToRun.__name__]
    variants = {f"JobToRun.{each.preset}": each for each in registry.values()}
    for name, each in variants.items():
        found[name], definitions = _variant(base, name, each)
        found |= definitions
    if variants:
        found[request_models.JobToRun.__name__] = {
            "title": "JobToRun",
            "anyOf": [{"$ref": REF.format(model=name)} for name in variants],
        }
    return found


def _variant(base: Json, name: str, each: Pipeline) -> tuple[Json, Json]:
    """The schema of a job with this preset, and the definitions that its metadata refers to."""
    metadata = base["properties"]["metadata"]
    definitions: Json = {}
    required = base["required"]
    if each.metadata is not None:
        described = {"description": metadata["description"]}
        metadata = described | each.metadata.model_json_schema(
            ref_template=REF.format(model=f"{name}.{{model}}")
        )
        definitions = {f"{name}.{key}": value for key, value in metadata.pop("$defs", {}).items()}
        if metadata.get("required"):
            required = [*required, "metadata"]
    properties = base["properties"] | {"preset": {"const": each.preset}, "metadata": metadata}
    return {
        **base,
        "title": name,
        "description": each.description,
        "properties": properties,
        "required": required,
        "not": {"required": ["run_at", "delay_seconds"]},
    }, definitions


def _ref(model: Any) -> Json:
    return {"$ref": REF.format(model=model.__name__)}
