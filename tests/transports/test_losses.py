"""What is stopped, dies, is cut off or does not know a preset costs no job, on every transport."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from engine.model import Completed, JobState
from tests.engine.scene import preset
from tests.helpers import counters, fetchone, trail
from tests.transports.stage import Stage

ALL_LEASED = "SELECT 1 FROM outbox HAVING bool_and(status = 'leased') AND count(*) = %s"


async def test_a_drain_finishes_what_runs_and_another_worker_does_the_rest(stage: Stage) -> None:
    free = asyncio.Event()
    ran: list[str] = []

    @preset()
    async def work(job: Any, _run: Any) -> None:
        ran.append(job.content)
        await free.wait()

    async with stage.worker(work, slots=2) as first:
        ids = [await stage.enqueue(content=str(number)) for number in range(6)]
        await stage.scene.row("SELECT 1 FROM outbox WHERE status = 'leased' HAVING count(*) = 2")
        first.stop.set()
        async with stage.worker(work):
            await stage.scene.row(ALL_LEASED, 6)
            free.set()
            ended = await stage.scene.ended(*ids)
        assert await first.ended() == 0
    assert {job.state for job in ended} == {JobState.COMPLETED}
    assert sorted(ran) == [*"012345"]


async def test_a_drain_releases_what_does_not_end_and_another_worker_goes_on(stage: Stage) -> None:
    @preset()
    async def work(_job: Any, run: Any) -> int:
        if run.attempt == 1:
            await asyncio.Event().wait()
        return int(run.attempt)

    async with stage.worker(work, drain=0.1) as first:
        job_id = await stage.enqueue()
        await stage.scene.row(ALL_LEASED, 1)
        assert await first.stopped() == 0
        assert (await trail(stage.scene.conn, job_id))[-1][-1] == "shutdown"
        async with stage.worker(work):
            [job] = await stage.scene.ended(job_id)
    assert (job.state, job.output) == (JobState.COMPLETED, "2")
    assert await counters(stage.scene.conn, job_id) == (2, 0, 0)


async def test_what_a_dead_worker_held_runs_again(stage: Stage) -> None:
    held = await stage.held_by_the_dead(3)

    @preset()
    async def work(_job: Any, run: Any) -> int:
        return int(run.attempt)

    async with stage.worker(work):
        ended = await stage.scene.ended(*held)
    assert [job.output for job in ended] == ["2"] * 3
    assert {await counters(stage.scene.conn, job_id) for job_id in held} == {(2, 0, 1)}


async def test_a_worker_that_lost_its_lease_writes_nothing_and_goes_on_under_a_new_one(stage: Stage) -> None:
    free = asyncio.Event()

    @preset()
    async def work(_job: Any, run: Any) -> int:
        if run.attempt == 1:
            await asyncio.Event().wait()
        await free.wait()
        return int(run.attempt)

    async with stage.worker(work, lease=0.6):
        job_id = await stage.enqueue()
        (first,) = await stage.scene.row("SELECT worker_id FROM outbox WHERE status = 'leased'")
        await stage.scene.conn.execute("DELETE FROM workers")
        (second,) = await stage.scene.row(
            "SELECT worker_id FROM outbox WHERE attempt = 2 AND status = 'leased'"
        )
        free.set()
        [job] = await stage.scene.ended(job_id)
    assert second != first
    assert (job.state, job.output) == (JobState.COMPLETED, "2")


async def test_connections_that_are_cut_under_running_jobs_cost_nothing(stage: Stage) -> None:
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
    async with stage.worker(work, lease=5):
        ids = [await stage.enqueue() for _ in range(10)]
        await stage.scene.row(ALL_LEASED, 10)
        await stage.scene.conn.execute(terminate)
        free.set()
        for _ in range(3):
            await stage.scene.conn.execute(terminate)
        ended = await stage.scene.ended(*ids)
    assert {job.output for job in ended} == {"1"}
    assert {await counters(stage.scene.conn, job_id) for job_id in ids} == {(1, 0, 0)}


async def test_a_job_of_an_unknown_preset_waits_for_the_worker_that_has_it(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.source.PUBLISHED_SECONDS", 0.5)

    @preset("here")
    async def here(_job: Any, _run: Any) -> str:
        return "here"

    @preset("there")
    async def there(_job: Any, _run: Any) -> str:
        return "there"

    async with stage.worker(here):
        ours, theirs = await stage.enqueue("here"), await stage.enqueue("there")
        await stage.scene.ended(ours)
        async with stage.worker(there):
            [job] = await stage.scene.ended(theirs)
    assert job.output == '"there"'
    assert await counters(stage.scene.conn, theirs) == (1, 0, 0)
    assert await fetchone(stage.scene.conn, "SELECT count(*) FROM outbox") == (0,)
