"""Every refusal of API.md's table, each through real HTTP: bad input is answered with a problem, never with a 500."""

from __future__ import annotations

import gzip
import io
import json
from typing import Any
from uuid import UUID

import aiohttp
import orjson
import pytest
from yarl import URL

from tests.support.web_harness import JOB, WebHarness, submit

NOBODYS = UUID("01890a5d-ac96-774b-bcce-b302099a8057")
"""An id that no job has."""

RUN = "/pipeline/run"
JSON = {"Content-Type": "application/json"}


async def refused(response: aiohttp.ClientResponse, status: int) -> Any:
    """The problem, checked for its shape."""
    body = await response.read()
    assert response.status == status, body
    assert response.headers["Content-Type"] == "application/problem+json"
    assert "Server" not in response.headers
    problem = orjson.loads(body)
    members = {"type", "title", "status", "detail", "instance", "request_id"} | (
        {"errors"} if status == 422 else set()
    )
    assert problem.keys() == members
    assert problem["status"] == status
    assert problem["request_id"] == response.headers["X-Request-Id"]
    assert problem["instance"] == response.url.path
    return problem


async def post(
    client: aiohttp.ClientSession, raw: bytes, path: str = RUN, **headers: str
) -> aiohttp.ClientResponse:
    return await client.post(path, data=io.BytesIO(raw), headers=JSON | headers)


def job(**given: Any) -> bytes:
    return json.dumps(JOB | given).encode()


def job_with(member: str) -> bytes:
    """A job with a member written by hand."""
    return b'{"content": "x", "preset": "echo", ' + member.encode() + b"}"


NOT_JSON = {
    "empty": b"",
    "not JSON": b"hello",
    "cut": b'{"content": "x", "pre',
    "two documents": b"{}{}",
    "trailing comma": b'{"content": "x",}',
    "single quotes": b"{'content': 'x'}",
    "UTF-16": json.dumps(JOB).encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf" + job(),
    "not UTF-8": b'{"content": "\xff", "preset": "echo"}',
    "overlong UTF-8": b'{"content": "\xc0\xaf", "preset": "echo"}',
    "UTF-8 surrogate": b'{"content": "\xed\xa0\x80", "preset": "echo"}',
    "control character": b'{"content": "a\nb", "preset": "echo"}',
}


@pytest.mark.parametrize("raw", NOT_JSON.values(), ids=NOT_JSON.keys())
async def test_400_for_what_is_not_json_in_utf_8(anyone: aiohttp.ClientSession, raw: bytes) -> None:
    await refused(await post(anyone, raw), 400)


