"""CORS: which pages may call the API from a browser, and what every other caller gets as before."""

from __future__ import annotations

from collections.abc import AsyncIterator
from io import BytesIO
from typing import Any

import aiohttp
import pytest
from joserfc.jwk import ECKey

from tests.support.web_harness import JOB, ManualWorker, WebHarness, bearer, served, submit
from web.api import OPERATIONS
from web.app import create_app
from web.wire.answer import JSON

PAGE = "http://localhost:3000"
OTHER = "https://app.example"
STRANGERS = (
    *(
        "http://localhost",
        "http://localhost:30000",
        "https://localhost:3000",
        "http://LOCALHOST:3000",
        "null",
    ),
    *("http://localhost:3000.evil.example", "http://evil.example", "http://localhost:3000/", "*", ""),
    *(f"{PAGE}, {PAGE}", f"{PAGE} {OTHER}", "http://localhost:3000@evil.example"),
)
SAFELISTED = {
    "cache-control",
    "content-language",
    "content-length",
    "content-type",
    "expires",
    "last-modified",
}
"""Headers of answers that a page may always read (the Fetch standard)."""
OF_THE_WIRE = {"connection", "date", "transfer-encoding", "x-accel-buffering", "content-security-policy"}


@pytest.fixture
async def cors_harness(database_url: str) -> AsyncIterator[WebHarness]:
    async with served(database_url, cors_origins=f"{OTHER},{PAGE}") as web_harness:
        yield web_harness


@pytest.fixture
async def page(cors_harness: WebHarness) -> aiohttp.ClientSession:
    """Sends what a browser sends for a page of an allowed origin."""
    client = await cors_harness.client("ann")
    client.headers["Origin"] = PAGE
    return client


def said_of_cors(response: aiohttp.ClientResponse) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name.startswith("Access-Control-")}


def listed(value: str) -> set[str]:
    return {name.strip().lower() for name in value.split(",")}


def preflight(method: str, headers: str = "authorization,content-type") -> dict[str, str]:
    return {
        "Origin": PAGE,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": headers,
    }


async def test_a_preflight_needs_no_token_and_lists_the_paths_own_methods(cors_harness: WebHarness) -> None:
    client = await cors_harness.client(None)
    for path, methods in (
        ("/pipeline/run", {"post"}),
        ("/pipeline/jobs", {"get", "head"}),
        ("/pipeline/job/no-id/events", {"get", "head"}),
        ("/pipeline/job/no-id/cancel", {"post"}),
        ("/openapi.json", {"get", "head"}),
        ("/readyz", {"get", "head"}),
    ):
        async with client.options(path, headers=preflight("POST")) as response:
            assert (response.status, await response.read()) == (204, b"")
            said = said_of_cors(response)
            assert said["Access-Control-Allow-Origin"] == PAGE
            assert listed(said["Access-Control-Allow-Methods"]) == methods
            assert int(said["Access-Control-Max-Age"]) > 0
            assert "Access-Control-Allow-Credentials" not in said
            assert listed(response.headers["Vary"]) == {
                *("origin", "access-control-request-method", "access-control-request-headers")
            }


async def test_a_preflight_allows_every_header_that_an_operation_reads(cors_harness: WebHarness) -> None:
    client = await cors_harness.client(None)
    async with client.options("/pipeline/run", headers=preflight("POST")) as response:
        allowed = listed(response.headers["Access-Control-Allow-Headers"])
    assert allowed >= {header.name.lower() for each in OPERATIONS for header in each.headers}
    assert allowed >= {
        *("authorization", "content-type", "idempotency-key", "if-none-match", "last-event-id", "prefer"),
        *("traceparent", "tracestate", "x-request-id", "content-encoding"),
    }


