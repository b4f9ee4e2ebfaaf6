"""Shapes of schemas that client generators turn into right types."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

from pydantic.json_schema import GenerateJsonSchema

Json = dict[str, Any]

REF: Final = "#/components/schemas/{model}"
NULL: Final[Json] = {"type": "null"}


class ForClients(GenerateJsonSchema):
    """Schemas without what generators and linters stumble over."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - pydantic's signature
        # Generators name types by title, and two types would share one.
        return False

    def tuple_schema(self, schema: Any) -> Json:
        # A tuple's length is bounded, so nothing more is allowed by this.
        return {"items": {}, **super().tuple_schema(schema)}


def ref(name: str) -> Json:
    return {"$ref": REF.format(model=name)}


def not_null(schema: Json) -> Json:
    """The schema without null among its alternatives, nor as its default."""
    found = {key: value for key, value in schema.items() if (key, value) != ("default", None)}
    if "anyOf" not in found:
        return found
    alternatives = [each for each in found.pop("anyOf") if each != NULL]
    return found | (alternatives[0] if len(alternatives) == 1 else {"anyOf": alternatives})


def nullable(schema: Json) -> Json:
    """The schema or null, with the description outside."""
    inner = not_null(schema)
    outer = {"description": inner.pop("description")} if "description" in inner else {}
    return outer | {"anyOf": [*([inner] if inner.keys() != {"anyOf"} else inner["anyOf"]), NULL]}


def without_defaults(schema: Json) -> Json:
    """The schema with the default of each member, at any depth, told in the member's description.

    A default is the server's and may change, but generators make members of it that a client must give or always sends.
    """
    found: Json = _walked(schema, _told)
    return found


def with_refs(schema: Any, renamed: dict[str, str]) -> Any:
    """The schema with its references renamed: those of `$ref`, and those of a discriminator's mapping."""
    if isinstance(schema, str):
        return renamed.get(schema, schema)
    return _mapped(schema, lambda each: with_refs(each, renamed))


def _walked(schema: Any, change: Callable[[Json], Json]) -> Any:
    """The schema with each of its members' schemas, at any depth, changed."""
    found = _mapped(schema, lambda each: _walked(each, change))
    if isinstance(found, dict) and isinstance(members := found.get("properties"), dict):
        found["properties"] = {
            name: change(member) if isinstance(member, dict) else member for name, member in members.items()
        }
    return found


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {key: change(each) for key, each in value.items()}
    if isinstance(value, list):
        return [change(each) for each in value]
    return value


def _told(member: Json) -> Json:
    if "default" not in member:
        return member
    found = {key: value for key, value in member.items() if key != "default"}
    if member["default"] is None:
        return found
    told = f"Default: {json.dumps(member['default'])}."
    description = str(found.get("description", "")).rstrip(". ")
    return found | {"description": f"{description}. {told}" if description else told}
