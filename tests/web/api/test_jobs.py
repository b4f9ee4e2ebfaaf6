"""Looking at jobs, and what their owner may do to them."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import orjson
import pytest
from psycopg import AsyncConnection
from yarl import URL

from engine.model import JobState
from ops.waiting import until
from tests.support.web_harness import JOB, WAIT, ManualWorker, WebHarness, get, served, submit

Conn = AsyncConnection[Any]

MEMBERS = (
    "job_id, status, preset, content, metadata, priority, attempt, max_attempts, timeout_seconds, created_at,"
    " updated_at, run_at, started_at, completed_at, progress, result, error, links"
)


async def test_a_job_object_has_exactly_its_members(ann: Any, manual_worker: ManualWorker) -> None:
    job_id = await submit(ann, metadata={"b": 1, "a": [None, 1.5, "x"]})
    pending = await get(ann, job_id)
    assert sorted(pending) == sorted(MEMBERS.split(", "))
    assert (pending["status"], pending["attempt"]) == ("pending", 0)
    assert pending["metadata"] == {"b": 1, "a": [None, 1.5, "x"]}
    assert [pending[name] for name in ("started_at", "completed_at", "progress", "result", "error")] == [
        None
    ] * 5

    attempt = await manual_worker.claim()
    await manual_worker.progress(attempt, 1, 0.25, "a quarter")
    running = await get(ann, job_id)
    assert (running["status"], running["attempt"]) == ("processing", 1)
    assert running["progress"] == {"fraction": 0.25, "message": "a quarter"}
    assert running["started_at"].endswith("Z")

    await manual_worker.finish(attempt, output={"words": [1, "two", None], "big": 1e300})
    done = await get(ann, job_id)
    assert done["status"] == "completed"
    assert done["result"] == {"words": [1, "two", None], "big": 1e300}
    assert done["progress"] is None
    assert done["completed_at"] >= done["started_at"] >= done["created_at"]


async def test_an_error_is_shown_while_a_retry_waits_and_when_it_was_the_last(
    ann: Any, manual_worker: ManualWorker
) -> None:
    job_id = await submit(ann)
    error = {"type": "ValueError", "message": "no good", "attempt": 1}
    await manual_worker.release(
        await manual_worker.claim(), reason="error", delay=0.0, error=orjson.dumps(error).decode(), spent=1
    )
    waiting = await get(ann, job_id)
    assert (waiting["status"], waiting["error"]) == ("pending", error)
    await manual_worker.conn.execute(
        "UPDATE outbox SET status = 'ready', ready_at = now() WHERE job_id = %s", [job_id]
    )
    await manual_worker.fail(await manual_worker.claim())
    failed = await get(ann, job_id)
    assert (failed["status"], failed["attempt"], failed["result"]) == ("failed", 2, None)
    assert failed["error"] == error | {"attempt": 2}


async def test_a_preset_that_is_gone_falls_back_to_a_pipelines_defaults(ann: Any, conn: Conn) -> None:
    row = await (await conn.execute("SELECT outrider_enqueue('ann', 'forgotten', 'x')")).fetchone()
    assert row is not None
    shown = await get(ann, row[0])
    assert (shown["max_attempts"], shown["timeout_seconds"]) == (5, 300)


async def test_an_etag_changes_with_state_and_progress_and_304_saves_the_body(
    ann: Any, manual_worker: ManualWorker
) -> None:
    job_id = await submit(ann)
    path = f"/pipeline/job/{job_id}"
    tags: list[str] = []

    async def changed() -> str:
        async with ann.get(path, headers={"If-None-Match": ", ".join(tags) or '"none"'}) as response:
            assert response.status == 200
            tag = response.headers["ETag"]
        for given in (tag, f"W/{tag}", f'"a", {tag},W/"b"', "*"):
            async with ann.get(path, headers={"If-None-Match": given}) as response:
                assert response.status == 304
                assert response.headers["ETag"] == tag
                assert await response.read() == b""
        return str(tag)

    tags.append(await changed())
    attempt = await manual_worker.claim()
    tags.append(await changed())
    for n in (1, 2):
        await manual_worker.progress(attempt, n, n / 2, "")
        tags.append(await changed())
    await manual_worker.finish(attempt)
    tags.append(await changed())
    assert len(set(tags)) == 5
    assert all(tag.startswith('"') for tag in tags)


@pytest.mark.parametrize(
    ("prefer", "applied"), [("wait=5", "wait=5"), ("respond-async, wait=100", "wait=30")]
)
async def test_prefer_wait_returns_when_the_job_is_terminal(
    ann: Any, manual_worker: ManualWorker, prefer: str, applied: str
) -> None:
    job_id = await submit(ann)
    attempt = await manual_worker.claim()
    async with asyncio.timeout(5):
        answer = asyncio.create_task(get_with(ann, job_id, Prefer=prefer))
        await manual_worker.progress(attempt, 1, 0.5, "not yet")
        await manual_worker.finish(attempt, output=1)
        headers, body = await answer
    assert headers["Preference-Applied"] == applied
    assert body["status"] == "completed"


async def get_with(client: aiohttp.ClientSession, job_id: str, **headers: str) -> tuple[Any, Any]:
    async with client.get(f"/pipeline/job/{job_id}", headers=headers) as response:
        return response.headers, await response.json()


async def test_prefer_wait_returns_the_present_state_at_time_out(ann: Any) -> None:
    job_id = await submit(ann)
    async with asyncio.timeout(5):
        headers, body = await get_with(ann, job_id, Prefer="wait=1")
    assert headers["Preference-Applied"] == "wait=1"
    assert body["status"] == "pending"


@pytest.mark.parametrize(
    "prefer", ["wait", "wait=", "wait=x", "wait=-1", "return=minimal", "wait=1e9", ";;,,="]
)
async def test_a_preference_that_is_not_understood_is_ignored(ann: Any, prefer: str) -> None:
    headers, body = await get_with(ann, await submit(ann), Prefer=prefer)
    assert "Preference-Applied" not in headers
    assert body["status"] == "pending"


async def test_a_thousand_long_polls_wait_on_one_statement_and_wake_together(
    web_harness: WebHarness, manual_worker: ManualWorker
) -> None:
    ann = await web_harness.client("ann")
    job_id = await submit(ann)
    attempt = await manual_worker.claim()
    async with asyncio.timeout(30):
        answers = [asyncio.create_task(get_with(ann, job_id, Prefer="wait=20")) for _ in range(1000)]
        await until(lambda: len(web_harness.store.watcher) == 1000)
        assert not any(answer.done() for answer in answers)
        await manual_worker.finish(attempt)
        statuses = {body["status"] for _, body in await asyncio.gather(*answers)}
    assert statuses == {"completed"}
    assert len(web_harness.store.watcher) == 0


async def test_history_is_the_audit_trail_oldest_first(ann: Any, manual_worker: ManualWorker) -> None:
    job_id = await submit(ann)
    await manual_worker.finish(await manual_worker.claim())
    history = (await get(ann, job_id, "/history"))["history"]
    assert [(row["seq"], row["from_status"], row["to_status"], row["attempt"]) for row in history] == [
        (0, None, "pending", 0),
        (1, "pending", "processing", 1),
        (2, "processing", "completed", 1),
    ]
    assert {tuple(row) for row in history} == {
        ("seq", "from_status", "to_status", "timestamp", "attempt", "reason", "metadata")
    }
    assert all(row["timestamp"].endswith("Z") for row in history)


# Lists


async def pages(client: aiohttp.ClientSession, **parameters: Any) -> list[list[str]]:
    """The ids of every page, by following next_cursor; Link must lead to the same page."""
    found = []
    while True:
        async with client.get("/pipeline/jobs", params=parameters) as response:
            assert response.status == 200, await response.text()
            body = await response.json()
        found.append([job["job_id"] for job in body["jobs"]])
        if body["next_cursor"] is None:
            assert "Link" not in response.headers
            return found
        query = URL(response.links["next"]["url"]).query
        assert query["cursor"] == body["next_cursor"]
        parameters = dict(query)


async def test_a_list_is_newest_first_and_pages_cover_it_exactly_once(ann: Any, bob: Any) -> None:
    ids = [await submit(ann) for _ in range(7)]
    await submit(bob)
    expected = ids[::-1]
    assert await pages(ann) == [expected]
    assert await pages(ann, limit=3) == [expected[:3], expected[3:6], expected[6:]]
    assert await pages(ann, limit=7) == [expected]
    assert await pages(ann, offset=5) == [expected[5:]]
    assert await pages(ann, offset=10_000) == [[]]
    assert await pages(ann, limit=2, offset=4) == [expected[4:6], expected[6:]]


async def test_a_list_leaves_content_and_result_out_and_echoes_its_bounds(ann: Any) -> None:
    await submit(ann)
    async with ann.get("/pipeline/jobs", params={"limit": 5, "offset": 0}) as response:
        body = await response.json()
    assert (body["limit"], body["offset"], body["next_cursor"]) == (5, 0, None)
    [job] = body["jobs"]
    assert sorted(job) == sorted(set(MEMBERS.split(", ")) - {"content", "result"})


async def test_a_list_is_filtered_by_status_and_preset(ann: Any, manual_worker: ManualWorker) -> None:
    finished, failed, running = [await submit(ann) for _ in range(3)]
    await manual_worker.finish(await manual_worker.claim())
    await manual_worker.fail(await manual_worker.claim())
    await manual_worker.claim()
    typed = await submit(ann, preset="typed", metadata={"format": "plain"})
    cancelled = await submit(ann)
    async with ann.post(f"/pipeline/job/{cancelled}/cancel") as response:
        assert response.status == 200
    by_status = {
        "completed": [finished],
        "failed": [failed],
        "processing": [running],
        "pending": [typed],
        "cancelled": [cancelled],
    }
    for status, ids in by_status.items():
        assert await pages(ann, status=status) == [ids]
    assert await pages(ann, preset="typed") == [[typed]]
    assert await pages(ann, preset="typed", status="failed") == [[]]
    assert await pages(ann, status="pending", limit=1) == [[typed]]


async def test_an_operator_lists_and_sees_any_owners_jobs(web_harness: WebHarness, ann: Any) -> None:
    job_id = await submit(ann)
    operator = await web_harness.client("op", scope="jobs:read jobs:write jobs:admin")
    assert await pages(operator) == [[]]
    assert await pages(operator, owner="ann") == [[job_id]]
    assert (await get(operator, job_id))["content"] == "hello"
    async with operator.post(f"/pipeline/job/{job_id}/cancel") as response:
        assert response.status == 200


# Moves


async def move(client: aiohttp.ClientSession, job_id: str, name: str) -> tuple[int, Any]:
    async with client.post(f"/pipeline/job/{job_id}/{name}") as response:
        return response.status, (await response.json()).get("status")


async def test_cancelling_a_pending_job_is_done_at_once_and_can_be_said_twice(ann: Any) -> None:
    job_id = await submit(ann)
    assert await move(ann, job_id, "cancel") == (200, "cancelled")
    assert await move(ann, job_id, "cancel") == (200, "cancelled")
    assert (await get(ann, job_id))["status"] == "cancelled"


async def test_cancelling_a_running_job_asks_its_attempt_to_stop(
    ann: Any, manual_worker: ManualWorker
) -> None:
    job_id = await submit(ann)
    attempt = await manual_worker.claim()
    assert await move(ann, job_id, "cancel") == (202, "processing")
    await manual_worker.finish(attempt, JobState.CANCELLED)
    assert await move(ann, job_id, "cancel") == (200, "cancelled")


@pytest.mark.parametrize(
    "transport", [{}, {"transport": "pubsub", "pubsub_project": "test"}], ids=["postgres", "pubsub"]
)
async def test_a_cancellation_is_published_as_every_result_is(
    database_url: str, conn: Conn, transport: dict[str, Any]
) -> None:
    async with served(database_url, **transport) as harness:
        ann = await harness.client("ann")
        assert await move(ann, await submit(ann), "cancel") == (200, "cancelled")
    row = await (await conn.execute("SELECT array_agg(topic) FROM outbox_events")).fetchone()
    assert row == ((["results"] if transport else None),)


async def test_a_finished_job_cannot_be_cancelled_and_only_a_failed_or_cancelled_one_retried(
    ann: Any, manual_worker: ManualWorker
) -> None:
    completed, failed, pending = [await submit(ann) for _ in range(3)]
    await manual_worker.finish(await manual_worker.claim())
    await manual_worker.fail(await manual_worker.claim())
    for job_id, name in ((completed, "cancel"), (failed, "cancel"), (completed, "retry"), (pending, "retry")):
        assert await move(ann, job_id, name) == (409, 409)
    assert await move(ann, failed, "retry") == (202, "pending")
    assert (await get(ann, failed))["status"] == "pending"
    assert await move(ann, pending, "cancel") == (200, "cancelled")
    assert await move(ann, pending, "retry") == (202, "pending")


async def test_a_job_that_runs_again_wakes_the_workers_of_its_preset(
    web_harness: WebHarness, ann: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = await submit(ann)
    await move(ann, job_id, "cancel")
    told: list[set[str]] = []
    monkeypatch.setattr(web_harness.store, "notify", told.append)
    assert await move(ann, job_id, "retry") == (202, "pending")
    assert told == [{JOB["preset"]}]


async def test_explain_says_why(ann: Any) -> None:
    body = await get(ann, await submit(ann, delay_seconds=3600), "/explain")
    assert body.keys() == {"status", "summary", "facts", "estimate_seconds"}
    assert body["status"] == "pending"
    assert body["summary"]
    assert all(fact.keys() == {"code", "detail"} for fact in body["facts"])


async def test_presets_are_those_of_the_installation(ann: Any) -> None:
    async with ann.get("/pipeline/presets") as response:
        echo, typed = (await response.json())["presets"]
    assert echo == {
        "preset": "echo",
        "description": "Gives back what it got",
        "metadata_schema": None,
        "timeout_seconds": 30,
        "max_attempts": 3,
    }
    assert typed["metadata_schema"]["required"] == ["format"]


# Owners


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("GET", "/history"),
        ("GET", "/events"),
        ("GET", "/explain"),
        ("POST", "/cancel"),
        ("POST", "/retry"),
    ],
)
async def test_another_owners_job_looks_exactly_like_one_that_does_not_exist(
    ann: Any, bob: Any, method: str, path: str
) -> None:
    theirs, nobodys = await submit(ann), str(uuid4())
    answers = []
    for job_id in (theirs, nobodys, "not-an-id"):
        headers = {"X-Request-Id": "same", "If-None-Match": "*", "Prefer": "wait=0"}
        async with bob.request(method, f"/pipeline/job/{job_id}{path}", headers=headers) as response:
            assert response.status == 404
            kept = {
                name: value
                for name, value in response.headers.items()
                if name not in ("Date", "Content-Length")
            }
            answers.append((kept, (await response.read()).replace(job_id.encode(), b"ID")))
    assert answers[0] == answers[1] == answers[2]
    assert (await get(ann, theirs))["status"] == "pending"


async def test_an_id_in_capitals_is_the_same_id(ann: Any) -> None:
    job_id = await submit(ann)
    assert UUID((await get(ann, job_id.upper()))["job_id"]) == UUID(job_id)


async def test_jobs_of_two_owners_never_mix_in_one_grouped_read(ann: Any, bob: Any) -> None:
    mine, theirs = await submit(ann), await submit(bob)

    async def status(client: Any, job_id: str) -> int:
        async with client.get(f"/pipeline/job/{job_id}") as response:
            return int(response.status)

    async with asyncio.timeout(10):
        statuses = await asyncio.gather(
            *(status(client, job_id) for _ in range(25) for client in (ann, bob) for job_id in (mine, theirs))
        )
    assert statuses == [200, 404, 404, 200] * 25


async def test_a_job_from_sql_is_a_job_like_any_other(ann: Any, conn: Conn) -> None:
    row = await (
        await conn.execute("SELECT outrider_enqueue('ann', 'echo', %s)", [JOB["content"]])
    ).fetchone()
    assert row is not None
    assert (await get(ann, row[0]))["content"] == JOB["content"]


async def test_only_an_operator_may_name_an_owner(web_harness: WebHarness, ann: Any, bob: Any) -> None:
    """Nor does a scope that only looks like the operator's help."""
    job_id = await submit(ann)
    nearly = await web_harness.client(
        "bob", scope="jobs:read jobs:write jobs:admin-read xjobs:admin JOBS:ADMIN"
    )
    for client in (ann, bob, nearly):
        async with client.get("/pipeline/jobs", params={"owner": "ann"}) as response:
            assert response.status == 403
            assert 'scope="jobs:admin"' in response.headers["WWW-Authenticate"]
    async with nearly.get(f"/pipeline/job/{job_id}") as response:
        assert response.status == 404


