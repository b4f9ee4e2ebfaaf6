"""A client that leaves is no fault of ours: no route answers 5xx for it, and none logs a traceback."""

from __future__ import annotations

import asyncio
import gzip
import socket
import struct
from collections.abc import Sequence
from typing import Any

import orjson
import psycopg
import pytest
from structlog.testing import capture_logs

from engine.errors import Overloaded
from engine.telemetry.metrics import HTTP_IN_FLIGHT
from ops.waiting import until
from tests.support.web_harness import JOB, WebHarness, bearer, submit
from web import offload, operations
from web.wire import parsing

BODY = orjson.dumps(JOB)
JSON = {"Content-Type": "application/json"}
LINGER = struct.pack("ii", 1, 0)
"""Closing sends a reset."""


def head(method: str, path: str, *more: str) -> bytes:
    fields = [f"{name}: {value}" for name, value in (bearer() | JSON).items()]
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *fields, *more, "", ""]).encode()


async def sent(web_harness: WebHarness, said: bytes) -> asyncio.StreamWriter:
    _, writer = await asyncio.open_connection("127.0.0.1", web_harness.port)
    writer.write(said)
    return writer


async def leave_after(web_harness: WebHarness, said: bytes, *, reset: bool, seconds: float = 0) -> None:
    """Send a request and leave."""
    writer = await sent(web_harness, said)
    await asyncio.sleep(seconds)
    if reset:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
    writer.close()


def answered(lines: Sequence[Any]) -> list[int]:
    return [line["status"] for line in lines if line["event"] == "request.answered"]


REQUESTS = {
    "events": ("GET", "/pipeline/job/{}/events", b"", ()),
    "a long poll": ("GET", "/pipeline/job/{}", b"", ("Prefer: wait=30",)),
    "a job": ("GET", "/pipeline/job/{}", b"", ()),
    "history": ("GET", "/pipeline/job/{}/history", b"", ()),
    "explain": ("GET", "/pipeline/job/{}/explain", b"", ()),
    "a list": ("GET", "/pipeline/jobs", b"", ()),
    "the document": ("GET", "/openapi.json", b"", ()),
    "health": ("GET", "/healthz", b"", ()),
    "cancel": ("POST", "/pipeline/job/{}/cancel", b"", ()),
    "a whole submission": ("POST", "/pipeline/run", BODY, (f"Content-Length: {len(BODY)}",)),
    "half a body": ("POST", "/pipeline/run", BODY[:9], (f"Content-Length: {len(BODY)}",)),
    "half a batch": ("POST", "/pipeline/batch", BODY[:9], ("Transfer-Encoding: chunked",)),
    "an expectation": ("POST", "/pipeline/run", b"", ("Content-Length: 9", "Expect: 100-continue")),
    "an expectation nowhere": ("POST", "/nowhere", b"", ("Content-Length: 9", "Expect: 100-continue")),
}


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize(("method", "path", "body", "more"), REQUESTS.values(), ids=REQUESTS.keys())
async def test_a_client_that_leaves_makes_no_5xx_and_no_traceback(
    web_harness: WebHarness,
    ann: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    reset: bool,
    method: str,
    path: str,
    body: bytes,
    more: Sequence[str],
) -> None:
    monkeypatch.setattr(operations, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(parsing, "READ_SECONDS", 0.2)
    said = head(method, path.format(await submit(ann)), *more) + body
    with capture_logs() as lines:
        async with asyncio.timeout(15):
            for seconds in (0, 0, 0.001, 0.003, 0.01, 0.05):
                await leave_after(web_harness, said, reset=reset, seconds=seconds)
            async with ann.get("/healthz") as response:
                assert response.status == 200
            await until(lambda: HTTP_IN_FLIGHT._value.get() == 0)
    assert max(answered(lines)) < 500
    assert {line["event"] for line in lines} == {"request.answered"}
    assert not caplog.records


async def test_a_stream_whose_client_has_left_is_a_499_in_log_and_metrics(
    web_harness: WebHarness, ann: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = await submit(ann)
    read, gate = web_harness.store.read, asyncio.Event()

    async def slow(*args: Any) -> Any:
        await gate.wait()
        return await read(*args)

    monkeypatch.setattr(web_harness.store, "read", slow)
    with capture_logs() as lines:
        async with asyncio.timeout(15):
            _, writer = await asyncio.open_connection("127.0.0.1", web_harness.port)
            writer.write(head("GET", f"/pipeline/job/{job_id}/events"))
            await until(lambda: len(web_harness.store.watcher) == 1)
            writer.close()
            async with ann.get("/healthz") as response:
                assert response.status == 200
            gate.set()
            await until(lambda: 499 in answered(lines))
    async with ann.get("/healthz") as response:
        assert response.status == 200


async def test_a_large_body_whose_client_leaves_before_its_turn_is_not_worked_on(
    web_harness: WebHarness, ann: Any
) -> None:
    batch = orjson.dumps({"jobs": [JOB | {"content": "x" * offload.LARGE_BYTES}]})
    packed = gzip.compress(batch)
    bodies = (
        head("POST", "/pipeline/batch", f"Content-Length: {len(batch)}") + batch,
        head("POST", "/pipeline/batch", f"Content-Length: {len(packed)}", "Content-Encoding: gzip") + packed,
    )
    desk = web_harness.api.offload
    with capture_logs() as lines:
        async with asyncio.timeout(15):
            async with desk._turn:
                writers = [await sent(web_harness, said) for said in bodies]
                await until(lambda: desk._waiting > len(batch))
                for writer in writers:
                    writer.close()
                async with ann.get("/healthz") as response:
                    assert response.status == 200
            await until(lambda: len(answered(lines)) == 3)
    assert answered(lines) == [200, 499, 499]
    async with ann.get("/pipeline/jobs") as response:
        assert (await response.json())["jobs"] == []


async def test_half_a_body_is_a_499(web_harness: WebHarness) -> None:
    with capture_logs() as lines:
        async with asyncio.timeout(15):
            said = head("POST", "/pipeline/run", "Content-Length: 100") + BODY[:9]
            await leave_after(web_harness, said, reset=False, seconds=0.1)
            await until(lambda: answered(lines))
    assert answered(lines) == [499]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConnectionResetError("the database's"), 500),
        (psycopg.OperationalError("the connection is lost"), 503),
    ],
)
async def test_a_lost_connection_of_ours_stays_ours(
    web_harness: WebHarness, ann: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    async def fails(*_args: Any) -> Any:
        raise error

    job_id = await submit(ann)
    monkeypatch.setattr(web_harness.store, "read", fails)
    async with ann.get(f"/pipeline/job/{job_id}/events") as response:
        assert response.status == status


async def test_a_client_that_leaves_before_it_is_turned_away_is_a_499(
    web_harness: WebHarness, ann: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = await submit(ann)
    asked, gate = asyncio.Event(), asyncio.Event()

    async def overloaded(*_args: Any) -> Any:
        asked.set()
        await gate.wait()
        raise Overloaded("too much is waiting")

    monkeypatch.setattr(web_harness.store, "read", overloaded)
    with capture_logs() as lines:
        async with asyncio.timeout(15):
            await leave_after(web_harness, head("GET", f"/pipeline/job/{job_id}"), reset=True, seconds=0.2)
            await asked.wait()
            async with ann.get("/healthz") as response:
                assert response.status == 200
            gate.set()
            await until(lambda: len(answered(lines)) == 2)
    assert answered(lines) == [200, 499]
    assert {line["event"] for line in lines} == {"request.answered"}