DEEP = "[" * 64 + "]" * 64
INVALID = {
    "not an object": (b"[]", ""),
    "nothing in it": (b"{}", "/content"),
    "null": (b"null", ""),
    "unknown member": (job(colour="red"), "/colour"),
    "empty content": (job(content=""), "/content"),
    "content too long": (job(content="x" * 262_145), "/content"),
    "content too long as UTF-8": (job(content="é" * 131_073), "/content"),
    "content not a string": (job(content=5), "/content"),
    "NUL in content": (job(content="a\x00b"), "/content"),
    "lone surrogate in content": (job(content="a\ud800b"), "/content"),
    "low surrogate in content": (job(content="\udfff"), "/content"),
    "unknown preset": (job(preset="nobody"), "/preset"),
    "NUL in preset": (job(preset="\x00"), "/preset"),
    "metadata not an object": (job(metadata=[]), "/metadata"),
    "content null": (job(content=None), "/content"),
    "preset null": (job(preset=None), "/preset"),
    "metadata null where the preset needs some": (job(preset="typed", metadata=None), "/metadata/format"),
    "null as an unknown member": (job(colour=None), "/colour"),
    "NUL in metadata": (job(metadata={"a": ["x\x00"]}), "/metadata/a/0"),
    "NUL in a member's name": (job(metadata={"a\x00": 1}), "/metadata"),
    "surrogate in metadata": (job(metadata={"a/b": {"c~d": "\udc00"}}), "/metadata/a~1b/c~0d"),
    "surrogate in a member's name": (job(metadata={"\udc00": 1}), "/metadata"),
    "NaN": (job_with('"metadata": {"a": NaN}'), "/metadata/a"),
    "Infinity": (job_with('"metadata": {"a": Infinity}'), "/metadata/a"),
    "-Infinity": (job_with('"metadata": {"a": [-Infinity]}'), "/metadata/a/0"),
    "a number beyond doubles": (job_with('"metadata": {"a": 1e131071}'), "/metadata/a"),
    "65 bits": (job(metadata={"a": 2**64}), "/metadata/a"),
    "-65 bits": (job(metadata={"a": -(2**63) - 1}), "/metadata/a"),
    "a number of 5000 digits": (job_with('"metadata": {"a": ' + "9" * 5000 + "}"), None),
    "nesting over 64": (job_with('"metadata": {"a": ' + DEEP + "}"), None),
    "nesting of 1,000": (job_with('"metadata": {"a": ' + "[" * 1000 + "]" * 1000 + "}"), None),
    "nesting of 100,000": (job_with('"metadata": {"a": ' + "[" * 100_000 + "]" * 100_000 + "}"), None),
    "nested objects": (job_with('"metadata": ' + '{"a":' * 70 + "1" + "}" * 70), None),
    "nesting elsewhere": (b"[" * 150 + b"]" * 150, None),
    "wrong metadata": (job(preset="typed", metadata={"format": "pdf"}), "/metadata/format"),
    "metadata out of range": (
        job(preset="typed", metadata={"format": "plain", "speed": 10}),
        "/metadata/speed",
    ),
    "metadata missing": (job(preset="typed"), "/metadata/format"),
    "metadata misspelt": (job(preset="typed", metadata={"format": "plain", "sped": 1}), "/metadata/sped"),
    "priority 0": (job(priority=0), "/priority"),
    "priority 5": (job(priority=5), "/priority"),
    "priority as text": (job(priority="1"), "/priority"),
    "priority true": (job(priority=True), "/priority"),
    "priority 1.5": (job(priority=1.5), "/priority"),
    "priority NaN": (job_with('"priority": NaN'), "/priority"),
    "priority huge": (job(priority=10**30), "/priority"),
    "no zone": (job(run_at="2030-01-01T00:00:00"), "/run_at"),
    "no time": (job(run_at="infinity"), "/run_at"),
    "seconds since 1970": (job(run_at=1_900_000_000), "/run_at"),
    "year 9999": (job(run_at="9999-12-31T23:59:59Z"), "/run_at"),
    "year 10000": (job(run_at="10000-01-01T00:00:00Z"), "/run_at"),
    "year 0": (job(run_at="0000-01-01T00:00:00Z"), "/run_at"),
    "negative delay": (job(delay_seconds=-1), "/delay_seconds"),
    "delay over a year": (job(delay_seconds=31_536_001), "/delay_seconds"),
    "infinite delay": (job_with('"delay_seconds": Infinity'), "/delay_seconds"),
    "two times": (job(delay_seconds=1, run_at="2030-01-01T00:00:00Z"), ""),
    "no attempts": (job(max_attempts=0), "/max_attempts"),
    "26 attempts": (job(max_attempts=26), "/max_attempts"),
    "no time to run": (job(timeout_seconds=0), "/timeout_seconds"),
    "more than a day": (job(timeout_seconds=86_401), "/timeout_seconds"),
}


@pytest.mark.parametrize(("raw", "pointer"), INVALID.values(), ids=INVALID.keys())
async def test_422_for_what_is_json_but_invalid(
    anyone: aiohttp.ClientSession, raw: bytes, pointer: str | None
) -> None:
    problem = await refused(await post(anyone, raw), 422)
    assert problem["errors"]
    if pointer is not None:
        assert problem["errors"][0]["pointer"] == pointer
        assert problem["errors"][0]["detail"]


@pytest.mark.parametrize(("raw", "pointer"), INVALID.values(), ids=INVALID.keys())
async def test_422_for_the_same_in_a_batch_with_the_jobs_index_in_the_pointer(
    anyone: aiohttp.ClientSession, raw: bytes, pointer: str | None
) -> None:
    problem = await refused(
        await post(anyone, b'{"jobs": [' + job() + b"," + raw + b"]}", "/pipeline/batch"), 422
    )
    if pointer is not None and b"\\ud" not in raw:
        assert problem["errors"][0]["pointer"] == f"/jobs/1{pointer}"