async def test_every_answer_to_an_allowed_page_can_be_read_with_all_its_headers(
    cors_harness: WebHarness, page: aiohttp.ClientSession, manual_worker: ManualWorker
) -> None:
    job_id = await submit(page)
    nobody = await cors_harness.client(None)
    nobody.headers["Origin"] = PAGE
    reader = await cors_harness.client("ann", scope="jobs:read")
    reader.headers["Origin"] = PAGE
    await manual_worker.finish(await manual_worker.claim())
    async with page.get(f"/pipeline/job/{job_id}") as response:
        tag = {"If-None-Match": response.headers["ETag"]}
    key, text, json = {"Idempotency-Key": "k"}, {"Content-Type": "text/plain"}, {"Content-Type": JSON}
    for status, client, method, path, given in (
        (202, page, "POST", "/pipeline/run", {"json": JOB, "headers": key}),
        (202, page, "POST", "/pipeline/run", {"json": JOB, "headers": key}),
        (422, page, "POST", "/pipeline/run", {"json": JOB | {"content": "other"}, "headers": key}),
        (422, page, "POST", "/pipeline/run", {"json": {}}),
        (400, page, "POST", "/pipeline/run", {"data": b"{", "headers": json}),
        (413, page, "POST", "/pipeline/run", {"data": BytesIO(bytes(2 << 20)), "headers": json}),
        (415, page, "POST", "/pipeline/run", {"data": b"x", "headers": text}),
        (415, page, "POST", "/pipeline/run", {"data": b"x", "headers": json | {"Content-Encoding": "br"}}),
        (200, page, "GET", f"/pipeline/job/{job_id}", {"headers": {"Prefer": "wait=1"}}),
        (200, page, "HEAD", f"/pipeline/job/{job_id}", {}),
        (304, page, "GET", f"/pipeline/job/{job_id}", {"headers": tag}),
        (200, page, "GET", f"/pipeline/job/{job_id}/events", {}),
        (204, page, "GET", f"/pipeline/job/{job_id}/events", {"headers": {"Last-Event-ID": "2"}}),
        (200, page, "GET", "/pipeline/jobs?limit=1", {}),
        (409, page, "POST", f"/pipeline/job/{job_id}/cancel", {}),
        (401, nobody, "GET", "/pipeline/jobs", {}),
        (403, reader, "POST", "/pipeline/run", {}),
        (404, page, "GET", "/pipeline/job/x", {}),
        (404, page, "GET", "/nowhere", {}),
        (405, page, "DELETE", "/pipeline/jobs", {}),
        (200, nobody, "GET", "/readyz", {}),
    ):
        async with client.request(method, path, **given) as response:
            assert response.status == status, await response.text()
            said = said_of_cors(response)
            assert said.keys() == {"Access-Control-Allow-Origin", "Access-Control-Expose-Headers"}, path
            assert said["Access-Control-Allow-Origin"] == PAGE
            assert "origin" in listed(response.headers["Vary"])
            readable = listed(said["Access-Control-Expose-Headers"]) | SAFELISTED | OF_THE_WIRE
            sent = {name.lower() for name in response.headers} - {"vary"}
            assert {name for name in sent if not name.startswith("access-control-")} <= readable, path
    assert listed(said["Access-Control-Expose-Headers"]) >= {
        *("etag", "idempotent-replayed", "link", "location", "preference-applied", "retry-after"),
        *("www-authenticate", "x-request-id", "accept-post", "allow"),
    }


@pytest.mark.parametrize(("allowed", "readable_by"), [(PAGE, PAGE), ("*", "*"), (f"{PAGE},{OTHER}", None)])
async def test_what_never_becomes_a_request_can_be_read_where_the_origin_is_beyond_doubt(
    database_url: str, allowed: str, readable_by: str | None
) -> None:
    async with served(database_url, cors_origins=allowed) as web_harness:
        client = await web_harness.client("ann")
        client.headers["Origin"] = PAGE
        for status, path, headers in (
            (414, "/" + "x" * 9000, {}),
            (431, "/", {"X-Long": "x" * 20_000}),
            (431, "/", {f"X-{n}": "x" for n in range(130)}),
            (400, "/", {"Transfer-Encoding": "gzip", "Content-Length": "5"}),
        ):
            async with client.get(path, headers=headers) as response:
                assert response.status == status
                assert response.headers["Vary"] == "Origin"
                assert response.headers.get("Access-Control-Allow-Origin") == readable_by
                exposed = listed(response.headers.get("Access-Control-Expose-Headers", ""))
                assert ("retry-after" in exposed) is (readable_by is not None)


