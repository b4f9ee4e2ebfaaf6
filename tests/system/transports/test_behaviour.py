"""What a job may count on, whichever way it comes to its worker: the same rules on every transport."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

from engine.errors import PermanentError
from engine.model import Completed, JobState, Snoozed
from engine.moves import redrive
from engine.moves.enqueue import enqueue
from tests.support.database import counters, fetchone, new, trail
from tests.support.transport_harness import TransportHarness
from tests.support.worker_harness import preset
from tests.system.transports.messages import terminal_states

LEASED = "SELECT 1 FROM outbox WHERE status = 'leased'"


async def test_a_job_runs_once_and_its_history_tells_it(system: TransportHarness) -> None:
    @preset()
    async def shout(job: Any, run: Any) -> dict[str, Any]:
        return {"said": job.content.upper(), "attempt": run.attempt}

    async with system.worker(shout):
        job_id = await system.enqueue(content="hello")
        [job] = await system.harness.ended(job_id)
    assert (job.state, job.output) == (JobState.COMPLETED, '{"said":"HELLO","attempt":1}')
    assert [step[1:] for step in await trail(system.harness.conn, job_id)] == [
        (None, "PENDING", 0, "enqueued"),
        ("PENDING", "PROCESSING", 1, "claimed"),
        ("PROCESSING", "COMPLETED", 1, "completed"),
    ]


async def test_an_error_is_retried_until_the_budget_is_spent(system: TransportHarness) -> None:
    @preset()
    def work(job: Any, run: Any) -> str:
        if job.content == "bad" or run.attempt < 3:
            raise ValueError(job.content)
        return "at last"

    async with system.worker(work):
        bad, good = [await system.enqueue(content=content) for content in ("bad", "good")]
        failed, done = await system.harness.ended(bad, good)
    assert (failed.state, failed.error) == (
        JobState.FAILED,
        {"type": "ValueError", "message": "bad", "attempt": 3},
    )
    assert await counters(system.harness.conn, bad) == (3, 3, 0)
    assert (done.state, done.error) == (JobState.COMPLETED, None)
    assert await counters(system.harness.conn, good) == (3, 2, 0)


async def test_a_permanent_error_fails_at_once(system: TransportHarness) -> None:
    @preset()
    async def work(_job: Any, _run: Any) -> None:
        raise PermanentError("no use")

    async with system.worker(work):
        [job] = await system.harness.ended(await system.enqueue())
    assert job.state is JobState.FAILED
    assert await counters(system.harness.conn, job.job_id) == (1, 1, 0)


async def test_a_time_out_is_an_error(system: TransportHarness) -> None:
    @preset(timeout=1, max_attempts=1)
    async def work(_job: Any, _run: Any) -> None:
        await asyncio.Event().wait()

    async with system.worker(work):
        [job] = await system.harness.ended(await system.enqueue())
    assert job.error
    assert (job.state, job.error["type"]) == (JobState.FAILED, "TimeoutError")


async def test_a_delayed_job_and_a_snoozed_one_run_later_and_not_earlier(system: TransportHarness) -> None:
    @preset("snoozes")
    async def snoozes(_job: Any, run: Any) -> Any:
        return Snoozed(0.4) if run.attempt == 1 else "awake"

    @preset("delayed")
    async def delayed(_job: Any, _run: Any) -> None: ...

    async with system.worker(snoozes, delayed):
        later = await system.enqueue("delayed", delay_seconds=0.4)
        sleeper = await system.enqueue("snoozes")
        await system.harness.ended(later, sleeper)
    waited = (
        "SELECT r.started_at >= r.run_at AND r.run_at > j.created_at + interval '0.3 s'"
        " FROM job_results r JOIN jobs j ON j.id = r.job_id WHERE r.job_id = %s"
    )
    for job_id in (later, sleeper):
        assert await fetchone(system.harness.conn, waited, job_id) == (True,)
    assert await counters(system.harness.conn, sleeper) == (2, 0, 0)


async def test_a_job_that_is_cancelled_before_it_starts_never_runs(system: TransportHarness) -> None:
    ran: list[str] = []

    @preset()
    async def work(job: Any, _run: Any) -> None:
        ran.append(job.content)

    waiting = await system.enqueue(content="waiting", delay_seconds=0.3)
    due = await system.enqueue(content="due")
    for job_id in (waiting, due):
        assert await system.cancel(job_id) is JobState.CANCELLED
    async with system.worker(work):
        await system.harness.ended(await system.enqueue(content="after", delay_seconds=0.3))
    assert ran == ["after"]


async def test_a_running_job_that_is_cancelled_is_stopped(system: TransportHarness) -> None:
    stopped = asyncio.Event()

    @preset()
    async def work(_job: Any, _run: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async with system.worker(work, lease=60):
        job_id = await system.enqueue()
        await system.harness.row(LEASED)
        assert await system.cancel(job_id) is JobState.PROCESSING
        [job] = await system.harness.ended(job_id)
        assert stopped.is_set()
    assert job.state is JobState.CANCELLED


async def test_effects_happen_exactly_once_for_each_completed_job(system: TransportHarness) -> None:
    await system.harness.conn.execute("CREATE TABLE effects (job_id uuid)")

    @preset()
    async def work(job: Any, run: Any) -> Completed:
        async def effects(conn: Any) -> None:
            await conn.execute("INSERT INTO effects VALUES (%s)", [job.id])
            if run.attempt == 1 and job.content == "trips":
                raise ValueError("after its effect")

        return Completed(run.attempt, effects)

    async with system.worker(work):
        ids = [await system.enqueue(content=content) for content in ("trips", "plain") * 10]
        ended = await system.harness.ended(*ids)
    assert {job.state for job in ended} == {JobState.COMPLETED}
    cursor = await system.harness.conn.execute("SELECT job_id FROM effects ORDER BY job_id")
    assert [job_id for (job_id,) in await cursor.fetchall()] == sorted(ids)


async def test_a_failed_job_that_is_redriven_runs_again(system: TransportHarness) -> None:
    fixed = asyncio.Event()

    @preset(max_attempts=1)
    async def work(_job: Any, run: Any) -> int:
        if not fixed.is_set():
            raise ValueError("broken")
        return int(run.attempt)

    async with system.worker(work):
        job_id = await system.enqueue()
        await system.harness.ended(job_id)
        fixed.set()
        await redrive(system.harness.conn, job_id, None)
        [job] = await system.harness.ended(job_id)
    assert (job.state, job.output) == (JobState.COMPLETED, "2")
    assert await terminal_states(system.harness.conn, job_id) == ["FAILED", "COMPLETED"]


async def test_two_workers_share_the_jobs_and_run_each_once(system: TransportHarness) -> None:
    ran: list[UUID] = []

    @preset()
    async def work(job: Any, _run: Any) -> None:
        ran.append(job.id)

    async with system.worker(work), system.worker(work):
        ids = [await system.enqueue() for _ in range(300)]
        await system.harness.ended(*ids)
    assert sorted(ran) == sorted(ids)


async def test_the_urgent_run_first_where_that_is_promised(system: TransportHarness) -> None:
    ran: list[str] = []

    @preset()
    async def work(job: Any, _run: Any) -> None:
        ran.append(job.content)

    ids = [await system.enqueue(content=str(level), priority=level) for level in (4, 2, 3, 1) * 2]
    async with system.worker(work, slots=1):
        await system.harness.ended(*ids)
    assert sorted(ran) == [*"11223344"]
    if system.broker is None:
        assert ran == sorted(ran)


async def test_a_job_of_a_transaction_that_rolled_back_never_runs(system: TransportHarness) -> None:
    ran: list[str] = []

    @preset()
    async def work(job: Any, _run: Any) -> None:
        ran.append(job.content)

    async with system.worker(work):
        async with system.harness.conn.transaction(force_rollback=True):
            await enqueue(system.harness.conn, new(content="rolled back"))
        await system.harness.ended(await system.enqueue(content="committed"))
    assert ran == ["committed"]
