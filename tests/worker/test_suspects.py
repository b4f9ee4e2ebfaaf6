"""Jobs that ran beside others on a worker that died run where a second crash tells who it was."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any
from uuid import UUID

import pytest

from engine.model import JobState
from ops.waiting import until
from tests.support.database import counters, suspected, worker
from tests.support.worker_harness import WorkerHarness, known, preset
from worker import suspects as module
from worker.source import PostgresSource
from worker.suspects import SuspectClaims


class Company:
    """A pipeline that holds its attempts, and knows who runs beside whom."""

    def __init__(self) -> None:
        self.running: set[UUID] = set()
        self.beside: dict[UUID, set[UUID]] = {}
        self.starts: Counter[UUID] = Counter()
        self.free = asyncio.Event()

        @preset()
        async def work(job: Any, _run: Any) -> None:
            self.running.add(job.id)
            self.starts[job.id] += 1
            for each in self.running:
                self.beside.setdefault(each, set()).update(self.running)
            try:
                await self.free.wait()
            finally:
                self.running.discard(job.id)

        self.work = work

    async def runs(self, *ids: UUID) -> None:
        await until(lambda: known(self.running == set(ids)))


async def test_suspects_run_together_up_to_the_root_of_the_slots_and_beside_nobody_else(
    harness: WorkerHarness,
) -> None:
    few = [(await suspected(harness.conn, 1)).id for _ in range(5)]
    others = [await harness.enqueue() for _ in range(3)]
    company = Company()
    async with harness.worker(company.work, slots=9):
        await company.runs(*few[:3])
        company.free.set()
        await harness.ended(*few, *others)
    for each in few:
        assert len(company.beside[each]) <= 3
        assert company.beside[each] <= set(few)


async def test_a_job_that_must_run_alone_runs_beside_nobody(harness: WorkerHarness) -> None:
    alone = [(await suspected(harness.conn, 2)).id for _ in range(2)]
    others = [await harness.enqueue() for _ in range(3)]
    company = Company()
    async with harness.worker(company.work, slots=9):
        await company.runs(alone[0])
        company.free.set()
        await harness.ended(*alone, *others)
    assert [company.beside[each] for each in alone] == [{each} for each in alone]


async def test_a_busy_worker_becomes_empty_for_a_suspect_that_nobody_else_takes(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.0)
    first, second = await harness.enqueue(), await harness.enqueue(priority=4)
    company = Company()
    async with harness.worker(company.work, slots=4) as busy:
        await company.runs(first, second)
        suspect = (await suspected(harness.conn, 1)).id
        await until(lambda: known(busy.consumer._suspects.exclusive))
        later = await harness.enqueue(priority=1)
        company.free.set()
        await company.runs()
        await harness.ended(first, second, suspect, later)
    assert company.beside[suspect] == {suspect}


class Looks:
    """A worker's claims of suspects, without the worker."""

    def __init__(self, harness: WorkerHarness, worker_id: int, slots: int = 2) -> None:
        self._worker_id = worker_id
        self._claims = SuspectClaims(harness.pool, PostgresSource(harness.url, ["p"]), ["p"], slots)

    async def busy(self) -> bool:
        """Whether it claims nothing more, so as to become empty."""
        assert await self._claims.claim(self._worker_id, 1, held=1) == []
        return self._claims.exclusive


@pytest.mark.parametrize(("suspects", "emptying"), [(0, 0), (1, 1), (2, 2), (9, 3)])
async def test_no_more_workers_become_empty_than_the_suspects_would_fill_or_a_quarter_of_all(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch, suspects: int, emptying: int
) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.0)
    for _ in range(suspects):
        await suspected(harness.conn, 1)
    looks = [Looks(harness, await worker(harness.conn)) for _ in range(12)]
    assert [await each.busy() for each in looks] == [number < emptying for number in range(12)]


async def test_nobody_becomes_empty_for_a_suspect_that_has_just_begun_to_wait_or_that_it_cannot_run(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Looks(harness, await worker(harness.conn))
    await suspected(harness.conn, 1)
    assert not await look.busy()
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.0)
    await harness.conn.execute("UPDATE outbox SET preset = 'q'")
    await harness.conn.execute("UPDATE jobs SET preset = 'q'")
    assert not await Looks(harness, await worker(harness.conn)).busy()


async def test_without_suspects_a_worker_looks_for_them_once_a_second_at_the_most(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = SuspectClaims(harness.pool, PostgresSource(harness.url, ["p"]), ["p"], 4)
    worker_id = await worker(harness.conn)
    asked = 0

    async def count(*_args: Any) -> list[Any]:
        nonlocal asked
        asked += 1
        return []

    monkeypatch.setattr(looks, "_found", count)
    for _ in range(50):
        await looks.claim(worker_id, 1, held=0)
    assert asked == 1


async def test_an_end_of_its_own_frees_a_job_of_suspicion(harness: WorkerHarness) -> None:
    suspect = (await suspected(harness.conn, 1)).id

    @preset(max_attempts=5)
    async def work(_job: Any, run: Any) -> int:
        if run.attempt == 2:
            raise ValueError("an error of its own")
        return int(run.attempt)

    async with harness.worker(work, slots=9), harness.maintenance(lease=60):
        [job] = await harness.ended(suspect)
    assert (job.state, job.output) == (JobState.COMPLETED, "3")
    assert await counters(harness.conn, suspect) == (3, 1, 0)
