"""What goes wrong below HTTP: broken requests, cut and slow bodies, many connections, and stopping."""

from __future__ import annotations

import asyncio
import gzip
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson
import pytest
from structlog.testing import capture_logs

from engine.errors import ConfigurationError, SchemaMismatch
from engine.process import run as process
from engine.storage.notify import WakeHint
from ops.waiting import until
from tests.support.web_harness import JOB, WAIT, WebHarness, bearer, served, settings, submit
from web import __main__ as entry
from web.store import Store, open_store
from web.watcher import Watcher
from web.wire import parsing as requests

BODY = orjson.dumps(JOB)


def head(length: int | None = len(BODY), *more: str, path: str = "/pipeline/run") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", *more]
    lines += [f"{name}: {value}" for name, value in bearer().items()]
    lines += [] if length is None else [f"Content-Length: {length}"]
    return "\r\n".join([*lines, "", ""]).encode()


@asynccontextmanager
async def wire(web_harness: WebHarness) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    async with asyncio.timeout(WAIT):
        reader, writer = await asyncio.open_connection("127.0.0.1", web_harness.port)
        try:
            yield reader, writer
        finally:
            writer.close()


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return int(status.split()[1]), headers, body


async def answer_to(web_harness: WebHarness, *pieces: bytes) -> tuple[int, dict[str, str], Any]:
    async with wire(web_harness) as (reader, writer):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        status, headers, body = await answer(reader)
        assert "server" not in headers
        assert headers["x-request-id"]
        return status, headers, orjson.loads(body)


NOT_HTTP = {
    "noise": b"\x00\x01\x02\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "HTTP/3": b"GET / HTTP/3.0\r\n\r\n",
    "HTTP/2": b"GET / HTTP/2.0\r\nHost: x\r\n\r\n",
    "HTTP/2 with a body": head(5).replace(b"HTTP/1.1", b"HTTP/2.0") + b"12345",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "unknown method": b"FETCH /pipeline/jobs HTTP/1.1\r\nHost: x\r\n\r\n",
    "two lengths": head(5, "Content-Length: 6") + b"12345",
    "length and chunks": head(5, "Transfer-Encoding: chunked") + b"12345",
    "negative length": head(-1),
    "a length that is no number": head(None, "Content-Length: five"),
    "NUL in a header": b"GET / HTTP/1.1\r\nHost: x\r\nA: \x00\r\n\r\n",
}


HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n"
TOO_LONG = {
    "a header over 16 KiB": (HEAD + b"A: " + b"x" * 20_000 + b"\r\n\r\n", 431, "16384 bytes"),
    "a name over 16 KiB": (HEAD + b"A" * 20_000 + b": x\r\n\r\n", 431, "16384 bytes"),
    "a header that never ends": (HEAD + b"A: " + b"x" * 600_000, 431, "16384 bytes"),
    "129 headers": (HEAD + b"A: x\r\n" * 128 + b"\r\n", 431, "128 header fields"),
    "headers that never end": (HEAD + b"A: x\r\n" * 100_000, 431, "128 header fields"),
    "a target over 8 KiB": (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414, "8190 bytes"),
    "a query over 8 KiB": (b"GET /?" + b"x" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414, "8190 bytes"),
    "a target that never ends": (b"GET /" + b"x" * 600_000, 414, "8190 bytes"),
}


@pytest.mark.parametrize(("raw", "status", "said"), TOO_LONG.values(), ids=TOO_LONG.keys())
async def test_414_for_a_long_target_and_431_for_long_or_many_headers(
    shared_harness: WebHarness, raw: bytes, status: int, said: str
) -> None:
    async with wire(shared_harness) as (reader, writer):
        writer.write(raw)
        found, _, body = await answer(reader)
        assert await reader.read() == b"", "the connection is closed"
    assert (found, orjson.loads(body)["status"]) == (status, status)
    assert said in orjson.loads(body)["detail"]


