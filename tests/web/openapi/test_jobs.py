"""A job to run as clients are generated from it: one type per preset."""

from __future__ import annotations

import json
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from engine.pipeline import Metadata, Pipeline, Registry
from tests.support.web_harness import JOB, REGISTRY, served
from tests.web.openapi.odd_metadata import Odd, Zoo
from web.api import OPERATIONS
from web.openapi import document

TYPED = {"content": "x", "preset": "typed", "metadata": {"format": "plain"}}


def described(*presets: str, metadata: type[Metadata] | None = None) -> Any:
    registry = Registry([Pipeline(preset=each, function=print, metadata=metadata) for each in presets])
    return document(OPERATIONS, registry)


def schemas(spec: Any) -> Any:
    return spec["components"]["schemas"]


def fits(value: Any, spec: Any, name: str = "JobToRun") -> bool:
    schema = {"$ref": f"#/components/schemas/{name}", "components": spec["components"]}
    return bool(jsonschema.Draft202012Validator(schema).is_valid(value))


SPEC = document(OPERATIONS, REGISTRY)


def test_a_job_fits_the_schema_of_its_preset_alone() -> None:
    assert fits(JOB, SPEC)
    assert fits(TYPED, SPEC)
    for wrong in (
        {"content": "x", "preset": "nobody"},
        {"content": "x", "preset": "typed"},
        TYPED | {"metadata": {"format": "pdf"}},
        TYPED | {"metadata": None},
        JOB | {"colour": "red"},
        JOB | {"content": ""},
        JOB | {"content": None},
        JOB | {"preset": None},
    ):
        assert not fits(wrong, SPEC), wrong


def test_null_is_absent_for_every_optional_member() -> None:
    members = schemas(SPEC)["EchoJob"]
    optional = members["properties"].keys() - members["required"]
    assert optional == {"metadata", "priority", "run_at", "delay_seconds", "max_attempts", "timeout_seconds"}
    assert fits(JOB | dict.fromkeys(optional), SPEC)
    for each in optional:
        assert fits(JOB | {each: None}, SPEC), each
    assert fits(JOB | {"run_at": "2030-01-01T00:00:00Z", "delay_seconds": None}, SPEC)
    assert fits(JOB | {"run_at": None, "delay_seconds": 1}, SPEC)
    assert not fits(JOB | {"run_at": "2030-01-01T00:00:00Z", "delay_seconds": 1}, SPEC)


def test_no_member_of_a_request_has_a_default_that_a_client_would_take_for_its_own() -> None:
    spec = described("zoo", metadata=Zoo)
    asked = [name for name in schemas(spec) if name.startswith("Zoo") or name in ("JobToRun", "Batch")]
    assert len(asked) == 6
    for name in asked:
        members = schemas(spec)[name].get("properties", {})
        assert not [each for each in members.values() if "default" in each], name
    assert schemas(spec)["ZooJobMetadata"]["properties"]["weight"]["description"] == "in kg. Default: 1.5."


def test_preset_tells_the_variants_apart() -> None:
    job = schemas(SPEC)["JobToRun"]
    assert job["oneOf"] == [{"$ref": f"#/components/schemas/{name}"} for name in ("EchoJob", "TypedJob")]
    assert job["discriminator"] == {
        "propertyName": "preset",
        "mapping": {
            "echo": "#/components/schemas/EchoJob",
            "typed": "#/components/schemas/TypedJob",
        },
    }
    for name, preset in (("EchoJob", "echo"), ("TypedJob", "typed")):
        found = schemas(SPEC)[name]["properties"]["preset"]
        assert (found["type"], found["const"]) == ("string", preset)


def test_an_installation_without_presets_describes_a_job_of_any_preset() -> None:
    spec = described()
    OpenAPIV31SpecValidator(spec).validate()
    assert fits(JOB, spec)
    assert fits({"jobs": [JOB]}, spec, "Batch")


@pytest.mark.parametrize(
    "presets",
    [
        ("a-b", "a_b", "a.b", "ab", "a", "a-b2"),
        ("3d", "3-d", "preset3d"),
        ("listed", "x", "x-job"),
        ("zoo", "zoo.job", "zoo-job-metadata", "zoojobmetadata"),
        ("a" * 63, "a" * 62 + "-"),
    ],
)
def test_each_preset_has_a_type_whose_name_differs_in_more_than_case(presets: tuple[str, ...]) -> None:
    spec = described(*presets, metadata=Zoo)
    OpenAPIV31SpecValidator(spec).validate()
    names = list(schemas(spec))
    assert len({name.lower() for name in names}) == len(names)
    assert all(name.isalnum() and name[0].isupper() for name in names)
    good = {"content": "x", "metadata": {"pet": {"kind": "cat"}}}
    for preset in presets:
        reference = schemas(spec)["JobToRun"]["discriminator"]["mapping"][preset]
        variant = schemas(spec)[reference.rpartition("/")[2]]
        assert variant["properties"]["preset"]["const"] == preset
        assert fits(good | {"preset": preset}, spec)


def test_a_presets_metadata_keep_their_definitions_apart_from_other_presets() -> None:
    spec = described("north", "south", metadata=Zoo)
    assert {name for name in schemas(spec) if name.startswith("North")} == {
        "NorthJob",
        "NorthJobMetadata",
        "NorthJobCat",
        "NorthJobDog",
    }
    assert schemas(spec)["NorthJobMetadata"]["title"] == "NorthJobMetadata"
    assert schemas(spec)["SouthJobMetadata"]["properties"]["pet"]["discriminator"]["mapping"] == {
        "cat": "#/components/schemas/SouthJobCat",
        "dog": "#/components/schemas/SouthJobDog",
    }
    dog = {"kind": "dog", "friends": [{"kind": "dog"}]}
    assert fits({"content": "x", "preset": "south", "metadata": {"pet": dog}}, spec)


async def test_metadata_of_any_shape_are_described(database_url: str) -> None:
    registry = Registry([Pipeline(preset="odd", function=print, metadata=Odd)])
    async with served(database_url, registry=registry) as harness:
        ann = await harness.client("ann")
        async with ann.get("/openapi.json") as response:
            spec = json.loads(await response.read(), parse_constant=pytest.fail)
        OpenAPIV31SpecValidator(spec).validate()
        members = schemas(spec)["OddJobMetadata"]["properties"]
        assert members["huge"]["exclusiveMaximum"] == 2**64
        assert "exclusiveMaximum" not in members["finite"]
        assert members["pair"]["items"] == {}
        assert members["properties"]["type"] == "object"
        job = {"content": "x", "preset": "odd", "metadata": {"@type": "t", "class": "c"}}
        assert fits(job, spec)
        async with ann.post("/pipeline/run", json=job) as response:
            assert response.status == 202
        async with ann.get("/pipeline/presets") as response:
            [preset] = (await response.json())["presets"]
        assert preset["metadata_schema"]["properties"]["huge"]["exclusiveMaximum"] == 2**64