GOOD = {
    "content of 256 KiB": job(content="x" * 262_144),
    "content of 256 KiB as UTF-8": job(content="é" * 131_072),
    "a pair of surrogates": job(content="\U0001f600"),
    "64 bits": job(metadata={"a": [2**63 - 1, -(2**63)]}),
    "a zone that PostgreSQL does not know": job(run_at="7801-05-12T04:48:05.2+20:23"),
    "the last moment": job(run_at="9998-12-31T23:59:59.999999-00:00"),
    "nulls": job(
        metadata=None, priority=None, run_at=None, delay_seconds=None, max_attempts=None, timeout_seconds=None
    ),
    "null for a delay beside a time": job(run_at="2030-01-01T00:00:00Z", delay_seconds=None),
    "null for a time beside a delay": job(run_at=None, delay_seconds=5),
    "nesting of 64 at most": job_with('"metadata": {"a": ' + "[" * 63 + "]" * 63 + "}"),
    "1e20 in full digits": job_with('"metadata": {"a": [100000000000000000000, -1e20]}'),
    "many members": job(metadata={f"m{n}": n for n in range(5000)}),
    "extreme numbers": job_with('"metadata": {"a": [1e308, -1e308, 5e-324, 0.1, 12.50]}'),
    "escapes": job_with('"metadata": {"\\\\\\"{},NULL": "\\\\x00 \\b\\t\\u2028 {} \'; --"}'),
    "SQL and array syntax": job(content="NULL"),
    "braces and quotes": job(content='{"a","b\\"}'),
    "white space": b" \r\n\t" + job() + b"\n",
}


@pytest.mark.parametrize("raw", GOOD.values(), ids=GOOD.keys())
async def test_what_only_looks_bad_is_accepted_and_comes_back_as_it_was(
    anyone: aiohttp.ClientSession, raw: bytes
) -> None:
    async with await post(anyone, raw) as response:
        assert response.status == 202, await response.text()
        job_id = (await response.json())["job_id"]
    async with anyone.get(f"/pipeline/job/{job_id}") as response:
        shown = json.loads(await response.read(), parse_int=float)  # jsonb writes 1e308 with all its digits
    sent = json.loads(raw, parse_int=float)
    assert shown["content"] == sent["content"]
    assert shown["metadata"] == (sent.get("metadata") or {})
    assert shown["priority"] == (sent.get("priority") or 2)


MEDIA = [
    "text/plain",
    "application/xml",
    "application/json; charset=latin-1",
    "application/jsonx",
    "*/*",
    "json",
    "",
    "application/json; x*",
    "application/json; x*=1",
    "application/json; charset*=utf-8''utf-8",
    "application/json; x*0=a; x*1=b",
    "application/json; *",
    "application/json; =",
    "application/json; x",
    "application/json; x=",
    'application/json; x="',
    'application/json; x="a"b',
    "application/json; charset=utf-8; charset=latin-1",
    "application/json, application/json",
    "application/json x",
    "application/json; x=\u00e9",
    "application/json;" + " " * 8000 + "x",
    "application/json" + ";" * 8000 + "x",
    "application/json; " + "a" * 8000 + "*=1",
]


@pytest.mark.parametrize("media", MEDIA)
async def test_415_for_another_media_type(anyone: aiohttp.ClientSession, media: str) -> None:
    response = await anyone.post(RUN, data=job(), headers={"Content-Type": media})
    await refused(response, 415)
    assert response.headers["Accept-Post"] == "application/json"


async def test_415_without_a_media_type(anyone: aiohttp.ClientSession) -> None:
    response = await anyone.post(RUN, data=job(), skip_auto_headers=["Content-Type"])
    await refused(response, 415)


@pytest.mark.parametrize(
    "media",
    [
        "application/json; charset=UTF-8",
        "Application/JSON",
        'application/json;charset="utf-8"',
        "application/json;",
        "application/json ; charset=utf-8 ;; ",
        'application/json; profile="a;charset=latin-1\\""; CHARSET=utf8',
    ],
)
async def test_json_in_utf_8_may_say_so(anyone: aiohttp.ClientSession, media: str) -> None:
    async with anyone.post(RUN, data=job(), headers={"Content-Type": media}) as response:
        assert response.status == 202, await response.text()


async def test_413_for_a_body_over_1_mib_and_a_batch_over_16_mib(anyone: aiohttp.ClientSession) -> None:
    await refused(await post(anyone, b" " * (1 << 20) + job()), 413)
    await refused(await post(anyone, b" " * (16 << 20) + b"{}", "/pipeline/batch"), 413)
    padded = b'{"jobs": [' + b" " * (15 << 20) + job() + b"]}"
    async with await post(anyone, padded, "/pipeline/batch") as response:
        assert response.status == 202, await response.text()


async def test_413_for_a_gzip_bomb_that_is_never_unpacked_whole(anyone: aiohttp.ClientSession) -> None:
    bomb = gzip.compress(b" " * (256 << 20))
    assert len(bomb) < 1 << 20
    await refused(await post(anyone, bomb, **{"Content-Encoding": "gzip"}), 413)


