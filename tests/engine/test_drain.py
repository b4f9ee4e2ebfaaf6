"""A worker that is to stop finishes what it runs, or gives it back as it was."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from engine.consumer import Consumer
from engine.model import Attempt, Completed, JobState
from engine.source import PostgresSource
from tests.engine.scene import WAIT, Scene, Worker, known, preset, until
from tests.helpers import counters, fetchone, trail

LEASED = "SELECT 1 FROM outbox WHERE status = 'leased'"


async def test_drain_finishes_what_runs(scene: Scene) -> None:
    free = asyncio.Event()

    @preset()
    async def work(_job: Any, _run: Any) -> None:
        await free.wait()

    job_id = await scene.enqueue()
    async with scene.worker(work) as worker:
        await scene.row(LEASED)
        worker.stop.set()
        await until(lambda: known(worker.consumer._draining))
        waiting = await scene.enqueue()
        free.set()
        assert await worker.ended() == 0
    assert (await scene.view(job_id)).state is JobState.COMPLETED
    assert await counters(scene.conn, waiting) == (0, 0, 0)
    assert await fetchone(scene.conn, "SELECT count(*) FROM workers") == (0,)


async def test_drain_releases_what_does_not_end_in_time_and_spends_nothing(scene: Scene) -> None:
    let_go = threading.Event()

    @preset("async")
    async def patient(_job: Any, _run: Any) -> None:
        await asyncio.Event().wait()

    @preset("plain")
    def busy(_job: Any, _run: Any) -> None:
        assert let_go.wait(WAIT)

    @preset("effects")
    async def late(_job: Any, _run: Any) -> Completed:
        async def effects(conn: Any) -> None:
            await conn.execute("SELECT pg_sleep(30)")

        return Completed(None, effects)

    ids = [await scene.enqueue(name) for name in ("async", "plain", "effects")]
    async with scene.worker(patient, busy, late, drain=0.1) as worker:
        await scene.row("SELECT 1 FROM outbox HAVING bool_and(status = 'leased')")
        await scene.row("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
        assert await worker.stopped() == 0
    for job_id in ids:
        assert await counters(scene.conn, job_id) == (1, 0, 0)
        assert (await scene.view(job_id)).state is JobState.PENDING
        assert (await trail(scene.conn, job_id))[-1][-1] == "shutdown"
    let_go.set()


async def test_a_fault_in_the_claiming_loop_still_drains(scene: Scene) -> None:
    free = asyncio.Event()

    class Broken(PostgresSource):
        async def claim(self, worker_id: int, limit: int) -> list[Attempt]:
            found = await super().claim(worker_id, limit)
            if not found:
                free.set()
                raise ZeroDivisionError
            return found

    @preset()
    async def work(_job: Any, _run: Any) -> None:
        await free.wait()

    job_id = await scene.enqueue()
    scene.limits["p"] = 3
    consumer = Consumer(
        scene.url,
        scene.pool,
        scene.effects,
        Broken(scene.url, ("p",)),
        {"p": work},
        slots=2,
        lease_seconds=2,
        drain_seconds=5,
    )
    with pytest.RaisesGroup(ZeroDivisionError):
        await Worker(consumer).ended()
    assert (await scene.view(job_id)).state is JobState.COMPLETED