async def test_a_page_can_read_that_the_keys_are_unavailable(database_url: str) -> None:
    async with served(database_url, jwks_url="http://127.0.0.1:1/", cors_origins=PAGE) as web_harness:
        client = await web_harness.client("ann", key=ECKey.generate_key("P-256"), alg="ES256")
        async with client.get("/pipeline/jobs", headers={"Origin": PAGE}) as response:
            assert (response.status, response.headers["Access-Control-Allow-Origin"]) == (503, PAGE)
            assert "retry-after" in listed(response.headers["Access-Control-Expose-Headers"])


@pytest.mark.parametrize("origin", STRANGERS)
async def test_a_page_of_another_origin_gets_no_word_of_cors(cors_harness: WebHarness, origin: str) -> None:
    client = await cors_harness.client("ann")
    async with client.get("/pipeline/jobs", headers={"Origin": origin}) as response:
        assert (response.status, said_of_cors(response)) == (200, {})
        assert "origin" in listed(response.headers["Vary"])
    async with client.options("/pipeline/jobs", headers=preflight("GET") | {"Origin": origin}) as response:
        assert (response.status, said_of_cors(response)) == (405, {})
        assert response.headers["Allow"] == "GET, HEAD"


async def test_two_origins_are_none(cors_harness: WebHarness) -> None:
    client = await cors_harness.client("ann")
    async with client.get("/pipeline/jobs", headers=[("Origin", PAGE), ("Origin", OTHER)]) as response:
        assert said_of_cors(response) == {}


async def test_a_request_without_an_origin_is_answered_as_ever_and_marked_for_caches(
    cors_harness: WebHarness,
) -> None:
    client = await cors_harness.client("ann")
    async with client.get("/pipeline/jobs") as response:
        assert (response.status, said_of_cors(response)) == (200, {})
        assert response.headers["Vary"] == "Origin"
    for headers in ({}, {"Access-Control-Request-Method": "GET"}, {"Origin": PAGE}):
        async with client.options("/pipeline/jobs", headers=headers) as response:
            assert response.status == 405


async def test_a_star_allows_every_origin_and_no_credentials(database_url: str) -> None:
    async with served(database_url, cors_origins="*") as web_harness:
        client = await web_harness.client("ann")
        for origin in (PAGE, "null", "https://anything.example"):
            for method, path in (
                ("OPTIONS", "/pipeline/run"),
                ("GET", "/pipeline/jobs"),
                ("GET", "/nowhere"),
            ):
                headers = preflight("POST") | {"Origin": origin}
                async with client.request(method, path, headers=headers) as response:
                    said = said_of_cors(response)
                    assert said["Access-Control-Allow-Origin"] == "*"
                    assert "Access-Control-Allow-Credentials" not in said


async def test_without_the_setting_nothing_is_said_of_cors(shared_harness: WebHarness) -> None:
    client = await shared_harness.client(None)
    for method, path, status in (
        ("OPTIONS", "/pipeline/run", 405),
        ("OPTIONS", "/nowhere", 404),
        ("GET", "/pipeline/jobs", 401),
        ("GET", "/readyz", 200),
    ):
        async with client.request(method, path, headers=preflight("POST")) as response:
            assert (response.status, said_of_cors(response)) == (status, {})
            assert "Vary" not in response.headers
    resources: Any = create_app(shared_harness.api).router.resources()
    assert not [route for resource in resources for route in resource if route.method == "OPTIONS"]


async def test_a_bearer_for_one_page_serves_another(cors_harness: WebHarness) -> None:
    """The memory of tokens knows no origins, and answers carry the origin that asked."""
    client = await cors_harness.client(None)
    for origin in (PAGE, OTHER, PAGE):
        async with client.get("/pipeline/jobs", headers=bearer() | {"Origin": origin}) as response:
            assert response.headers["Access-Control-Allow-Origin"] == origin