QUERIES = {
    "/pipeline/jobs?colour=red": 400,
    "/pipeline/jobs?limit=1&limit=2": 400,
    "/pipeline/jobs?preset=%ff": 400,
    "/pipeline/jobs?preset=%00": 400,
    "/pipeline/jobs?preset=%ed%a0%80": 400,
    "/pipeline/jobs?" + "&".join(f"a{n}=1" for n in range(101)): 400,
    "/pipeline/presets?x=1": 400,
    "/pipeline/jobs?limit=0": 422,
    "/pipeline/jobs?limit=101": 422,
    "/pipeline/jobs?limit=ten": 422,
    "/pipeline/jobs?limit=": 422,
    "/pipeline/jobs?limit=" + "9" * 5000: 422,
    "/pipeline/jobs?offset=-1": 422,
    "/pipeline/jobs?offset=10001": 422,
    "/pipeline/jobs?status=PENDING": 422,
    "/pipeline/jobs?status=asleep": 422,
    "/pipeline/jobs?preset=Bad+Name": 422,
    "/pipeline/jobs?cursor=": 422,
    "/pipeline/jobs?cursor=garbage": 422,
    "/pipeline/jobs?cursor=" + "A" * 23: 422,
    "/pipeline/jobs?cursor=" + "A" * 21 + "B": 422,
    "/pipeline/jobs?owner=bob": 403,
    "/pipeline/jobs?owner=anyone": 403,
    "/pipeline/run": 405,
    "/pipeline": 404,
    "/pipeline/jobs/": 404,
    "/": 404,
    "/%00": 404,
    "/%ff": 404,
    "/pipeline/job/": 404,
    "/pipeline/job/1": 404,
    "/pipeline/job/%00": 404,
    "/pipeline/job/{}": 404,
    f"/pipeline/job/{NOBODYS.hex}": 404,
    f"/pipeline/job/urn:uuid:{NOBODYS}": 404,
    f"/pipeline/job/{NOBODYS}": 404,
    f"/pipeline/job/{NOBODYS}?x=1": 400,
    f"/pipeline/job/{NOBODYS}/history": 404,
    f"/pipeline/job/{NOBODYS}/events": 404,
    f"/pipeline/job/{NOBODYS}/explain": 404,
    f"/pipeline/job/{NOBODYS}/nothing": 404,
}


@pytest.mark.parametrize(("target", "status"), QUERIES.items())
async def test_bad_paths_and_queries(
    shared_harness: WebHarness, anyone: aiohttp.ClientSession, target: str, status: int
) -> None:
    response = await anyone.get(URL(shared_harness.url + target, encoded=True))
    body = orjson.loads(await response.read())
    assert response.status == status, body
    assert response.headers["Content-Type"] == "application/problem+json"
    assert body["request_id"] == response.headers["X-Request-Id"]


METHODS = [
    ("DELETE", "/pipeline/run", "POST"),
    ("GET", "/pipeline/run", "POST"),
    ("HEAD", "/pipeline/batch", "POST"),
    ("OPTIONS", "/pipeline/jobs", "GET, HEAD"),
    ("PUT", f"/pipeline/job/{NOBODYS}", "GET, HEAD"),
    ("GET", f"/pipeline/job/{NOBODYS}/cancel", "POST"),
    ("POST", "/openapi.json", "GET, HEAD"),
    ("PATCH", "/healthz", "GET, HEAD"),
    ("TRACE", "/docs", "GET, HEAD"),
]


@pytest.mark.parametrize(("method", "path", "allow"), METHODS)
async def test_405_names_what_is_allowed(
    anyone: aiohttp.ClientSession, method: str, path: str, allow: str
) -> None:
    async with anyone.request(method, path) as response:
        assert response.status == 405
        assert response.headers["Allow"] == allow
        if method != "HEAD":
            await refused(response, 405)


async def test_head_answers_as_get_without_a_body(anyone: aiohttp.ClientSession) -> None:
    job_id = await submit(anyone)
    for path in ("", "/history", "/events", "/explain"):
        async with anyone.head(f"/pipeline/job/{job_id}{path}") as response:
            assert response.status == 200
            assert await response.read() == b""


async def test_a_request_id_is_the_callers_where_it_is_fit(anyone: aiohttp.ClientSession) -> None:
    for given, kept in (
        ("abc.DEF-1_2", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("a b", False),
        ("é", False),
    ):
        async with anyone.get("/pipeline/presets", headers={"X-Request-Id": given}) as response:
            assert (response.headers["X-Request-Id"] == given) is kept
            assert response.headers["X-Request-Id"]


async def test_errors_are_listed_up_to_twenty(anyone: aiohttp.ClientSession) -> None:
    body = json.dumps({"jobs": [JOB | {"preset": "nobody"}] * 1000}).encode()
    problem = await refused(await post(anyone, body, "/pipeline/batch"), 422)
    assert len(problem["errors"]) == 20