async def test_pages_of_finished_jobs_are_in_the_order_of_their_ids_whatever_ended_first(
    web_harness: WebHarness, ann: Any, manual_worker: ManualWorker
) -> None:
    """The cursor names an id: in any other order pages would skip jobs or repeat them."""
    ids = [await submit(ann) for _ in range(4)]
    attempts = [await manual_worker.claim() for _ in ids]
    for n in (2, 0, 3, 1):
        await manual_worker.finish(attempts[n])
    newest_first = [[job_id] for job_id in reversed(ids)]
    assert await pages(ann, status="completed", limit=1) == newest_first
    operator = await web_harness.client("op", scope="jobs:admin")
    assert await pages(operator, owner="ann", status="completed", limit=1) == newest_first


async def test_the_link_to_the_next_page_keeps_every_filter(
    web_harness: WebHarness, ann: Any, manual_worker: ManualWorker
) -> None:
    echoes: list[str] = []
    for _ in range(3):
        echoes.insert(0, await submit(ann))
        await submit(ann, preset="typed", metadata={"format": "plain"})
    operator = await web_harness.client("op", scope="jobs:admin")
    assert await pages(ann, preset="echo", limit=1) == [[job_id] for job_id in echoes]
    assert await pages(operator, owner="ann", preset="echo", limit=2) == [echoes[:2], echoes[2:]]
    await manual_worker.claim()
    assert await pages(ann, status="pending", preset="echo", limit=1) == [[job_id] for job_id in echoes[:2]]


