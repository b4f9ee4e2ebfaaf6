"""POST …/retry with an Idempotency-Key: a repeated request is answered as the first was, and redrives nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from engine.model import JobState
from tests.support.database import Conn, fetchone
from tests.support.web_harness import ManualWorker, WebHarness, get, submit

KEY = {"Idempotency-Key": "once"}


async def failed(client: aiohttp.ClientSession, worker: ManualWorker) -> str:
    job_id = await submit(client)
    await worker.fail(await worker.claim())
    return job_id


async def retry(client: aiohttp.ClientSession, job_id: str, **headers: str) -> tuple[int, Any, str | None]:
    async with client.post(f"/pipeline/job/{job_id}/retry", headers=headers) as response:
        return response.status, await response.json(), response.headers.get("Idempotent-Replayed")


async def redrives(conn: Conn, job_id: str) -> int:
    (count,) = await fetchone(
        conn, "SELECT count(*) FROM job_state_records WHERE job_id = %s AND reason = 'redriven'", job_id
    )
    return int(count)


async def test_a_repeated_retry_is_answered_as_the_first_whatever_has_become_of_the_job(
    ann: Any, conn: Conn, manual_worker: ManualWorker
) -> None:
    job_id = await failed(ann, manual_worker)
    status, body, replayed = await retry(ann, job_id, **KEY)
    assert (status, body["status"], replayed) == (202, "pending", None)

    async def again() -> None:
        assert await retry(ann, job_id, **KEY) == (202, body, "true")
        assert await retry(ann, job_id.upper(), **{"Idempotency-Key": '"once"'}) == (202, body, "true")
        assert await redrives(conn, job_id) == 1

    await again()
    attempt = await manual_worker.claim()
    await again()
    await manual_worker.fail(attempt)
    await again()
    assert (await get(ann, job_id))["status"] == "failed"
    # A new key is a new wish.
    assert (await retry(ann, job_id, **{"Idempotency-Key": "twice"}))[::2] == (202, None)
    await manual_worker.finish(await manual_worker.claim())
    assert await redrives(conn, job_id) == 2
    assert await retry(ann, job_id, **KEY) == (202, body, "true")


async def test_of_many_retries_at_once_with_one_key_one_redrives_and_all_are_accepted(
    ann: Any, conn: Conn, manual_worker: ManualWorker
) -> None:
    job_id = await failed(ann, manual_worker)
    answers = await asyncio.gather(*(retry(ann, job_id, **KEY) for _ in range(30)))
    assert [status for status, *_ in answers] == [202] * 30
    assert sorted(str(replayed) for *_, replayed in answers) == ["None"] + ["true"] * 29
    assert len({str(body) for _, body, _ in answers}) == 1
    assert await redrives(conn, job_id) == 1


async def test_a_retry_without_a_key_is_refused_the_second_time_and_a_refused_one_stores_no_key(
    ann: Any, conn: Conn, manual_worker: ManualWorker
) -> None:
    job_id = await submit(ann)
    assert (await retry(ann, job_id, **KEY))[0] == 409
    await manual_worker.fail(await manual_worker.claim())
    assert (await retry(ann, job_id, **KEY))[::2] == (202, None)
    assert (await retry(ann, job_id))[0] == 409
    assert (await retry(ann, job_id, **{"Idempotency-Key": "other"}))[0] == 409
    assert await fetchone(conn, "SELECT array_agg(key) FROM idempotency_keys") == (["once"],)


async def test_a_key_is_one_owner_s_and_one_job_s(
    web_harness: WebHarness, ann: Any, bob: Any, conn: Conn, manual_worker: ManualWorker
) -> None:
    first, second = await failed(ann, manual_worker), await failed(ann, manual_worker)
    assert (await retry(ann, first, **KEY))[0] == 202
    assert (await retry(ann, second, **KEY))[::2] == (202, None)
    assert (await retry(bob, first, **KEY))[0] == 404
    operator = await web_harness.client("op", scope="jobs:admin jobs:write")
    assert (await retry(operator, first, **KEY))[0] == 409
    for _ in range(2):
        await manual_worker.fail(await manual_worker.claim())
    assert (await retry(operator, first, **KEY))[::2] == (202, None)
    assert (await retry(ann, first, **KEY))[::2] == (202, "true")
    # A key of a submission is another route's.
    async with ann.post("/pipeline/run", json={"content": "x", "preset": "echo"}, headers=KEY) as response:
        assert response.status == 202
        assert "Idempotent-Replayed" not in response.headers
    assert await fetchone(
        conn, "SELECT array_agg(DISTINCT owner ORDER BY owner), count(*) FROM idempotency_keys"
    ) == (["ann", "op"], 4)


async def test_a_key_is_kept_for_a_day(ann: Any, conn: Conn, manual_worker: ManualWorker) -> None:
    job_id = await failed(ann, manual_worker)
    assert (await retry(ann, job_id, **KEY))[0] == 202
    (kept,) = await fetchone(
        conn, "SELECT expires_at - clock_timestamp() BETWEEN '23 h 59 m' AND '24 h' FROM idempotency_keys"
    )
    assert kept
    await conn.execute("UPDATE idempotency_keys SET expires_at = clock_timestamp() - interval '1 s'")
    assert (await retry(ann, job_id, **KEY))[0] == 409
    await manual_worker.fail(await manual_worker.claim())
    assert (await retry(ann, job_id, **KEY))[::2] == (202, None)
    assert (await retry(ann, job_id, **KEY))[::2] == (202, "true")
    assert await redrives(conn, job_id) == 2


@pytest.mark.parametrize("key", ["", '"', "k" * 256, "\u00e9", '"a'])
async def test_an_invalid_key_is_refused_and_nothing_is_redriven(
    ann: Any, conn: Conn, manual_worker: ManualWorker, key: str
) -> None:
    job_id = await failed(ann, manual_worker)
    status, problem, _ = await retry(ann, job_id, **{"Idempotency-Key": key})
    assert (status, problem["errors"][0]["pointer"]) == (422, "/Idempotency-Key")
    assert await redrives(conn, job_id) == 0


async def test_a_cancelled_job_is_retried_once_with_a_key_and_a_cancel_needs_none(
    ann: Any, conn: Conn
) -> None:
    job_id = await submit(ann)
    for _ in range(2):
        async with ann.post(f"/pipeline/job/{job_id}/cancel", headers=KEY) as response:
            assert (response.status, (await response.json())["status"]) == (200, JobState.CANCELLED.lower())
    assert (await retry(ann, job_id, **KEY))[::2] == (202, None)
    assert (await retry(ann, job_id, **KEY))[::2] == (202, "true")
    assert await redrives(conn, job_id) == 1
