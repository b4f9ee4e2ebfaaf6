"""A worker keeps its attempts running: none is lost, none is charged for what it did not do."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from engine.errors import DatabaseUnavailable, PermanentError
from engine.model import Attempt, JobState, Retry, Snoozed
from engine.moves import cancel
from ops.waiting import WAIT_SECONDS, until
from tests.support.database import counters, trail
from tests.support.worker_harness import WorkerHarness, preset
from worker.consumer import Consumer
from worker.slots import StuckThreads
from worker.source import PostgresSource

LEASED = "SELECT 1 FROM outbox WHERE status = 'leased'"


async def test_a_job_runs_and_its_history_tells_it(harness: WorkerHarness) -> None:
    @preset()
    async def shout(job: Any, run: Any) -> dict[str, Any]:
        return {"said": job.content.upper(), "attempt": run.attempt}

    job_id = await harness.enqueue(content="hello")
    async with harness.worker(shout):
        [job] = await harness.ended(job_id)
    assert (job.state, job.output) == (JobState.COMPLETED, '{"said":"HELLO","attempt":1}')
    assert [step[1:] for step in await trail(harness.conn, job_id)] == [
        (None, "PENDING", 0, "enqueued"),
        ("PENDING", "PROCESSING", 1, "claimed"),
        ("PROCESSING", "COMPLETED", 1, "completed"),
    ]


async def test_where_slots_stay_free_what_was_claimed_starts_before_the_next_claim(
    harness: WorkerHarness,
) -> None:
    claimed: list[UUID] = []
    started: list[UUID] = []
    waiting: list[set[UUID]] = []

    class Watched(PostgresSource):
        async def claim(self, worker_id: int, limit: int) -> list[Attempt]:
            waiting.append(set(claimed) - set(started))
            found = await super().claim(worker_id, limit)
            claimed.extend(attempt.job.id for attempt in found)
            return found

    @preset()
    async def starting(job: Any, _run: Any) -> None:
        started.append(job.id)

    async with harness.worker(starting, source=Watched(harness.url, ("p",))):
        ids = [await harness.enqueue() for _ in range(3)]
        await harness.ended(*ids)
    assert set(claimed) == set(ids)
    assert not set().union(*waiting)


async def test_a_time_out_is_an_error_for_every_kind_of_pipeline(harness: WorkerHarness) -> None:
    let_go = threading.Event()

    @preset("async")
    async def patient(_job: Any, _run: Any) -> None:
        await asyncio.Event().wait()

    @preset("plain")
    def busy(_job: Any, _run: Any) -> None:
        assert let_go.wait(WAIT_SECONDS)

    @preset("stubborn")
    async def stubborn(_job: Any, _run: Any) -> None:
        while not let_go.is_set():
            try:
                await asyncio.to_thread(let_go.wait, WAIT_SECONDS)
            except asyncio.CancelledError:
                continue

    names = ("async", "plain", "stubborn")
    ids = [await harness.enqueue(name, max_attempts=1, timeout_seconds=1) for name in names]
    async with harness.worker(patient, busy, stubborn):
        ended = await harness.ended(*ids)
        let_go.set()
    for job in ended:
        assert job.error
        assert (job.state, job.error["type"]) == (JobState.FAILED, "TimeoutError")
        assert await counters(harness.conn, job.job_id) == (1, 1, 0)


async def test_outcomes_spend_what_they_should(harness: WorkerHarness) -> None:
    @preset("errs")
    def errs(_job: Any, _run: Any) -> None:
        raise ValueError("each time")

    @preset("asks")
    async def asks(_job: Any, run: Any) -> Any:
        return Retry(0, "not yet") if run.attempt < 3 else "at last"

    @preset("sleeps")
    async def sleeps(_job: Any, run: Any) -> Any:
        return Snoozed(0) if run.attempt < 6 else "awake"

    @preset("never")
    def never(_job: Any, _run: Any) -> None:
        raise PermanentError("no use")

    asked = [("errs", 3, 3), ("asks", 3, 2), ("sleeps", 6, 0), ("never", 1, 1)]
    ids = [await harness.enqueue(name) for name, *_ in asked]
    own = await harness.enqueue("errs", max_attempts=5)
    async with harness.worker(errs, asks, sleeps, never), harness.maintenance():
        ended = await harness.ended(*ids, own)
    assert [job.state for job in ended] == ["FAILED", "COMPLETED", "COMPLETED", "FAILED", "FAILED"]
    assert [await counters(harness.conn, job_id) for job_id in ids] == [(n, e, 0) for _, n, e in asked]
    assert await counters(harness.conn, own) == (5, 5, 0)


@pytest.mark.parametrize(
    "error", [SystemExit(), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError()]
)
@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_an_exception_that_would_end_a_process_costs_its_own_job(
    harness: WorkerHarness, error: BaseException, kind: str
) -> None:
    let_go = asyncio.Event()

    @preset("neighbour")
    async def neighbour(_job: Any, _run: Any) -> None:
        await let_go.wait()

    async def on_the_loop(_job: Any, _run: Any) -> None:
        raise error

    def in_a_thread(_job: Any, _run: Any) -> None:
        raise error

    bad = preset("bad", max_attempts=1)(on_the_loop if kind == "async" else in_a_thread)
    beside = await harness.enqueue("neighbour")
    async with harness.worker(neighbour, bad):
        [job] = await harness.ended(await harness.enqueue("bad"))
        let_go.set()
        [unhurt] = await harness.ended(beside)
    assert job.error
    assert (job.state, job.error["type"]) == (JobState.FAILED, type(error).__name__)
    assert unhurt.state is JobState.COMPLETED


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_a_running_attempt_hears_of_its_cancellation_within_a_moment(
    harness: WorkerHarness, kind: str
) -> None:
    async def on_the_loop(_job: Any, _run: Any) -> None:
        await asyncio.Event().wait()

    def in_a_thread(_job: Any, run: Any) -> None:
        assert run.cancelled.wait(WAIT_SECONDS)

    pipeline = preset()(on_the_loop if kind == "async" else in_a_thread)
    job_id = await harness.enqueue()
    async with harness.worker(pipeline, lease=60):
        await harness.row(LEASED)
        began = time.monotonic()
        assert await cancel(harness.conn, job_id, "ann") is JobState.PROCESSING
        [job] = await harness.ended(job_id)
        assert time.monotonic() - began < 2  # a beat comes each 20 s
    assert job.state is JobState.CANCELLED


async def test_an_attempt_that_completes_before_it_hears_of_its_cancellation_stays_completed(
    harness: WorkerHarness,
) -> None:
    free = asyncio.Event()

    @preset()
    async def wait(_job: Any, _run: Any) -> str:
        await free.wait()
        return "done"

    job_id = await harness.enqueue()
    async with harness.worker(wait, lease=60):
        await harness.row(LEASED)
        await harness.conn.execute("UPDATE outbox SET cancel_requested = true")
        free.set()
        [job] = await harness.ended(job_id)
    assert job.state is JobState.COMPLETED


async def test_progress_is_shown_while_its_attempt_runs(harness: WorkerHarness) -> None:
    free = asyncio.Event()

    @preset()
    async def work(_job: Any, run: Any) -> None:
        run.progress(0.25, "a quarter\0\ud800")
        await free.wait()

    job_id = await harness.enqueue()
    async with harness.worker(work):
        await harness.row("SELECT 1 FROM job_progress")
        job = await harness.view(job_id)
        assert (job.fraction, job.message, job.progress_n) == (0.25, "a quarter?", 1)
        free.set()
        await harness.ended(job_id)
    assert (await harness.view(job_id)).fraction is None


async def test_the_step_that_began_last_is_written_and_is_no_progress(harness: WorkerHarness) -> None:
    free = asyncio.Event()

    @preset()
    async def work(_job: Any, run: Any) -> None:
        with run.step("outline"), run.step("draft\0"):
            await free.wait()

    job_id = await harness.enqueue()
    async with harness.worker(work):
        assert await harness.row("SELECT step, fraction FROM job_progress") == ("draft", None)
        assert (await harness.view(job_id)).fraction is None
        free.set()
        await harness.ended(job_id)


async def test_progress_that_could_not_be_written_is_shown_later(harness: WorkerHarness) -> None:
    free = asyncio.Event()

    @preset()
    async def work(_job: Any, run: Any) -> None:
        run.progress(0.5)
        await free.wait()

    await harness.conn.execute("ALTER TABLE job_progress RENAME TO elsewhere")
    job_id = await harness.enqueue()
    async with harness.worker(work):
        await harness.row(
            "SELECT 1 FROM pg_stat_database WHERE datname = current_database() AND xact_rollback > 0"
        )
        await harness.conn.execute("ALTER TABLE elsewhere RENAME TO job_progress")
        await harness.row("SELECT 1 FROM job_progress WHERE fraction = 0.5")
        free.set()
        await harness.ended(job_id)


async def test_more_jobs_than_slots_never_run_at_once(harness: WorkerHarness) -> None:
    running: set[int] = set()
    most = 0

    @preset()
    async def work(job: Any, _run: Any) -> None:
        nonlocal most
        running.add(job.id)
        most = max(most, len(running))
        await asyncio.sleep(0)
        running.discard(job.id)

    ids = [await harness.enqueue() for _ in range(60)]
    async with harness.worker(work, slots=4):
        await harness.ended(*ids)
    assert 0 < most <= 4


async def test_two_workers_share_the_jobs_and_run_each_once(harness: WorkerHarness) -> None:
    ran: list[str] = []

    @preset()
    def work(job: Any, _run: Any) -> None:
        ran.append(str(job.id))

    ids = [await harness.enqueue() for _ in range(80)]
    async with harness.worker(work), harness.worker(work):
        await harness.ended(*ids)
    assert sorted(ran) == sorted(map(str, ids))


async def test_a_worker_is_ready_while_it_holds_a_lease(harness: WorkerHarness) -> None:
    @preset()
    async def work(_job: Any, _run: Any) -> None: ...

    async with harness.worker(work) as worker:
        with pytest.raises(DatabaseUnavailable):
            await worker.consumer.ready()
        await harness.row("SELECT 1 FROM workers")
        await until(lambda: _ready(worker.consumer))


async def _ready(consumer: Consumer) -> bool:
    try:
        await consumer.ready()
    except DatabaseUnavailable:
        return False
    return True


async def test_a_claim_that_fails_unexpectedly_is_logged_and_costs_no_running_attempt(
    harness: WorkerHarness,
) -> None:
    let_go = asyncio.Event()
    bugs = [TypeError("a bug"), KeyError("another")]

    class Buggy(PostgresSource):
        async def claim(self, worker_id: int, limit: int) -> list[Attempt]:
            if not first_ran.is_set() or not bugs:
                return await super().claim(worker_id, limit)
            raise bugs.pop()

    first_ran = asyncio.Event()

    @preset()
    async def waits(_job: Any, run: Any) -> int:
        first_ran.set()
        await let_go.wait()
        return int(run.attempt)

    first = await harness.enqueue()
    with capture_logs() as lines:
        async with harness.worker(waits, source=Buggy(harness.url, ("p",))):
            async with asyncio.timeout(WAIT_SECONDS):
                await first_ran.wait()
            second = await harness.enqueue()
            await until(lambda: not bugs)
            let_go.set()
            assert [job.output for job in await harness.ended(first, second)] == ["1", "1"]
    assert [(line["loop"], line["log_level"]) for line in lines if line["event"] == "loop.failed"] == [
        ("claim", "error")
    ] * 2


async def test_a_fault_in_a_loop_beside_the_attempts_costs_none_of_them(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would end the process, and with it attempts that ran well."""
    monkeypatch.setattr("engine.process.loops.PAUSE_SECONDS", 0.01)
    bugs = [TypeError("a bug")]
    real = StuckThreads.look

    def look(stuck: StuckThreads, occupied: Any) -> None:
        if bugs and occupied:
            raise bugs.pop()
        real(stuck, occupied)

    monkeypatch.setattr(StuckThreads, "look", look)

    @preset(timeout=1, max_attempts=1)
    async def waits(job: Any, _run: Any) -> int:
        if job.content == "long":
            await asyncio.Event().wait()
        await until(lambda: not bugs)
        return 1

    ids = [await harness.enqueue(), await harness.enqueue(content="long")]
    async with harness.worker(waits):
        done, overdue = await harness.ended(*ids)
    assert (done.state, done.attempt) == (JobState.COMPLETED, 1)
    assert overdue.error is not None
    assert (overdue.state, overdue.error["type"]) == (JobState.FAILED, "TimeoutError")
