"""The death of a nursery ends its children, and is charged where it is clear to whom."""

from __future__ import annotations

from engine.model import JobState, Reason
from ops.waiting import until
from tests.support.database import counters, fetchone
from tests.support.worker_harness import WorkerHarness, known
from tests.worker.children.conftest import OpenWorker, kill_nursery
from worker.children.pool import Children


async def test_the_death_of_a_nursery_is_charged_to_none_of_several_attempts(
    harness: WorkerHarness, open_worker: OpenWorker
) -> None:
    async with open_worker(slots=2) as (_, children):
        ids = [await harness.enqueue("says-when", content) for content in ("a", "b")]
        await _running(children, 2)
        kill_nursery(children)
        views = await harness.ended(*ids)
    assert [view.state for view in views] == [JobState.COMPLETED] * 2
    assert [await counters(harness.conn, job_id) for job_id in ids] == [(2, 0, 0)] * 2
    released = "SELECT count(*) FROM job_state_records WHERE reason = %s"
    assert await fetchone(harness.conn, released, Reason.LAPSED_APART) == (2,)
    assert await harness.broken() == []


async def test_the_death_of_a_nursery_is_charged_to_an_attempt_that_ran_alone(
    harness: WorkerHarness, open_worker: OpenWorker
) -> None:
    async with open_worker(slots=2) as (_, children):
        await children.warm(2)
        job_id = await harness.enqueue("says-when")
        await _running(children, 1)
        kill_nursery(children)
        [view] = await harness.ended(job_id)
    assert view.error is not None
    assert (view.state, view.error["type"]) == (JobState.FAILED, "ProcessDied")


async def _running(children: Children, count: int) -> None:
    await until(
        lambda: known([child.report.step for child in children._living.values()].count("first") == count)
    )
