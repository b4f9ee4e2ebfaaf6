"""Accepting jobs: one, many, and the same ones again."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import aiohttp
import pytest
from psycopg import AsyncConnection

from tests.support.web_harness import JOB, ManualWorker, WebHarness, get, served, submit

Conn = AsyncConnection[Any]


async def count(conn: Conn, table: str) -> int:
    row = await (await conn.execute(f"SELECT count(*) FROM {table}")).fetchone()  # noqa: S608 - a test's own names
    assert row is not None
    return int(row[0])


async def test_an_accepted_job_is_durable_with_its_outbox_row_and_first_audit_row(
    ann: Any, conn: Conn
) -> None:
    async with ann.post("/pipeline/run", json=JOB) as response:
        body = await response.json()
        assert response.status == 202
        assert response.headers["Location"] == f"/pipeline/job/{body['job_id']}"
        assert response.headers["Retry-After"] == "1"
        assert "Idempotent-Replayed" not in response.headers
    self = f"/pipeline/job/{body['job_id']}"
    links = {
        "self": self,
        "history": f"{self}/history",
        "events": f"{self}/events",
        "cancel": f"{self}/cancel",
    }
    assert body == {"job_id": body["job_id"], "status": "pending", "links": links}
    assert UUID(body["job_id"]).version == 7
    row = await (
        await conn.execute(
            "SELECT j.user_id, j.content, o.status::text, a.seq FROM jobs j"
            " JOIN outbox o ON o.job_id = j.id JOIN job_state_records a ON a.job_id = j.id WHERE j.id = %s",
            [body["job_id"]],
        )
    ).fetchall()
    assert row == [("ann", "hello", "ready", 0)]


async def test_every_member_of_a_job_reaches_the_job(ann: Any, conn: Conn) -> None:
    run_at = datetime.now(UTC) + timedelta(hours=1)
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    job = {
        "content": "héllo ✓",
        "preset": "typed",
        "metadata": {"format": "plain", "speed": 7},
        "priority": 1,
        "run_at": run_at.isoformat(),
        "max_attempts": 9,
        "timeout_seconds": 77,
    }
    async with ann.post("/pipeline/run", json=job, headers={"traceparent": trace}) as response:
        job_id = (await response.json())["job_id"]
    shown = await get(ann, job_id)
    assert {name: shown[name] for name in job.keys() - {"run_at"}} == {
        name: job[name] for name in job.keys() - {"run_at"}
    }
    assert datetime.fromisoformat(shown["run_at"]) == run_at
    assert shown["run_at"].endswith("Z")
    row = await (await conn.execute("SELECT traceparent FROM jobs WHERE id = %s", [job_id])).fetchone()
    assert row == (trace,)


async def test_a_delay_counts_from_now_and_a_broken_traceparent_is_ignored(ann: Any, conn: Conn) -> None:
    async with ann.post(
        "/pipeline/run", json=JOB | {"delay_seconds": 90.5}, headers={"traceparent": "00-zz-1-01"}
    ) as response:
        job_id = (await response.json())["job_id"]
    row = await (
        await conn.execute(
            "SELECT extract(epoch FROM run_at - created_at)::float, traceparent FROM jobs WHERE id = %s",
            [job_id],
        )
    ).fetchone()
    assert row is not None
    assert row[0] == pytest.approx(90.5, abs=5)
    assert row[1] is None


@pytest.mark.parametrize(
    "run_at", ["0001-01-01T00:00:00Z", "1969-12-31T23:59:59+00:00", "2001-01-01T00:00:00-12:00"]
)
async def test_a_time_long_past_means_at_once(ann: Any, conn: Conn, run_at: str) -> None:
    job_id = await submit(ann, run_at=run_at)
    row = await (await conn.execute("SELECT status::text FROM outbox WHERE job_id = %s", [job_id])).fetchone()
    assert row == ("ready",)


async def test_defaults_are_the_presets(ann: Any) -> None:
    shown = await get(ann, await submit(ann))
    assert (shown["max_attempts"], shown["timeout_seconds"]) == (3, 30)
    assert (shown["priority"], shown["metadata"]) == (2, {})


async def test_a_batch_is_accepted_in_the_order_given(ann: Any, conn: Conn) -> None:
    jobs = [JOB | {"content": f"job {n}"} for n in range(1000)]
    async with ann.post("/pipeline/batch", json={"jobs": jobs}) as response:
        body = await response.json()
        assert response.status == 202
    assert body.keys() == {"job_ids"}
    rows = await (await conn.execute("SELECT id, content FROM jobs")).fetchall()
    contents = {str(job_id): content for job_id, content in rows}
    assert [contents[job_id] for job_id in body["job_ids"]] == [job["content"] for job in jobs]


async def test_a_batch_with_one_bad_job_accepts_none(ann: Any, conn: Conn) -> None:
    jobs = [JOB, JOB | {"preset": "nobody"}, JOB | {"priority": 9}]
    async with ann.post("/pipeline/batch", json={"jobs": [jobs[0], jobs[2]]}) as response:
        assert response.status == 422
        assert [fault["pointer"] for fault in (await response.json())["errors"]] == ["/jobs/1/priority"]
    async with ann.post("/pipeline/batch", json={"jobs": jobs[:2]}) as response:
        assert response.status == 422
        assert [fault["pointer"] for fault in (await response.json())["errors"]] == ["/jobs/1/preset"]
    assert await count(conn, "jobs") == 0


@pytest.mark.parametrize("jobs", [[], [JOB] * 1001])
async def test_a_batch_holds_1_to_1000_jobs(ann: Any, jobs: list[Any]) -> None:
    async with ann.post("/pipeline/batch", json={"jobs": jobs}) as response:
        assert response.status == 422


async def test_requests_that_arrive_together_share_a_transaction_and_one_bad_item_fails_alone(
    ann: Any, conn: Conn
) -> None:
    good = [ann.post("/pipeline/run", json=JOB) for _ in range(60)]
    bad = [ann.post("/pipeline/run", json=JOB | {"content": "\x00"}) for _ in range(4)]
    async with asyncio.timeout(10):
        answers = await asyncio.gather(*good, *bad)
    statuses = [answer.status for answer in answers]
    for answer in answers:
        answer.release()
    assert statuses == [202] * 60 + [422] * 4
    assert await count(conn, "jobs") == 60
    row = await (await conn.execute("SELECT count(DISTINCT xmin::text) FROM jobs")).fetchone()
    assert row is not None
    assert row[0] < 40


# Idempotency


async def post(
    client: aiohttp.ClientSession, key: str, body: Any = None, path: str = "run"
) -> tuple[Any, ...]:
    async with client.post(
        f"/pipeline/{path}", json=body or JOB, headers={"Idempotency-Key": key}
    ) as response:
        replayed = response.headers.get("Idempotent-Replayed")
        return response.status, response.headers.get("Location"), await response.read(), replayed


async def test_the_same_key_and_body_get_the_first_answer_again(
    ann: Any, conn: Conn, manual_worker: ManualWorker
) -> None:
    first = await post(ann, "k1", {"content": "a", "preset": "echo", "metadata": {"x": 1, "y": [1, 2]}})
    assert first[0] == 202
    assert first[3] is None
    await manual_worker.finish(await manual_worker.claim(), output="done")
    reordered = {"metadata": {"y": [1, 2], "x": 1}, "preset": "echo", "content": "a"}
    assert await post(ann, "k1", reordered) == (*first[:3], "true")
    assert await post(ann, '"k1"', reordered) == (*first[:3], "true")
    assert await count(conn, "jobs") == 1


async def test_the_same_key_with_another_body_is_refused(ann: Any, conn: Conn) -> None:
    await post(ann, "k1")
    status, _, body, _ = await post(ann, "k1", JOB | {"content": "other"})
    assert status == 422
    assert b"Idempotency-Key" in body
    assert await count(conn, "jobs") == 1


async def test_a_key_belongs_to_its_owner_and_route(ann: Any, bob: Any, conn: Conn) -> None:
    assert (await post(ann, "k1"))[3] is None
    assert (await post(bob, "k1"))[3] is None
    assert (await post(ann, "k1", {"jobs": [JOB]}, "batch"))[3] is None
    assert await count(conn, "jobs") == 3


async def test_a_batch_is_replayed_whole(ann: Any, conn: Conn) -> None:
    body = {"jobs": [JOB, JOB | {"content": "two"}]}
    first = await post(ann, "k1", body, "batch")
    assert first[0] == 202
    assert await post(ann, "k1", body, "batch") == (*first[:3], "true")
    assert await count(conn, "jobs") == 2


async def test_many_requests_at_once_with_one_key_make_one_job(ann: Any, conn: Conn) -> None:
    async with asyncio.timeout(10):
        answers = await asyncio.gather(*(post(ann, "same") for _ in range(100)))
    assert {answer[0] for answer in answers} == {202}
    assert len({answer[2] for answer in answers}) == 1
    assert sum(answer[3] is None for answer in answers) == 1
    assert await count(conn, "jobs") == 1


async def test_a_refused_request_leaves_its_key_free(ann: Any) -> None:
    assert (await post(ann, "k1", JOB | {"preset": "nobody"}))[0] == 422
    assert (await post(ann, "k1"))[0] == 202


@pytest.mark.parametrize("key", ["", " ", '""', "x" * 256, "häkchen", "tab\there"])
async def test_a_key_is_1_to_255_printable_ascii_characters(ann: Any, key: str) -> None:
    assert (await post(ann, key))[0] == 422


@pytest.mark.parametrize("key", ["x", "x" * 255, '"' + "x" * 255 + '"', "a b", '"quo\\"ted"'])
async def test_a_good_key_is_taken_quoted_or_bare(ann: Any, key: str) -> None:
    first = await post(ann, key)
    assert first[0] == 202
    assert await post(ann, key) == (*first[:3], "true")


async def test_two_keys_in_one_request_are_refused(ann: Any) -> None:
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    async with ann.post("/pipeline/run", json=JOB, headers=headers) as response:
        assert response.status == 422


async def test_keys_that_race_through_two_processes_make_one_job_each(
    web_harness: WebHarness, database_url: str, conn: Conn
) -> None:
    async with served(database_url) as other, asyncio.timeout(20):
        clients = [await web_harness.client("ann"), await other.client("ann")]
        keys = [f"k{n}" for n in range(20)]
        asked = [
            (client, key)
            for turn in range(5)
            for key in (keys if turn % 2 else keys[::-1])
            for client in clients
        ]
        answers = await asyncio.gather(*(post(client, key) for client, key in asked))
    ids: dict[str, set[bytes]] = {}
    for (_, key), (status, _, body, _) in zip(asked, answers, strict=True):
        assert status == 202
        ids.setdefault(key, set()).add(body)
    assert {len(bodies) for bodies in ids.values()} == {1}
    assert sum(answer[3] is None for answer in answers) == len(keys)
    assert await count(conn, "jobs") == len(keys)


@pytest.mark.parametrize(
    "changes",
    [
        {"content": "other"},
        {"preset": "typed", "metadata": {"format": "plain"}},
        {"metadata": {"x": 1}},
        {"priority": 3},
        {"delay_seconds": 1},
        {"max_attempts": 1},
        {"timeout_seconds": 9},
    ],
    ids=lambda changes: next(iter(changes)),
)
@pytest.mark.parametrize("route", ["run", "batch"])
async def test_bodies_that_differ_in_one_member_are_two_bodies(
    ann: Any, conn: Conn, route: str, changes: Any
) -> None:
    bodies = [JOB, JOB | changes]
    first, other = bodies if route == "run" else [{"jobs": [body]} for body in bodies]
    assert (await post(ann, "k1", first, route))[0] == 202
    assert (await post(ann, "k1", other, route))[0] == 422
    assert await count(conn, "jobs") == 1
