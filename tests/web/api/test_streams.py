"""Server-Sent Events: the audit trail and progress as they happen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson
import pytest

from engine.errors import Overloaded
from ops.waiting import until
from tests.support.web_harness import ManualWorker, WebHarness, bearer, submit
from web import operations
from web.api import streams

Event = tuple[str | None, str | None, Any]


@asynccontextmanager
async def stream(client: aiohttp.ClientSession, job_id: str, last: str | None = None) -> AsyncIterator[Any]:
    headers = {} if last is None else {"Last-Event-ID": last}
    async with client.get(f"/pipeline/job/{job_id}/events", headers=headers) as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/event-stream"
        assert response.headers["X-Request-Id"]
        assert "Server" not in response.headers
        yield events(response)


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[Event]:
    fields: dict[str, str] = {}
    async for line in response.content:
        text = line.decode().rstrip("\r\n")
        if text:
            name, _, value = text.partition(": ")
            fields[name] = value
        elif "data" in fields:
            yield fields.get("event"), fields.get("id"), orjson.loads(fields["data"])
            fields = {}


async def ids(client: aiohttp.ClientSession, job_id: str, last: str | None = None) -> list[str | None]:
    async with asyncio.timeout(5), stream(client, job_id, last) as frames:
        return [seq async for _, seq, _ in frames]


async def test_transitions_and_progress_arrive_as_they_happen_until_the_terminal_one(
    ann: Any, manual_worker: ManualWorker
) -> None:
    job_id = await submit(ann)
    async with asyncio.timeout(10), stream(ann, job_id) as frames:
        event, seq, first = await anext(frames)
        assert (event, seq, first["from_status"], first["to_status"]) == ("status", "0", None, "pending")
        attempt = await manual_worker.claim()
        event, seq, second = await anext(frames)
        assert (event, seq, second["to_status"], second["attempt"]) == ("status", "1", "processing", 1)
        await manual_worker.progress(attempt, 1, 0.5, "half-way\nthere")
        assert await anext(frames) == ("progress", None, {"fraction": 0.5, "message": "half-way\nthere"})
        await manual_worker.progress(attempt, 2, 0.75, "nearly")
        assert await anext(frames) == ("progress", None, {"fraction": 0.75, "message": "nearly"})
        await manual_worker.finish(attempt, output={})
        event, seq, last = await anext(frames)
        assert (event, seq, last["to_status"]) == ("status", "2", "completed")
        assert [rest async for rest in frames] == []


async def test_a_reconnect_resumes_after_the_last_id_with_the_latest_progress(
    ann: Any, manual_worker: ManualWorker
) -> None:
    job_id = await submit(ann)
    attempt = await manual_worker.claim()
    await manual_worker.progress(attempt, 1, 0.25, "old")
    await manual_worker.progress(attempt, 2, 0.5, "latest")
    async with asyncio.timeout(10), stream(ann, job_id, "0") as frames:
        assert (await anext(frames))[1] == "1"
        assert await anext(frames) == ("progress", None, {"fraction": 0.5, "message": "latest"})
        await manual_worker.finish(attempt)
        assert (await anext(frames))[1] == "2"


async def test_a_finished_jobs_trail_is_replayed_from_any_place(
    ann: Any, manual_worker: ManualWorker
) -> None:
    job_id = await submit(ann)
    await manual_worker.finish(await manual_worker.claim())
    assert await ids(ann, job_id) == ["0", "1", "2"]
    assert await ids(ann, job_id, "0") == ["1", "2"]
    for odd in ("-1", "x", "", "1.5", "٣", "9" * 40):
        assert await ids(ann, job_id, odd) == ["0", "1", "2"]


@pytest.mark.parametrize("last", ["2", "3", "999999"])
async def test_204_for_who_has_the_terminal_event_already(
    ann: Any, manual_worker: ManualWorker, last: str
) -> None:
    job_id = await submit(ann)
    await manual_worker.finish(await manual_worker.claim())
    async with ann.get(f"/pipeline/job/{job_id}/events", headers={"Last-Event-ID": last}) as response:
        assert response.status == 204
        assert await response.read() == b""


@pytest.mark.parametrize("last", ["2", "999999"])
async def test_an_id_from_the_future_hides_nothing_that_is_to_come(
    ann: Any, manual_worker: ManualWorker, last: str
) -> None:
    job_id = await submit(ann)
    async with asyncio.timeout(5), stream(ann, job_id, last) as frames:
        await manual_worker.finish(await manual_worker.claim())
        assert [seq async for _, seq, _ in frames] == ["1", "2"]


async def test_a_terminal_transition_before_a_retry_does_not_end_the_stream(
    ann: Any, manual_worker: ManualWorker
) -> None:
    job_id = await submit(ann)
    await manual_worker.fail(await manual_worker.claim())
    async with ann.post(f"/pipeline/job/{job_id}/retry") as response:
        assert response.status == 202
    async with asyncio.timeout(10), stream(ann, job_id) as frames:
        assert [(await anext(frames))[1] for _ in range(4)] == ["0", "1", "2", "3"]
        await manual_worker.finish(await manual_worker.claim())
        assert [seq async for _, seq, _ in frames] == ["4", "5"]


async def test_a_ping_keeps_an_idle_stream_open(ann: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "PING_SECONDS", 0.05)
    job_id = await submit(ann)
    async with asyncio.timeout(5), ann.get(f"/pipeline/job/{job_id}/events") as response:
        async for line in response.content:
            if line.startswith(b":"):
                break
        else:
            pytest.fail("the stream ended")


async def test_a_client_that_goes_away_gives_its_place_back(
    web_harness: WebHarness, ann: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "PATIENCE_SECONDS", 0.05)
    job_id = await submit(ann)
    async with asyncio.timeout(5):
        async with stream(ann, job_id) as frames:
            await anext(frames)
            assert len(web_harness.store.watcher) == 1
        await until(lambda: len(web_harness.store.watcher) == 0)


async def test_a_stream_says_once_at_its_start_when_to_reconnect(ann: Any) -> None:
    job_id = await submit(ann)
    async with asyncio.timeout(5), ann.get(f"/pipeline/job/{job_id}/events") as response:
        first = (await response.content.readline()).decode()
        assert first.startswith("retry: ")
        assert 1000 <= int(first.removeprefix("retry: ")) <= 3000
        assert await response.content.readline() == b"\r\n"
        assert (await response.content.readline()).startswith(b"id: 0")


@pytest.mark.parametrize("more", ["", "Connection: keep-alive\r\n"])
async def test_a_stream_to_http_1_0_is_plain_and_ends_with_the_connection(
    web_harness: WebHarness, ann: Any, manual_worker: ManualWorker, more: str
) -> None:
    job_id = await submit(ann)
    await manual_worker.finish(await manual_worker.claim(), output="done")
    asked = f"GET /pipeline/job/{job_id}/events HTTP/1.0\r\n{more}"
    asked += "".join(f"{name}: {value}\r\n" for name, value in bearer().items()) + "\r\n"
    async with asyncio.timeout(5):
        reader, writer = await asyncio.open_connection("127.0.0.1", web_harness.port)
        writer.write(asked.encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
    assert b"chunked" not in head.lower()
    assert b"\r\nconnection: close" in head.lower()
    assert body.startswith(b"retry: ")
    assert body.count(b"event: status\r\n") == 3


async def test_503_where_too_many_wait_already(
    web_harness: WebHarness, ann: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = await submit(ann)
    monkeypatch.setattr(web_harness.store.watcher, "_max_watches", 1)
    async with stream(ann, job_id) as frames:
        await anext(frames)
        with pytest.raises(Overloaded), web_harness.store.watcher.watch(None):  # type: ignore[arg-type]
            pass
        async with ann.get(f"/pipeline/job/{job_id}/events") as response:
            assert response.status == 503
            assert response.headers["Retry-After"]


async def test_closing_ends_streams_and_long_polls_with_what_is_known(
    web_harness: WebHarness, ann: Any
) -> None:
    job_id = await submit(ann)

    async def polled() -> Any:
        async with ann.get(f"/pipeline/job/{job_id}", headers={"Prefer": "wait=30"}) as response:
            return await response.json()

    async with asyncio.timeout(5), stream(ann, job_id) as frames:
        await anext(frames)
        poll = asyncio.create_task(polled())
        await until(lambda: len(web_harness.store.watcher) == 2)
        web_harness.store.watcher.close()
        assert [rest async for rest in frames] == []
        assert (await poll)["status"] == "pending"
