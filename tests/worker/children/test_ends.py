"""How children end and are replaced: by their attempts, by others, and with what holds them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time

import pytest

from engine.model import JobState
from ops.waiting import until
from tests.support.worker_harness import WorkerHarness
from tests.worker.children.conftest import OpenWorker, kill_nursery, lives


def pid_of(view: object) -> int:
    said = json.loads(view.output)  # type: ignore[attr-defined]
    return int(said["pid"] if isinstance(said, dict) else said)


@pytest.mark.parametrize("preset", ["stdout", "task", "task-unrun", "call", "thread", "forks"])
async def test_an_attempt_that_leaves_something_behind_is_the_last_one_of_its_process(
    harness: WorkerHarness, open_worker: OpenWorker, preset: str
) -> None:
    async with open_worker(slots=1):
        [first] = await harness.ended(await harness.enqueue(preset))
        [second] = await harness.ended(await harness.enqueue("echo"))
    assert (first.state, second.state) == (JobState.COMPLETED, JobState.COMPLETED)
    assert pid_of(first) != pid_of(second)


@pytest.mark.parametrize("preset", ["signals", "limits", "nested"])
async def test_what_an_attempt_changes_is_put_back_for_the_next_one(
    harness: WorkerHarness, open_worker: OpenWorker, preset: str
) -> None:
    async with open_worker(slots=1):
        [first] = await harness.ended(await harness.enqueue(preset))
        [second] = await harness.ended(await harness.enqueue("echo-async"))
    assert (first.state, second.state) == (JobState.COMPLETED, JobState.COMPLETED)
    assert pid_of(first) == pid_of(second)


@pytest.mark.parametrize("preset", ["closes", "junk", "shell"])
async def test_a_process_that_loses_its_worker_ends_its_own_job_alone(
    harness: WorkerHarness, open_worker: OpenWorker, preset: str
) -> None:
    async with open_worker(slots=1):
        bad, good = await harness.enqueue(preset), await harness.enqueue("echo")
        failed, done = await harness.ended(bad, good)
    assert failed.error is not None
    assert (failed.error["type"], done.state) == ("ProcessDied", JobState.COMPLETED)


async def test_a_helper_that_its_parent_has_left_lives_as_long_as_its_attempt(
    harness: WorkerHarness, open_worker: OpenWorker
) -> None:
    async with open_worker(slots=1):
        [view] = await harness.ended(await harness.enqueue("helper"))
        assert view.state is JobState.COMPLETED, view.error

        async def gone() -> bool:
            return not lives(pid_of(view))

        await until(gone)


async def test_a_process_that_dies_between_two_attempts_costs_none_of_them(
    harness: WorkerHarness, open_worker: OpenWorker
) -> None:
    async with open_worker(slots=2) as (_worker, children):
        await children.warm(2)
        for child in children._living.values():
            assert child._transport is not None
            child._transport.pause_reading()  # so that the worker does not see its end yet
        pids = children.pids()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        views = await harness.ended(*[await harness.enqueue("echo") for _ in range(2)])
    assert [view.state for view in views] == [JobState.COMPLETED] * 2


async def test_the_death_of_the_nursery_ends_its_children_and_another_one_follows(
    harness: WorkerHarness, open_worker: OpenWorker
) -> None:
    async with open_worker(slots=1) as (_worker, children):
        [first] = await harness.ended(await harness.enqueue("echo"))
        kill_nursery(children)

        async def gone() -> bool:
            return not lives(pid_of(first))

        await until(gone)
        [second] = await harness.ended(await harness.enqueue("echo"))
    assert second.state is JobState.COMPLETED


async def test_a_sigterm_of_anybody_but_the_worker_is_left_to_the_worker(
    harness: WorkerHarness, open_worker: OpenWorker
) -> None:
    async with open_worker(slots=1):
        [view] = await harness.ended(await harness.enqueue("term"))
    assert view.output == "false"


async def test_an_attempt_is_ended_in_the_middle_of_a_flood_of_log_lines(
    harness: WorkerHarness, open_worker: OpenWorker
) -> None:
    async with open_worker(slots=1):
        bad, good = await harness.enqueue("told"), await harness.enqueue("echo")
        failed, done = await harness.ended(bad, good)
    assert failed.error is not None
    assert (failed.error["type"], done.state) == ("TimeoutError", JobState.COMPLETED)


@pytest.mark.parametrize(("preset", "state"), [("own-class", JobState.FAILED), ("large", JobState.FAILED)])
async def test_an_outcome_that_cannot_be_sent_ends_its_job_in_an_error(
    harness: WorkerHarness, open_worker: OpenWorker, preset: str, state: JobState
) -> None:
    async with open_worker(slots=1):
        [view] = await harness.ended(await harness.enqueue(preset))
        [after] = await harness.ended(await harness.enqueue("echo"))
    assert view.error is not None
    assert (view.state, after.state) == (state, JobState.COMPLETED)
    assert view.error["type"] != "ProcessDied"


async def test_more_attempts_than_children_can_start_at_once_all_get_one(
    harness: WorkerHarness, open_worker: OpenWorker
) -> None:
    async with open_worker(slots=24):
        ids = [await harness.enqueue("echo") for _ in range(60)]
        views = await harness.ended(*ids)
    assert {view.state for view in views} == {JobState.COMPLETED}


async def test_a_drain_ends_what_outlasts_it_and_releases_its_job(
    harness: WorkerHarness, open_worker: OpenWorker
) -> None:
    async with open_worker(slots=2, drain=0.2) as (worker, children):
        job_id = await harness.enqueue("sleep-long")
        await harness.row("SELECT 1 FROM outbox WHERE job_id = %s AND status = 'leased'", job_id)

        async def runs() -> bool:
            return any(child.report.step == "sleeping" for child in children._living.values())

        await until(runs)
        pids = children.pids()
        began = time.monotonic()
        await worker.stopped()
        assert time.monotonic() - began < 10
        row = await harness.row("SELECT status::text, errors FROM outbox WHERE job_id = %s", job_id)
        assert row == ("ready", 0)
    await asyncio.sleep(0)
    assert not any(map(lives, pids))
