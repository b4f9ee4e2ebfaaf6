"""The schemas of the OpenAPI document, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from engine.pipeline import Registry
from web.openapi.jobs import JOB, job_schemas
from web.openapi.names import Names
from web.openapi.shapes import REF, ForClients, Json
from web.operations import Operation
from web.problems import ProblemDetails

ASKED: Final[JsonSchemaMode] = "validation"
ANSWERED: Final[JsonSchemaMode] = "serialization"


def schemas(operations: Sequence[Operation], registry: Registry) -> Json:
    """The schemas of all that the operations take and answer."""
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
    _, generated = TypeAdapter.json_schemas(modes, ref_template=REF, schema_generator=ForClients)
    found: Json = generated["$defs"]
    return found | job_schemas(found[JOB], Names(found), registry)
