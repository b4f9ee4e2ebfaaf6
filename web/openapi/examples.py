"""Examples of request bodies: one for each preset."""

from __future__ import annotations

from typing import Any, Final

import orjson
from pydantic import BaseModel

from engine.pipeline import Pipeline, Registry
from web.openapi.shapes import Json
from web.wire.request_models import Batch

CONTENT: Final = "The sun rises over the harbour. The first boats come home."
MAX_DEPTH: Final = 8


def body_examples(body: type[BaseModel], registry: Registry) -> dict[str, Json]:
    """Bodies that the API accepts, by preset. A preset whose metadata cannot be made up has none."""
    jobs = {each.preset: job for each in registry.values() if (job := _job(each)) is not None}
    return {
        preset: {
            "summary": f"A job of the preset {preset}",
            "value": {"jobs": [job]} if body is Batch else job,
        }
        for preset, job in jobs.items()
    }


def _job(each: Pipeline) -> Json | None:
    job = {"content": CONTENT, "preset": each.preset}
    if each.metadata is None:
        return job
    try:
        schema = each.metadata.model_json_schema()
        metadata = _value(schema, schema.get("$defs", {}), MAX_DEPTH)
        each.metadata.model_validate_json(orjson.dumps(metadata))
    except Exception:  # noqa: BLE001 - an author's model may ask for what a schema cannot tell, and raise anything
        return None
    return job | {"metadata": metadata} if metadata else job


def _value(schema: Json, definitions: Json, depth: int) -> Any:
    """A value of that schema: what the author gives, else as little as can be. None at the end of `depth`."""
    for given in (schema.get("examples"), schema.get("enum")):
        if given:
            return given[0]
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    if depth == 0:
        return None
    if "$ref" in schema:
        return _value(definitions[schema["$ref"].removeprefix("#/$defs/")], definitions, depth - 1)
    for key in ("anyOf", "oneOf", "allOf"):
        if alternatives := schema.get(key):
            return _value(alternatives[0], definitions, depth - 1)
    return _least(schema, definitions, depth)


def _least(schema: Json, definitions: Json, depth: int) -> Any:
    match schema.get("type"):
        case "object":
            members = schema.get("properties", {})
            return {
                name: _value(members[name], definitions, depth - 1) for name in schema.get("required", ())
            }
        case "array":
            return [_value(schema.get("items", {}), definitions, depth - 1)] * schema.get("minItems", 0)
        case "integer" | "number":
            return schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1)
        case "boolean":
            return False
        case "string":
            return "text".ljust(schema.get("minLength", 0), "x")[: schema.get("maxLength")]
    return None
