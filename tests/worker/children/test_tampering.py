"""What an attempt changes in its process, in its parent or in the engine's own reaches nobody else."""

from __future__ import annotations

import asyncio
import json
import signal

import pytest

from engine.model import JobState
from ops.chaos.isolation_kinds import TAMPERING, Kind
from ops.waiting import until
from tests.support.worker_harness import WorkerHarness, known
from tests.worker.children.conftest import OpenWorker, kill_nursery, lives
from worker.children.pool import Children

COMPLETED = [kind.preset for kind in TAMPERING if kind.state == "COMPLETED"]
DIED = [kind for kind in TAMPERING if kind.state == "FAILED" and kind.seconds > 5]


async def test_the_next_attempt_finds_its_process_as_it_was(
    harness: WorkerHarness, open_worker: OpenWorker
) -> None:
    found = {}
    async with open_worker(slots=1):
        for preset in COMPLETED:
            ids = [await harness.enqueue(each) for each in (preset, "look", "look-async")]
            found[preset] = [(view.attempt, view.output) for view in await harness.ended(*ids)]
    assert found == {preset: [(1, "null"), (1, "[]"), (1, '"unset"')] for preset in COMPLETED}


async def test_what_a_module_sets_at_its_import_stays(
    harness: WorkerHarness, open_worker: OpenWorker
) -> None:
    async with open_worker(slots=1):
        views = [(await harness.ended(await harness.enqueue("imports")))[0] for _ in range(3)]
    first, *later = [json.loads(view.output or "") for view in views]
    assert first[1:] == ["JST", 5000, True]
    assert later == [first] * 2


@pytest.mark.parametrize("kind", DIED, ids=lambda kind: kind.preset)
async def test_a_process_that_breaks_the_engine_ends_its_own_job_and_its_error_tells_how(
    harness: WorkerHarness, open_worker: OpenWorker, kind: Kind
) -> None:
    async with open_worker(slots=1):
        bad, good = await harness.enqueue(kind.preset), await harness.enqueue("look")
        failed, done = await harness.ended(bad, good)
    assert failed.error is not None
    assert (failed.state, failed.error["type"]) == (JobState.FAILED, "ProcessDied")
    assert kind.words in failed.error["message"]
    assert (done.attempt, done.output) == (1, "[]")


async def test_a_process_that_has_cut_its_tie_to_the_nursery_ends_with_it(
    harness: WorkerHarness, open_worker: OpenWorker
) -> None:
    async with open_worker(slots=1) as (_, children):
        await harness.enqueue("undying", timeout_seconds=60)
        [pid] = await _tampered(children)
        kill_nursery(children)

        await until(lambda: known(not lives(pid)))


async def test_a_process_that_is_slow_to_be_killed_does_not_end_its_worker(
    harness: WorkerHarness, open_worker: OpenWorker
) -> None:
    lease = 0.6
    async with open_worker(slots=1, lease=lease) as (worker, children):
        slow = await harness.enqueue("undying", timeout_seconds=5, max_attempts=1)
        await _tampered(children)
        assert children._nursery is not None
        nursery = children._nursery._process
        nursery.send_signal(signal.SIGSTOP)
        try:
            await until(lambda: known(len(worker.consumer._slots.stuck) == 1))
            # Longer than threads in all slots would be let.
            await asyncio.sleep(3 * lease)
        finally:
            nursery.send_signal(signal.SIGCONT)
        views = await harness.ended(slow, await harness.enqueue("look"))
    assert [view.state for view in views] == [JobState.FAILED, JobState.COMPLETED]


async def _tampered(children: Children) -> list[int]:
    """The process ids of the children, once one of them says so."""
    await until(lambda: known(any(child.report.step == "tampered" for child in children._living.values())))
    return children.pids()
