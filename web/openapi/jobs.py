"""The schemas of a job to run: one variant per preset, told apart by `preset`."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from engine.pipeline import Pipeline, Registry
from web.openapi.names import Names
from web.openapi.shapes import NULL, REF, ForClients, Json, nullable, ref, with_refs, without_defaults
from web.wire.request_models import JobToRun

JOB: Final = JobToRun.__name__
ONE_TIME: Final[Json] = {
    "if": {"properties": {"run_at": {"type": "string"}}, "required": ["run_at"]},
    "then": {"properties": {"delay_seconds": NULL}},
}
"""Of the two times one at most is given: null is absent. Generators make a type of `not`, but none of `if`."""


def job_schemas(job: Json, taken: Names, registry: Registry) -> dict[str, Json]:
    """JobToRun for the presets of `registry`, and the schemas that it refers to. `job` is the schema of the model."""
    base = _base(job)
    found: dict[str, Json] = {}
    variants: dict[str, Json] = {}
    for each in registry.values():
        name = taken.new(each.preset, "Job")
        metadata, optional = base["properties"]["metadata"], True
        if each.metadata is not None:
            root, definitions = _definitions(each.metadata, name, taken)
            found |= definitions
            optional = not definitions[root].get("required")
            described = ref(root) | {"description": metadata["description"]}
            metadata = nullable(described) if optional else described
        found[name] = _variant(each, base, metadata, optional=optional) | {"title": name}
        variants[each.preset] = ref(name)
    if not variants:
        return {JOB: base}
    mapping = {preset: variant["$ref"] for preset, variant in variants.items()}
    found[JOB] = {
        "description": base["description"],
        "oneOf": list(variants.values()),
        "discriminator": {"propertyName": "preset", "mapping": mapping},
    }
    return found


def _base(job: Json) -> Json:
    """A job of any preset."""
    told = without_defaults(job)
    members = {
        name: schema if name in told["required"] else nullable(schema)
        for name, schema in told["properties"].items()
    }
    return told | {"properties": members, **ONE_TIME}


def _variant(each: Pipeline, base: Json, metadata: Json, *, optional: bool) -> Json:
    preset = {
        "type": "string",
        "const": each.preset,
        "description": "Tells the jobs of different presets apart.",
    }
    return base | {
        "description": each.description or base["description"],
        "properties": base["properties"] | {"preset": preset, "metadata": metadata},
        "required": base["required"] if optional else [*base["required"], "metadata"],
    }


def _definitions(model: type[BaseModel], job: str, taken: Names) -> tuple[str, dict[str, Json]]:
    """The name of the metadata's schema, and the schema and all that it refers to by name."""
    asked: tuple[str, JsonSchemaMode, TypeAdapter[Any]] = (JOB, "validation", TypeAdapter(model))
    roots, generated = TypeAdapter.json_schemas([asked], schema_generator=ForClients)
    [root] = roots.values()
    own = {f"#/$defs/{name}": name for name in generated["$defs"]}
    names = {at: taken.new(job, "Metadata" if at == root["$ref"] else name) for at, name in own.items()}
    renamed = {at: REF.format(model=name) for at, name in names.items()}
    found = {}
    for at, name in own.items():
        schema = with_refs(without_defaults(generated["$defs"][name]), renamed)
        found[names[at]] = schema | {"title": names[at]}
    return names[root["$ref"]], found
