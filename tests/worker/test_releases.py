"""Attempts that are leased to a worker and do not run there go back, at nobody's cost."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from engine.model import Attempt
from engine.moves import cancel, claim
from engine.storage.connections import Pool, open_pool
from tests.conftest import Connect
from tests.support.database import LANES, Conn, counters, fetchone, started, trail, worker
from tests.support.wire_proxy import wire_proxy
from tests.support.worker_harness import WorkerHarness, attempts
from worker.attempt_metrics import AttemptMetrics
from worker.releases import Releaser


def releaser(pool: Pool, *, publish_results: bool = False) -> Releaser:
    return Releaser(pool, AttemptMetrics(["p"]), publish_results=publish_results)


async def written(it: Releaser) -> int:
    """Wait until every write has ended, well or not; how many there were. A write that raises fails the test."""
    async with asyncio.timeout(10):
        return len(await asyncio.gather(*it._writing))


async def place(conn: Conn, attempt: Attempt) -> tuple[str, int, int | None]:
    """(status, position, worker) of its job in the outbox."""
    status, position, worker_id = await fetchone(
        conn, "SELECT status, position, worker_id FROM outbox WHERE job_id = %s", attempt.job.id
    )
    return status, position, worker_id


async def last_reason(conn: Conn, job_id: UUID) -> str:
    return str((await trail(conn, job_id))[-1][-1])


def finished(state: str) -> float:
    labels = {"preset": "p", "state": state}
    return REGISTRY.get_sample_value("outrider_jobs_finished_total", labels) or 0.0


async def test_attempts_that_were_never_held_go_back_to_their_old_place_and_spend_nothing(
    harness: WorkerHarness,
) -> None:
    conn, me = harness.conn, await worker(harness.conn)
    lost = [await started(conn, me) for _ in range(2)]
    later = await harness.enqueue()
    released, it = attempts("p", "released"), releaser(harness.pool)
    with capture_logs() as events:
        it.unknown(me, [attempt.key for attempt in lost])
        assert await written(it) == 1
    for attempt in lost:
        assert await place(conn, attempt) == ("ready", attempt.position, None)
        assert await counters(conn, attempt.job) == (1, 0, 0)
        assert (await trail(conn, attempt.job.id))[-1] == (
            2,
            "PROCESSING",
            "PENDING",
            1,
            "unknown to its worker",
        )
    assert [(event["event"], event["reason"], event["rows"]) for event in events] == [
        ("attempts.released", "unknown to its worker", 2)
    ]
    assert attempts("p", "released") == released + 2
    order = [each.job.id for each in await claim(conn, me, LANES, 2)]
    assert set(order) == {attempt.job.id for attempt in lost}
    assert later not in order


async def test_without_a_lease_nothing_is_released(harness: WorkerHarness) -> None:
    attempt = await started(harness.conn, await worker(harness.conn))
    it = releaser(harness.pool)
    it.unknown(None, [attempt.key])
    assert await written(it) == 0
    assert (await place(harness.conn, attempt))[0] == "leased"


async def test_a_lost_lease_is_taken_back_with_all_that_is_leased_under_it_and_only_once(
    harness: WorkerHarness,
) -> None:
    conn, first, second, third = harness.conn, *[await worker(harness.conn) for _ in range(3)]
    mine = [await started(conn, first), await started(conn, first), await started(conn, second)]
    other = await started(conn, third)
    it = releaser(harness.pool)
    for attempt in mine:
        it.lost(attempt.worker_id)
    assert await written(it) == 0
    assert {(await place(conn, attempt))[0] for attempt in mine} == {"leased"}
    it.take_back()
    it.take_back()
    assert await written(it) == 2
    for attempt in mine:
        assert await place(conn, attempt) == ("ready", attempt.position, None)
        assert await counters(conn, attempt.job) == (1, 0, 0)
        assert await last_reason(conn, attempt.job.id) == "lease lost"
    assert await place(conn, other) == ("leased", other.position, third)
    assert await fetchone(conn, "SELECT array_agg(id) FROM workers") == ([third],)
    it.take_back()
    assert await written(it) == 0


async def test_what_somebody_has_locked_is_taken_back_at_a_later_heartbeat(
    harness: WorkerHarness, connect: Connect
) -> None:
    conn, other, me = harness.conn, await connect(), await worker(harness.conn)
    attempt = await started(conn, me)
    it = releaser(harness.pool)
    it.lost(me)
    async with other.transaction():
        await other.execute("SELECT FROM outbox FOR UPDATE")
        it.take_back()
        await written(it)
    assert await place(conn, attempt) == ("leased", attempt.position, me)
    it.take_back()
    await written(it)
    assert await place(conn, attempt) == ("ready", attempt.position, None)


async def test_nothing_is_written_under_the_id_of_another_worker(harness: WorkerHarness) -> None:
    conn, me, other = harness.conn, await worker(harness.conn), await worker(harness.conn)
    attempt = await started(conn, me)
    released, it = attempts("p", "released"), releaser(harness.pool)
    it.unknown(other, [attempt.key])
    it.lost(other)
    it.take_back()
    with capture_logs() as events:
        assert await written(it) == 2
    assert await place(conn, attempt) == ("leased", attempt.position, me)
    assert await last_reason(conn, attempt.job.id) == "claimed"
    assert (events, attempts("p", "released")) == ([], released)


async def test_a_later_attempt_of_the_same_worker_is_not_released_for_an_earlier_one(
    harness: WorkerHarness,
) -> None:
    conn, me = harness.conn, await worker(harness.conn)
    early = await started(conn, me)
    it = releaser(harness.pool)
    it.unknown(me, [early.key])
    await written(it)
    [late] = await claim(conn, me, LANES, 1)
    assert late.key == (early.job.id, 2)
    it.unknown(me, [early.key])
    await written(it)
    assert await place(conn, late) == ("leased", late.position, me)


@pytest.mark.parametrize("publish_results", [False, True])
async def test_a_job_that_was_to_be_cancelled_is_cancelled_and_counted_as_finished(
    harness: WorkerHarness, publish_results: bool
) -> None:
    conn, me = harness.conn, await worker(harness.conn)
    wanted, unwanted = await started(conn, me), await started(conn, me)
    await cancel(conn, unwanted.job.id, "ann")
    before = attempts("p", "cancelled"), attempts("p", "released"), finished("CANCELLED")
    it = releaser(harness.pool, publish_results=publish_results)
    it.unknown(me, [wanted.key, unwanted.key])
    await written(it)
    assert (await harness.view(unwanted.job.id)).state == "CANCELLED"
    assert (await trail(conn, unwanted.job.id))[-1] == (2, "PROCESSING", "CANCELLED", 1, "cancelled")
    assert await counters(conn, unwanted.job) == (1, 0, 0)
    assert (await place(conn, wanted))[0] == "ready"
    after = attempts("p", "cancelled"), attempts("p", "released"), finished("CANCELLED")
    assert [now - then for now, then in zip(after, before, strict=True)] == [1, 1, 1]
    assert await fetchone(conn, "SELECT count(*) FROM outbox_events") == (int(publish_results),)


async def test_a_connection_that_breaks_raises_nothing_and_the_next_release_is_written(
    harness: WorkerHarness,
) -> None:
    conn, me = harness.conn, await worker(harness.conn)
    attempt = await started(conn, me)
    async with wire_proxy(harness.url) as proxy, open_pool(proxy.url, name="releases", size=1) as pool:
        async with asyncio.timeout(10):
            await pool.wait()
        it = releaser(pool)
        proxy.down = True
        it.unknown(me, [attempt.key])
        assert await written(it) == 1
        assert await place(conn, attempt) == ("leased", attempt.position, me)
        proxy.down = False
        it.unknown(me, [attempt.key])
        await written(it)
    assert await place(conn, attempt) == ("ready", attempt.position, None)


async def test_a_lost_lease_is_taken_back_though_every_connection_of_the_pool_is_broken(
    harness: WorkerHarness,
) -> None:
    conn, me = harness.conn, await worker(harness.conn)
    attempt = await started(conn, me)
    async with open_pool(harness.url, name="releases", size=2) as pool:
        async with pool.connection(), pool.connection():
            pass
        cut = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = %s"
        await conn.execute(cut, ["outrider releases"])
        it = releaser(pool)
        it.lost(me)
        it.take_back()
        assert await written(it) == 1
    assert await place(conn, attempt) == ("ready", attempt.position, None)


async def test_a_lease_that_could_not_be_taken_back_is_at_the_next_heartbeat(harness: WorkerHarness) -> None:
    conn, me = harness.conn, await worker(harness.conn)
    attempt = await started(conn, me)
    async with wire_proxy(harness.url) as proxy, open_pool(proxy.url, name="releases", size=1) as pool:
        async with asyncio.timeout(10):
            await pool.wait()
        it = releaser(pool)
        it.lost(me)
        proxy.down = True
        it.take_back()
        async with asyncio.timeout(60):
            await asyncio.gather(*it._writing)
        assert await place(conn, attempt) == ("leased", attempt.position, me)
        proxy.down = False
        it.take_back()
        await written(it)
    assert await place(conn, attempt) == ("ready", attempt.position, None)