@pytest.mark.parametrize("raw", NOT_HTTP.values(), ids=NOT_HTTP.keys())
async def test_what_is_not_http_gets_a_400_problem_and_no_log(
    shared_harness: WebHarness, raw: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with wire(shared_harness) as (reader, writer):
        writer.write(raw)
        status, headers, body = await answer(reader)
        assert await reader.read() == b"", "the connection is closed"
    assert (status, headers["content-type"]) == (400, "application/problem+json")
    assert orjson.loads(body)["request_id"] == headers["x-request-id"]
    assert "server" not in headers
    assert not caplog.records


async def test_a_body_cut_half_way_is_dropped_and_the_next_request_served(shared_harness: WebHarness) -> None:
    for more in ((), ("Expect: 100-continue",)):
        async with wire(shared_harness) as (_, writer):
            writer.write(head(len(BODY), *more) + BODY[:10])
            await writer.drain()
    for coding in ("gzip", "deflate"):
        async with wire(shared_harness) as (_, writer):
            writer.write(head(500, f"Content-Encoding: {coding}") + gzip.compress(BODY)[:20])
            await writer.drain()
    status, _, _ = await answer_to(shared_harness, head() + BODY)
    assert status == 202


async def test_400_for_broken_chunks_and_a_half_closed_connection(shared_harness: WebHarness) -> None:
    status, _, body = await answer_to(
        shared_harness, head(None, "Transfer-Encoding: chunked"), b'5\r\n{"con\r\nnonsense\r\n'
    )
    assert (status, body["status"]) == (400, 400)


async def test_400_for_gzip_that_ends_early(shared_harness: WebHarness) -> None:
    packed = gzip.compress(BODY)[:-12]
    status, _, _ = await answer_to(shared_harness, head(len(packed), "Content-Encoding: gzip") + packed)
    assert status == 400


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_a_broken_compressed_body_is_the_client_s_fault_and_not_logged(
    shared_harness: WebHarness, coding: str, caplog: pytest.LogCaptureFixture
) -> None:
    broken = b"neither gzip nor deflate"
    async with wire(shared_harness) as (reader, writer):
        writer.write(head(len(broken), f"Content-Encoding: {coding}") + broken)
        assert (await answer(reader))[0] == 400
        writer.write(head() + BODY)
        assert (await answer(reader))[0] == 202, "the connection goes on"
    assert not caplog.records


async def test_chunks_are_put_together(shared_harness: WebHarness) -> None:
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n"
    status, _, _ = await answer_to(shared_harness, head(None, "Transfer-Encoding: chunked"), chunks)
    assert status == 202


async def test_413_for_chunks_without_an_end(shared_harness: WebHarness) -> None:
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    status, _, _ = await answer_to(shared_harness, head(None, "Transfer-Encoding: chunked"), *[chunk] * 17)
    assert status == 413


async def test_413_before_the_body_where_its_length_says_so(shared_harness: WebHarness) -> None:
    status, _, _ = await answer_to(shared_harness, head(1 << 40))
    assert status == 413


async def test_408_for_a_body_that_does_not_come(
    shared_harness: WebHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "READ_SECONDS", 0.1)
    status, headers, body = await answer_to(shared_harness, head(), BODY[:-1])
    assert (status, body["status"], headers["connection"]) == (408, 408, "close")


async def test_a_body_that_drips_is_bounded_as_a_whole(
    shared_harness: WebHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "READ_SECONDS", 0.2)
    async with wire(shared_harness) as (reader, writer):
        writer.write(head(10_000))
        reply = asyncio.create_task(answer(reader))
        while not (await asyncio.wait([reply], timeout=0.02))[0]:
            writer.write(b" ")
        assert (await reply)[0] == 408


async def test_expect_100_continue_is_answered_and_other_expectations_ignored(
    shared_harness: WebHarness,
) -> None:
    async with wire(shared_harness) as (reader, writer):
        writer.write(head(len(BODY), "Expect: 100-continue"))
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(BODY)
        assert (await answer(reader))[0] == 202
    for path, status in (("/pipeline/run", 202), ("/nowhere", 404), ("/pipeline/jobs", 405)):
        raw = head(len(BODY), "Expect: the-unexpected", path=path) + BODY
        assert (await answer_to(shared_harness, raw))[0] == status


async def test_what_aiohttp_refuses_before_the_middleware_is_answered(shared_harness: WebHarness) -> None:
    async with wire(shared_harness) as (reader, writer):
        writer.write(b"OPTIONS * HTTP/1.1\r\nHost: x\r\nExpect: the-unexpected\r\n\r\n")
        status, headers, _ = await answer(reader)
    assert status == 417
    assert headers["x-request-id"]


async def test_requests_sent_in_one_go_are_answered_in_turn(shared_harness: WebHarness) -> None:
    async with wire(shared_harness) as (reader, writer):
        writer.write((head() + BODY) * 50)
        assert [(await answer(reader))[0] for _ in range(50)] == [202] * 50


async def test_http_1_0_and_unusual_targets_are_served(shared_harness: WebHarness) -> None:
    for raw, status in (
        (b"GET /healthz HTTP/1.0\r\n\r\n", 200),
        (b"GET http://else.where/healthz HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"GET //healthz HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"GET /pipeline/../healthz HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"GET /pipeline/jobs?preset=\xff HTTP/1.1\r\nHost: x\r\n" + head().partition(b"\r\n")[2], 400),
    ):
        found, _, _ = await answer_to(shared_harness, raw)
        assert found in (status, 400) if b"\xff" in raw else found == status, raw


async def test_1000_open_connections_are_served(shared_harness: WebHarness) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard >= 4096
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    opened = []
    try:
        async with asyncio.timeout(30):
            for _ in range(1000):
                opened.append(await asyncio.open_connection("127.0.0.1", shared_harness.port))  # noqa: PERF401
            for _, writer in opened:
                writer.write(head() + BODY)
            answers = await asyncio.gather(*(answer(reader) for reader, _ in opened))
    finally:
        for _, writer in opened:
            writer.close()
    assert {status for status, _, _ in answers} == {202}
    assert len({body for _, _, body in answers}) == 1000


# Stopping


async def test_draining_says_so_and_asks_clients_to_leave(database_url: str) -> None:
    async with served(database_url) as web_harness:
        client = await web_harness.client()
        async with client.get("/readyz") as response:
            assert response.status == 200
            assert await response.json() == {
                "status": "ok",
                "checks": dict.fromkeys(("schema", "rights", "writable", "connections", "accepting"), "ok"),
            }
        web_harness.api.draining.set()
        async with client.get("/readyz") as response:
            body = await response.json()
            assert (response.status, body["status"], body["checks"]["accepting"]) == (
                503,
                "unavailable",
                "stopping",
            )
            assert response.headers["Connection"] == "close"
        async with client.get("/healthz") as response:
            assert (response.status, await response.json()) == (200, {"status": "ok", "checks": {}})
        await submit(client)


async def test_an_address_that_is_taken_stops_the_start_with_a_line(
    database_url: str, shared_harness: WebHarness
) -> None:
    given = settings(database_url=database_url, http_port=shared_harness.port, admin_port=0)
    with pytest.raises(ConfigurationError, match=f"cannot listen on 127.0.0.1:{shared_harness.port}"):
        await entry.main(given, asyncio.Event())


async def test_web_does_not_start_without_the_schema(empty_database_url: str) -> None:
    given = settings(database_url=empty_database_url, http_port=0, admin_port=0)
    with pytest.raises(SchemaMismatch, match="no schema yet"):
        async with asyncio.timeout(10):
            await entry.main(given, asyncio.Event())


async def test_a_loop_that_fails_is_logged_and_the_process_serves_on(
    database_url: str, monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int
) -> None:
    monkeypatch.setattr(entry, "NOTICE_SECONDS", 0.1)

    async def bug(_ids: object) -> Any:
        raise TypeError("a bug")

    @asynccontextmanager
    async def open_broken(url: str, notify: WakeHint) -> AsyncIterator[Store]:
        async with open_store(url, notify) as store:
            store.watcher = Watcher(bug)
            yield store

    given = settings(
        database_url=database_url,
        http_port=unused_tcp_port,
        admin_port=0,
        pipelines="tests.support.web_harness",
    )
    base = f"http://127.0.0.1:{unused_tcp_port}"
    stop = asyncio.Event()
    async with asyncio.timeout(20):
        with capture_logs() as lines:
            running = asyncio.create_task(entry.main(given, stop, open_broken))
            await until(lambda: running.done() or any(line["event"] == "web.started" for line in lines))
            async with aiohttp.ClientSession(base, headers=bearer()) as client:
                job_id = await submit(client)
                async with client.get(f"/pipeline/job/{job_id}", headers={"Prefer": "wait=1"}) as response:
                    assert (await response.json())["status"] == "pending"
                await until(lambda: any(line["event"] == "loop.failed" for line in lines))
                await submit(client)
            stop.set()
            assert await running == process.DONE
    failed = [line for line in lines if line["event"] == "loop.failed"]
    assert (failed[0]["loop"], str(failed[0]["exc_info"])) == ("watch", "a bug")


@pytest.mark.alone
async def test_stopping_fails_no_request_that_is_being_answered(
    database_url: str, monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int
) -> None:
    monkeypatch.setattr(entry, "NOTICE_SECONDS", 2.0)
    stop = asyncio.Event()
    given = settings(
        database_url=database_url,
        http_port=unused_tcp_port,
        admin_port=0,
        drain_seconds=5,
        pipelines="tests.support.web_harness",
    )
    running = asyncio.create_task(entry.main(given, stop))
    statuses: list[int] = []
    timeout = aiohttp.ClientTimeout(total=WAIT)
    base = f"http://127.0.0.1:{unused_tcp_port}"

    async def is_ready(client: aiohttp.ClientSession) -> bool:
        try:
            async with client.get("/readyz") as response:
                return response.status == 200
        except aiohttp.ClientConnectorError:
            return False

    async def keep_asking() -> None:
        async with aiohttp.ClientSession(base, headers=bearer(), timeout=timeout) as client:
            while await is_ready(client):
                async with client.post("/pipeline/run", json=JOB) as response:
                    statuses.append(response.status)

    async with asyncio.timeout(20), aiohttp.ClientSession(base, headers=bearer(), timeout=timeout) as client:
        while not await is_ready(client):
            assert not running.done()
            await asyncio.sleep(0.01)
        job_id = await submit(client)
        poll = asyncio.create_task(client.get(f"/pipeline/job/{job_id}", headers={"Prefer": "wait=30"}))
        stream = await client.get(f"/pipeline/job/{job_id}/events")
        asking = [asyncio.create_task(keep_asking()) for _ in range(8)]
        await until(lambda: len(statuses) > 50)
        stop.set()
        await asyncio.gather(*asking)
        async with await poll as response:
            assert (await response.json())["status"] == "pending"
        assert b'"pending"' in await stream.content.read()
        assert await running == process.DONE
    assert set(statuses) == {202}
