"""What an author's code breaks in a process of its own, it breaks alone."""

from __future__ import annotations

import asyncio

import pytest

from engine import moves
from engine.model import JobState
from ops.waiting import until
from tests.support.worker_harness import WorkerHarness
from tests.worker.children.conftest import OpenWorker, lives

DELAY_SECONDS = 1.0
"""How long the worker's loop may be kept from turning, on a machine that runs other tests beside this one."""

DIED = [
    ("exit", "exited with code 9"),
    ("segfault", "was killed by SIGSEGV"),
]
ENDED = [
    ("spin", "TimeoutError"),
    ("gil", "TimeoutError"),
    ("deaf", "TimeoutError"),
    ("sleep", "TimeoutError"),
    ("memory", "MemoryError"),
    ("sys-exit", "SystemExit"),
    ("recursion", "RecursionError"),
]


async def test_a_process_that_dies_ends_its_own_job_and_its_error_tells_how(
    harness: WorkerHarness, open_worker: OpenWorker
) -> None:
    async with open_worker():
        ids = [await harness.enqueue(preset) for preset, _ in DIED]
        views = await harness.ended(*ids)
    for view, (_, words) in zip(views, DIED, strict=True):
        assert view.state is JobState.FAILED
        assert view.error is not None
        assert view.error["type"] == "ProcessDied"
        assert words in view.error["message"]
    message = views[0].error["message"] if views[0].error else ""
    assert "at step 'render', at 30% a third" in message
    assert "last words" in message


@pytest.mark.parametrize(("preset", "kind"), ENDED)
async def test_an_attempt_that_goes_wrong_ends_within_its_time(
    harness: WorkerHarness, open_worker: OpenWorker, preset: str, kind: str
) -> None:
    async with open_worker(slots=1):
        bad, good = await harness.enqueue(preset), await harness.enqueue("echo")
        failed, done = await harness.ended(bad, good)
    assert failed.error is not None
    assert (failed.state, failed.error["type"]) == (JobState.FAILED, kind)
    assert done.state is JobState.COMPLETED


async def test_what_an_attempt_leaves_behind_ends_with_it(
    harness: WorkerHarness, open_worker: OpenWorker
) -> None:
    async with open_worker(slots=1):
        ids = [
            await harness.enqueue(preset)
            for preset in ("thread", "pool", "orphans", "signals", "flood", "echo")
        ]
        views = await harness.ended(*ids)
        assert [view.state for view in views] == [JobState.COMPLETED] * len(ids)

        orphans = [int(pid) for pid in (views[2].output or "").strip("[]").split(",")]
        pools = {int(pid) for pid in (views[1].output or "").strip("[]").split(",")}
        assert len(orphans) == 50

        async def gone() -> bool:
            return not any(map(lives, [*orphans, *pools]))

        await until(gone)


async def test_a_cancelled_attempt_is_ended_and_its_slot_is_free(
    harness: WorkerHarness, open_worker: OpenWorker
) -> None:
    async with open_worker(slots=1):
        bad, good = await harness.enqueue("waits"), await harness.enqueue("echo")
        await harness.row("SELECT 1 FROM job_progress WHERE job_id = %s", bad)
        await moves.cancel(harness.conn, bad, None)
        cancelled, done = await harness.ended(bad, good)
    assert (cancelled.state, done.state) == (JobState.CANCELLED, JobState.COMPLETED)


@pytest.mark.long
async def test_innocent_neighbours_are_neither_lost_nor_delayed(
    harness: WorkerHarness, open_worker: OpenWorker
) -> None:
    guilty = [
        "exit",
        "segfault",
        "spin",
        "gil",
        "deaf",
        "memory",
        "sys-exit",
        "thread",
        "pool",
        "orphans",
        "recursion",
    ]
    async with open_worker(slots=20):
        innocent = [await harness.enqueue("innocent") for _ in range(8)]
        await asyncio.gather(*(harness.enqueue(preset) for preset in guilty))
        views = await harness.ended(*innocent)
    assert [view.attempt for view in views] == [1] * len(views)
    assert max(float(view.output or "inf") for view in views) < DELAY_SECONDS
