"""What a pipeline in a process of its own can rely on."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from structlog.testing import capture_logs

from engine.ids import uuid7
from engine.model import Attempt, Completed, Job, JobState
from tests.support.worker_harness import WorkerHarness
from tests.worker.children.conftest import ChildLines, OpenWorker, lives


def output(view: object) -> dict[str, object]:
    return dict(json.loads(view.output))  # type: ignore[attr-defined]


async def test_an_attempt_runs_in_a_process_that_the_next_one_uses_again(
    harness: WorkerHarness, open_worker: OpenWorker
) -> None:
    async with open_worker(slots=1):
        pids = []
        for preset in ("echo", "echo-async", "echo"):
            [view] = await harness.ended(await harness.enqueue(preset, "hello"))
            assert output(view)["said"] == "hello"
            pids.append(output(view)["pid"])
    assert len(set(pids)) == 1
    assert not lives(int(str(pids[0])))


async def test_what_cannot_be_written_is_an_error_as_in_any_process_of_python(
    harness: WorkerHarness, open_worker: OpenWorker
) -> None:
    async with open_worker():
        [view] = await harness.ended(await harness.enqueue("writes-to-nobody"))
    assert (view.output, view.error) == ('["BrokenPipeError","OSError"]', None)


async def test_a_child_is_replaced_after_its_number_of_attempts(
    harness: WorkerHarness, open_worker: OpenWorker
) -> None:
    async with open_worker(slots=1, max_jobs=2):
        ids = [await harness.enqueue("echo") for _ in range(5)]
        pids = [output(view)["pid"] for view in await harness.ended(*ids)]
    assert len(set(pids)) == 3


async def test_a_child_that_holds_too_much_memory_is_replaced_after_the_attempt(
    harness: WorkerHarness, open_worker: OpenWorker
) -> None:
    async with open_worker(slots=1, max_mb=1):
        ids = [await harness.enqueue("echo") for _ in range(3)]
        pids = [output(view)["pid"] for view in await harness.ended(*ids)]
    assert len(set(pids)) == 3


async def test_progress_and_step_of_a_child_are_shown_and_a_drain_is_told(
    harness: WorkerHarness, open_worker: OpenWorker
) -> None:
    async with open_worker() as (worker, _children):
        job_id = await harness.enqueue("waits")
        row = await harness.row("SELECT fraction, message, step FROM job_progress WHERE job_id = %s", job_id)
        assert row == (0.25, "a quarter", "waiting")
        await worker.stopped()
    [view] = await harness.ended(job_id)
    assert view.output == '"stopping"'


async def test_effects_of_a_child_commit_with_its_result_on_a_connection_of_the_child(
    harness: WorkerHarness, open_worker: OpenWorker
) -> None:
    await harness.conn.execute("CREATE TABLE seen (job_id uuid, pid integer)")
    async with open_worker():
        good, bad = await harness.enqueue("record"), await harness.enqueue("record", "raise")
        done, failed = await harness.ended(good, bad)
    assert (done.state, failed.state) == (JobState.COMPLETED, JobState.FAILED)
    rows = await (await harness.conn.execute("SELECT job_id, pid FROM seen")).fetchall()
    assert rows == [(good, output(done)["pid"])]
    assert failed.error is not None
    assert failed.error["message"] == "the effects have failed"


async def test_effects_of_a_child_that_are_a_plain_function_fail_the_job_with_the_fix(
    harness: WorkerHarness, open_worker: OpenWorker
) -> None:
    async with open_worker():
        [failed] = await harness.ended(await harness.enqueue("record-plainly"))
    assert failed.state is JobState.FAILED
    assert failed.error is not None
    assert "must be an async one" in failed.error["message"]


async def test_effects_leave_a_child_to_the_next_attempt(
    harness: WorkerHarness, open_worker: OpenWorker
) -> None:
    await harness.conn.execute("CREATE TABLE seen (job_id uuid, pid integer)")
    async with open_worker(slots=1):
        ids = [await harness.enqueue("record") for _ in range(4)]
        pids = {output(view)["pid"] for view in await harness.ended(*ids)}
    assert len(pids) == 1


async def test_effects_that_nobody_has_committed_are_not_the_next_attempts(open_worker: OpenWorker) -> None:
    now = datetime.now(UTC)

    def attempt(preset: str) -> Attempt:
        job = Job(uuid7(), "ann", preset, "text", {}, 2, now, None)
        return Attempt(job, 1, 1, 0, 0, None, None, 1, now, now, now, None)

    async with open_worker() as (_, children):
        child = await children.take()
        outcomes = [await child.run(attempt(preset), None) for preset in ("record", "echo")]
        children.give(child)
    effects = [isinstance(each, Completed) and each.effects is not None for each in outcomes]
    assert effects == [True, False]


async def test_effects_that_leave_a_task_are_the_last_ones_of_their_child(
    harness: WorkerHarness, open_worker: OpenWorker
) -> None:
    await harness.conn.execute("CREATE TABLE seen (job_id uuid, pid integer)")
    async with open_worker(slots=1):
        views = [
            view
            for content in ("task", "-", "-")
            for view in await harness.ended(await harness.enqueue("record", content))
        ]
    first, second, third = (output(view)["pid"] for view in views)
    assert first != second == third


async def test_a_child_that_dies_in_its_effects_takes_its_transaction_with_it(
    harness: WorkerHarness, open_worker: OpenWorker
) -> None:
    await harness.conn.execute("CREATE TABLE seen (job_id uuid, pid integer)")
    async with open_worker():
        [view] = await harness.ended(await harness.enqueue("record", "die"))
    assert view.state is JobState.FAILED
    assert view.error is not None
    assert view.error["type"] == "ProcessDied"
    assert await (await harness.conn.execute("SELECT count(*) FROM seen")).fetchone() == (0,)
    assert await harness.broken() == []


async def test_lines_of_a_child_arrive_in_the_workers_log_with_the_job_that_wrote_them(
    harness: WorkerHarness, open_worker: OpenWorker, child_lines: ChildLines
) -> None:
    with capture_logs() as own:
        async with open_worker():
            job_id = await harness.enqueue("logs")
            await harness.ended(job_id)
    [label] = [line for line in child_lines() if line["event"] == "label.printed"]
    [by_hand] = [line for line in own if line["event"] == "attempt.printed"]
    assert label["copies"] == 2
    assert by_hand["text"] == "printed by hand"
    for line in (label, by_hand):
        assert (str(line["job_id"]), line["preset"], line["attempt"]) == (str(job_id), "logs", 1)