async def test_a_wait_goes_on_when_the_job_starts(
    web_harness: WebHarness, ann: Any, manual_worker: ManualWorker
) -> None:
    job_id = await submit(ann)
    watcher = web_harness.store.watcher

    def waits_for(version: int) -> bool:
        return answer.done() or {watch.seen for watch in watcher._watches} == {(version, 0)}

    answer = asyncio.create_task(get_with(ann, job_id, Prefer="wait=20"))
    try:
        await until(lambda: waits_for(0))
        attempt = await manual_worker.claim()
        await until(lambda: waits_for(1))
        assert not answer.done()
        await manual_worker.finish(attempt)
        async with asyncio.timeout(WAIT):
            _, body = await answer
    finally:
        answer.cancel()
    assert body["status"] == "completed"


async def test_changes_do_not_make_a_wait_longer(ann: Any, manual_worker: ManualWorker) -> None:
    job_id = await submit(ann)
    attempt = await manual_worker.claim()
    answer = asyncio.create_task(get_with(ann, job_id, Prefer="wait=1"))
    try:
        async with asyncio.timeout(6):
            changes = 0
            while not answer.done():
                changes += 1
                await manual_worker.progress(attempt, changes, 0.5, "still at it")
            _, body = await answer
    finally:
        answer.cancel()
    assert body["status"] == "processing"


async def test_a_redriven_job_wakes_the_workers(
    web_harness: WebHarness, ann: Any, manual_worker: ManualWorker
) -> None:
    woken: list[tuple[Any, ...]] = []
    web_harness.store.notify = lambda *presets: woken.append(presets)
    job_id = await submit(ann)
    await manual_worker.fail(await manual_worker.claim())
    woken.clear()
    assert await move(ann, job_id, "retry") == (202, "pending")
    assert woken == [({"echo"},)]
