"""A job that kills its worker fails and is named, and the jobs beside it keep their budget."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from uuid import UUID

import pytest

from engine.model import MAX_CRASHES, JobState
from tests.support.database import counters
from tests.system.acceptance.conftest import ProcessHarness

pytestmark = pytest.mark.long

LEASE = 2.0
EXTRA = 2
"""How many times more than once an innocent job may be started."""
SECONDS = 120.0


@asynccontextmanager
async def supervised(processes: ProcessHarness, workers: int, slots: int) -> AsyncIterator[None]:
    """Worker processes, each started again whenever it has died."""

    async def keep() -> None:
        while True:
            with suppress(TimeoutError):  # a busy machine starts it slowly: the next one is started
                worker = await processes.start(lease=LEASE, slots=slots)
                await worker.ended(SECONDS)

    tasks = [asyncio.create_task(keep()) for _ in range(workers)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def all_ended(processes: ProcessHarness, *ids: UUID) -> dict[UUID, JobState]:
    async with asyncio.timeout(SECONDS):
        while True:
            views = [await processes.view(each) for each in ids]
            if all(each.state.terminal for each in views):
                return {each.job_id: each.state for each in views}
            await asyncio.sleep(0.2)


@pytest.mark.parametrize("workers", [1, 2])
async def test_of_seven_jobs_the_two_that_kill_their_worker_fail_and_the_others_are_charged_nothing(
    processes: ProcessHarness, workers: int
) -> None:
    poison = await processes.submit("exit", 2)
    innocent = await processes.submit("moment", 5)
    async with supervised(processes, workers, slots=7), processes.maintenance(lease=LEASE):
        states = await all_ended(processes, *poison, *innocent)
    starts = Counter(job_id for _, job_id, _, _ in processes.runs())
    for each in poison:
        assert states[each] is JobState.FAILED
        assert (await counters(processes.conn, each))[1:] == (0, MAX_CRASHES)
        view = await processes.view(each)
        assert view.error
        assert view.error["type"] == "WorkerLost"
        assert "ran alone" in view.error["message"]
    for each in innocent:
        assert states[each] is JobState.COMPLETED
        assert (await counters(processes.conn, each))[1:] == (0, 0)
        assert starts[each] <= 1 + EXTRA
