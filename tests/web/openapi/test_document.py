"""The OpenAPI document and the page that shows it."""

from __future__ import annotations

import asyncio
import re
import shutil
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.support.web_harness import REGISTRY, ManualWorker, WebHarness, get, submit
from web.api import OPERATIONS
from web.openapi import document

SPEC = document(OPERATIONS, REGISTRY)


def fits(value: Any, name: str) -> bool:
    schema = {"$ref": f"#/components/schemas/{name}", "components": SPEC["components"]}
    return bool(jsonschema.Draft202012Validator(schema).is_valid(value))


async def test_the_document_is_valid_openapi_3_1(anyone: Any) -> None:
    async with anyone.get("/openapi.json") as response:
        served = await response.json()
    assert served == SPEC
    assert served["openapi"] == "3.1.0"
    OpenAPIV31SpecValidator(served).validate()


def test_every_operation_is_in_it_with_its_refusals() -> None:
    calls = {(method.upper(), path) for path, methods in SPEC["paths"].items() for method in methods}
    assert calls == {(each.method, each.path) for each in OPERATIONS}
    for each in OPERATIONS:
        found = SPEC["paths"][each.path][each.method.lower()]
        if each.path.startswith("/pipeline/"):
            assert {"400", "401", "403", "503"} <= found["responses"].keys()
            assert found["security"] == [{"bearer": []}]
            assert f"`{each.scope}`" in found["description"]
        else:
            assert found["security"] == []
        # What never becomes a request is refused on every path.
        for status in ("400", "408", "414", "431", "503"):
            assert "application/problem+json" in found["responses"][status]["content"]
        if "{job_id}" in each.path:
            assert "404" in found["responses"]
        if each.body is not None:
            assert {"413", "415", "422"} <= found["responses"].keys()


async def test_every_header_of_a_refused_coding_is_in_the_document(anyone: Any) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "br"}
    async with anyone.post("/pipeline/run", data=b"x", headers=headers) as response:
        assert response.status == 415
        said = {"Accept-Post", "Accept-Encoding", "X-Request-Id"}
        assert said <= response.headers.keys()
    assert said <= SPEC["paths"]["/pipeline/run"]["post"]["responses"]["415"]["headers"].keys()


def test_readiness_tells_what_is_not_ready_and_what_is_no_request() -> None:
    found = SPEC["paths"]["/readyz"]["get"]["responses"]["503"]["content"]
    assert found.keys() == {"application/json", "application/problem+json"}


def test_every_operation_is_described_under_a_tag_that_is_described() -> None:
    tags = {each["name"]: each["description"] for each in SPEC["tags"]}
    for methods in SPEC["paths"].values():
        for found in methods.values():
            assert found["description"]
            [tag] = found["tags"]
            assert tags[tag]


def test_a_query_parameter_is_left_out_but_never_null() -> None:
    found = 0
    for methods in SPEC["paths"].values():
        for operation in methods.values():
            for parameter in operation["parameters"]:
                found += 1
                schema = parameter["schema"]
                assert schema.keys() & {"type", "$ref"}
                assert "anyOf" not in schema
                assert schema.get("default", 0) is not None
    assert found > 10


def test_names_of_schemas_are_identifiers_in_any_language() -> None:
    assert all(re.fullmatch("[A-Z][A-Za-z0-9]*", name) for name in SPEC["components"]["schemas"])


def test_every_example_is_a_body_that_is_described() -> None:
    for path, name in (("/pipeline/run", "JobToRun"), ("/pipeline/batch", "Batch")):
        media = SPEC["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        assert media["examples"].keys() == REGISTRY.keys()
        for example in media["examples"].values():
            assert fits(example["value"], name), example


async def test_every_example_is_accepted(ann: Any) -> None:
    for path in ("/pipeline/run", "/pipeline/batch"):
        media = SPEC["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        for example in media["examples"].values():
            async with ann.post(path, json=example["value"]) as response:
                assert response.status == 202, await response.text()


async def test_what_is_answered_is_what_is_described(ann: Any, manual_worker: ManualWorker) -> None:
    job_id = await submit(ann, metadata={"a": 1})
    assert fits(await get(ann, job_id), "JobObject")
    attempt = await manual_worker.claim()
    await manual_worker.progress(attempt, 1, 0.5, "half")
    assert fits(await get(ann, job_id), "JobObject")
    await manual_worker.fail(attempt)
    assert fits(await get(ann, job_id), "JobObject")
    assert fits(await get(ann, job_id, "/history"), "History")
    assert fits(await get(ann, job_id, "/explain"), "ExplanationShown")
    for path, name in (
        ("/pipeline/jobs", "JobsPage"),
        ("/pipeline/presets", "Presets"),
        ("/readyz", "Health"),
    ):
        async with ann.get(path) as response:
            assert fits(await response.json(), name)


async def test_the_page_asks_nobody_else(anyone: Any) -> None:
    async with anyone.get("/docs") as response:
        assert response.status == 200
        assert response.content_type == "text/html"
        assert response.headers["Content-Security-Policy"].startswith("default-src 'self'")
        page = await response.text()
    assert "//" not in page
    sources = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(sources) == 3
    for source in sources:
        async with anyone.get(f"/{source}") as response:
            assert response.status == 200
            assert response.content_type in ("text/css", "text/javascript")
            assert await response.read()


@pytest.mark.long
async def test_the_page_shows_every_operation(shared_harness: WebHarness) -> None:
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("chromium is not installed")
    quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", "--dump-dom")
    browser = await asyncio.create_subprocess_exec(
        *(chromium, *quiet, f"{shared_harness.url}/docs"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(60):
            page, _ = await browser.communicate()
    finally:
        if browser.returncode is None:
            browser.kill()
            await browser.wait()
    assert page.count(b'class="opblock-summary-path"') == len(OPERATIONS)
