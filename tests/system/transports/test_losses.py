"""What is stopped, dies, is cut off or does not know a preset costs no job, on every transport."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from engine.model import Completed, JobState
from tests.support.database import counters, fetchone, trail
from tests.support.transport_harness import TransportHarness
from tests.support.worker_harness import preset

ALL_LEASED = "SELECT 1 FROM outbox HAVING bool_and(status = 'leased') AND count(*) = %s"


async def test_a_drain_finishes_what_runs_and_another_worker_does_the_rest(system: TransportHarness) -> None:
    free = asyncio.Event()
    ran: list[str] = []

    @preset()
    async def work(job: Any, _run: Any) -> None:
        ran.append(job.content)
        await free.wait()

    async with system.worker(work, slots=2) as first:
        ids = [await system.enqueue(content=str(number)) for number in range(6)]
        await system.harness.row("SELECT 1 FROM outbox WHERE status = 'leased' HAVING count(*) = 2")
        first.stop.set()
        async with system.worker(work):
            await system.harness.row(ALL_LEASED, 6)
            free.set()
            ended = await system.harness.ended(*ids)
        assert await first.ended() == 0
    assert {job.state for job in ended} == {JobState.COMPLETED}
    assert sorted(ran) == [*"012345"]


async def test_a_drain_releases_what_does_not_end_and_another_worker_goes_on(
    system: TransportHarness,
) -> None:
    @preset()
    async def work(_job: Any, run: Any) -> int:
        if run.attempt == 1:
            await asyncio.Event().wait()
        return int(run.attempt)

    async with system.worker(work, drain=0.1) as first:
        job_id = await system.enqueue()
        await system.harness.row(ALL_LEASED, 1)
        assert await first.stopped() == 0
        assert (await trail(system.harness.conn, job_id))[-1][-1] == "shutdown"
        async with system.worker(work):
            [job] = await system.harness.ended(job_id)
    assert (job.state, job.output) == (JobState.COMPLETED, "2")
    assert await counters(system.harness.conn, job_id) == (2, 0, 0)


async def test_what_a_dead_worker_held_runs_again(system: TransportHarness) -> None:
    held = await system.held_by_the_dead(3)

    @preset()
    async def work(_job: Any, run: Any) -> int:
        return int(run.attempt)

    async with system.worker(work):
        ended = await system.harness.ended(*held)
    assert [job.output for job in ended] == ["2"] * 3
    assert {await counters(system.harness.conn, job_id) for job_id in held} == {(2, 0, 0)}


async def test_a_worker_that_lost_its_lease_writes_nothing_and_goes_on_under_a_new_one(
    system: TransportHarness,
) -> None:
    free = asyncio.Event()

    @preset()
    async def work(_job: Any, run: Any) -> int:
        if run.attempt == 1:
            await asyncio.Event().wait()
        await free.wait()
        return int(run.attempt)

    async with system.worker(work, lease=0.6):
        job_id = await system.enqueue()
        (first,) = await system.harness.row("SELECT worker_id FROM outbox WHERE status = 'leased'")
        await system.harness.conn.execute("DELETE FROM workers")
        (second,) = await system.harness.row(
            "SELECT worker_id FROM outbox WHERE attempt = 2 AND status = 'leased'"
        )
        free.set()
        [job] = await system.harness.ended(job_id)
    assert second != first
    assert (job.state, job.output) == (JobState.COMPLETED, "2")


async def test_connections_that_are_cut_under_running_jobs_cost_nothing(system: TransportHarness) -> None:
    free = asyncio.Event()

    @preset()
    async def work(_job: Any, run: Any) -> Completed:
        await free.wait()

        async def effects(conn: Any) -> None:
            await conn.execute("SELECT 1")

        return Completed(run.attempt, effects)

    terminate = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    async with system.worker(work, lease=5):
        ids = [await system.enqueue() for _ in range(10)]
        await system.harness.row(ALL_LEASED, 10)
        await system.harness.conn.execute(terminate)
        free.set()
        for _ in range(3):
            await system.harness.conn.execute(terminate)
        ended = await system.harness.ended(*ids)
    assert {job.output for job in ended} == {"1"}
    assert {await counters(system.harness.conn, job_id) for job_id in ids} == {(1, 0, 0)}


async def test_a_job_of_an_unknown_preset_waits_for_the_worker_that_has_it(
    system: TransportHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.source.PUBLISHED_SECONDS", 0.5)

    @preset("here")
    async def here(_job: Any, _run: Any) -> str:
        return "here"

    @preset("there")
    async def there(_job: Any, _run: Any) -> str:
        return "there"

    async with system.worker(here):
        ours, theirs = await system.enqueue("here"), await system.enqueue("there")
        await system.harness.ended(ours)
        async with system.worker(there):
            [job] = await system.harness.ended(theirs)
    assert job.output == '"there"'
    assert await counters(system.harness.conn, theirs) == (1, 0, 0)
    assert await fetchone(system.harness.conn, "SELECT count(*) FROM outbox") == (0,)
