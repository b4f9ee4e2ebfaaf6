"""Effects happen in the transaction that completes their job: with the result or not at all, and once."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from psycopg.rows import dict_row

from engine.model import Completed, Failed, JobState
from engine.moves import claim
from engine.storage.connections import open_pool
from engine.tables.outbox import Lane
from tests.support.database import Conn, counters, fetchone, worker
from tests.support.wire_proxy import Moment, wire_proxy
from tests.support.worker_harness import WorkerHarness, attempts, dropped, preset


async def ledger(conn: Conn) -> None:
    await conn.execute("CREATE TABLE ledger (job_id uuid, note text)")


async def test_effects_are_written_with_the_result_or_not_at_all(harness: WorkerHarness) -> None:
    await ledger(harness.conn)

    @preset(max_attempts=5)
    async def answer(job: Any, run: Any) -> Completed:
        async def effects(conn: Conn) -> None:
            await conn.execute("INSERT INTO ledger VALUES (%s, %s)", [job.id, str(run.attempt)])
            if run.attempt < 3:
                raise {1: ValueError, 2: SystemExit}[run.attempt]("no")

        return Completed(run.attempt, effects)

    job_id = await harness.enqueue()
    async with harness.worker(answer), harness.maintenance():
        [job] = await harness.ended(job_id)
    assert (job.state, job.output) == (JobState.COMPLETED, "3")
    assert await counters(harness.conn, job_id) == (3, 2, 0)
    assert await fetchone(harness.conn, "SELECT count(*), min(note) FROM ledger") == (1, "3")


@pytest.mark.parametrize(
    "error",
    [ValueError("no"), SystemExit(), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError()],
    ids=lambda error: type(error).__name__,
)
async def test_effects_that_always_raise_use_up_the_budget(
    harness: WorkerHarness, error: BaseException
) -> None:
    @preset(max_attempts=2)
    def answer(_job: Any, _run: Any) -> Completed:
        async def effects(_conn: Conn) -> None:
            raise error

        return Completed(None, effects)

    job_id = await harness.enqueue()
    async with harness.worker(answer), harness.maintenance():
        [job] = await harness.ended(job_id)
    assert job.state is JobState.FAILED
    assert job.error
    assert job.error["type"] == type(error).__name__
    assert await counters(harness.conn, job_id) == (2, 2, 0)


async def test_effects_that_are_a_plain_function_fail_the_job_at_once_with_the_fix(
    harness: WorkerHarness,
) -> None:
    @preset(max_attempts=3)
    def answer(_job: Any, _run: Any) -> Completed:
        def effects(_conn: Conn) -> None: ...

        return Completed(None, effects)  # type: ignore[arg-type]  # the mistake that is tested

    job_id = await harness.enqueue()
    async with harness.worker(answer), harness.maintenance():
        [job] = await harness.ended(job_id)
    assert job.state is JobState.FAILED
    assert job.error
    assert "must be an async one" in job.error["message"]
    assert await counters(harness.conn, job_id) == (1, 1, 0)


@pytest.mark.parametrize("moment", ["before it is sent", "after its commit"])
async def test_effects_whose_connection_is_cut_at_commit_happen_once(
    harness: WorkerHarness, moment: Moment
) -> None:
    await ledger(harness.conn)
    name = f"effects-{moment[:3]}"
    calls = 0

    async with (
        wire_proxy(harness.url) as proxy,
        open_pool(proxy.url, name="effects", size=2, reset_on_return=True) as pool,
    ):

        @preset(name)
        async def answer(job: Any, _run: Any) -> Completed:
            async def effects(conn: Conn) -> None:
                nonlocal calls
                calls += 1
                await conn.execute("INSERT INTO ledger VALUES (%s, 'done')", [job.id])
                if calls == 1:
                    proxy.arm("effects", moment, "COMMIT")

            return Completed(None, effects)

        async with harness.worker(answer, effects=pool):
            [job] = await harness.ended(job_id := await harness.enqueue(name))
    assert (job.state, proxy.cuts) == (JobState.COMPLETED, 1)
    assert calls == (1 if moment == "after its commit" else 2)
    assert dropped(name) == 0
    assert await fetchone(harness.conn, "SELECT count(*) FROM ledger") == (1,)
    assert await counters(harness.conn, job_id) == (1, 0, 0)


async def test_effects_that_break_their_connection_each_time_use_up_the_budget(
    harness: WorkerHarness,
) -> None:
    calls = 0

    @preset(max_attempts=1)
    async def answer(_job: Any, _run: Any) -> Completed:
        async def effects(conn: Conn) -> None:
            nonlocal calls
            calls += 1
            await conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")

        return Completed(None, effects)

    job_id = await harness.enqueue()
    async with harness.worker(answer):
        [job] = await harness.ended(job_id)
    assert job.state is JobState.FAILED
    assert calls == 3


async def test_effects_that_last_longer_than_the_job_may_are_stopped_and_count_as_an_error(
    harness: WorkerHarness,
) -> None:
    @preset(max_attempts=1)
    async def answer(_job: Any, _run: Any) -> Completed:
        async def effects(conn: Conn) -> None:
            await conn.execute("SELECT pg_sleep(30)")

        return Completed(None, effects)

    job_id = await harness.enqueue(timeout_seconds=1)
    async with harness.worker(answer):
        [job] = await harness.ended(job_id)
    assert job.error
    assert (job.state, job.error["type"]) == (JobState.FAILED, "TimeoutError")


async def test_a_time_out_that_effects_raise_themselves_is_an_error_like_any_other(
    harness: WorkerHarness,
) -> None:
    @preset("theirs", max_attempts=1)
    async def answer(_job: Any, _run: Any) -> Completed:
        async def effects(_conn: Conn) -> None:
            raise TimeoutError("theirs")

        return Completed(None, effects)

    before = attempts("theirs", "failed"), attempts("theirs", "timeout")
    job_id = await harness.enqueue("theirs")
    async with harness.worker(answer):
        await harness.ended(job_id)
    assert (attempts("theirs", "failed"), attempts("theirs", "timeout")) == (before[0] + 1, before[1])


async def test_a_deadlock_between_effects_spends_nothing(harness: WorkerHarness) -> None:
    await ledger(harness.conn)
    await harness.conn.execute("INSERT INTO ledger VALUES (NULL, 'a'), (NULL, 'b')")
    both = asyncio.Barrier(2)
    tries = 0

    @preset()
    async def answer(job: Any, _run: Any) -> Completed:
        async def effects(conn: Conn) -> None:
            nonlocal tries
            tries += 1
            await conn.execute("SET LOCAL deadlock_timeout = '50ms'")
            for note in (job.content, {"a": "b", "b": "a"}[job.content]):
                await conn.execute("SELECT 1 FROM ledger WHERE note = %s FOR UPDATE", [note])
                if tries <= 2 and note == job.content:
                    await both.wait()

        return Completed(None, effects)

    ids = [await harness.enqueue(content=content) for content in "ab"]
    async with harness.worker(answer):
        states = [each.state for each in await harness.ended(*ids)]
    assert states == [JobState.COMPLETED] * 2
    assert tries == 3
    assert [await counters(harness.conn, job_id) for job_id in ids] == [(1, 0, 0)] * 2


async def test_a_constraint_that_fails_at_commit_is_an_error_of_the_effects(harness: WorkerHarness) -> None:
    await harness.conn.execute("CREATE TABLE parent (id int PRIMARY KEY)")
    await harness.conn.execute(
        "CREATE TABLE child (parent int REFERENCES parent DEFERRABLE INITIALLY DEFERRED)"
    )

    @preset(max_attempts=2)
    async def answer(_job: Any, _run: Any) -> Completed:
        async def effects(conn: Conn) -> None:
            await conn.execute("INSERT INTO child VALUES (7)")

        return Completed(None, effects)

    job_id = await harness.enqueue()
    async with harness.worker(answer), harness.maintenance():
        [job] = await harness.ended(job_id)
    assert job.error
    assert (job.state, job.error["type"]) == (JobState.FAILED, "ForeignKeyViolation")
    assert await counters(harness.conn, job_id) == (2, 2, 0)


async def test_several_serialization_failures_in_a_row_spend_nothing(harness: WorkerHarness) -> None:
    tries = 0

    @preset(max_attempts=1)
    async def answer(_job: Any, _run: Any) -> Completed:
        async def effects(conn: Conn) -> None:
            nonlocal tries
            tries += 1
            if tries <= 5:
                await conn.execute("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$")

        return Completed(None, effects)

    job_id = await harness.enqueue()
    async with harness.worker(answer):
        [job] = await harness.ended(job_id)
    assert (job.state, tries) == (JobState.COMPLETED, 6)
    assert await counters(harness.conn, job_id) == (1, 0, 0)


async def test_what_effects_do_to_their_connection_ends_with_them(harness: WorkerHarness) -> None:
    seen: list[Any] = []

    @preset()
    async def answer(_job: Any, _run: Any) -> Completed:
        async def effects(conn: Conn) -> None:
            cursor = await conn.execute(
                "SELECT current_setting('statement_timeout'), pg_try_advisory_lock(7)"
            )
            seen.append(await cursor.fetchone())
            conn.row_factory = dict_row
            await conn.execute("SET statement_timeout = 12345")

        return Completed("done", effects)

    ids = [await harness.enqueue() for _ in range(3)]
    async with (
        open_pool(harness.url, name="effects", size=1, reset_on_return=True) as alone,
        harness.worker(answer, effects=alone),
    ):
        assert [each.state for each in await harness.ended(*ids)] == [JobState.COMPLETED] * 3
    assert seen == [("0", True)] * 3


async def test_effects_of_a_lost_attempt_are_never_run(harness: WorkerHarness) -> None:
    ran = False
    free = threading.Event()

    @preset()
    def answer(_job: Any, run: Any) -> Any:
        async def effects(_conn: Conn) -> None:
            nonlocal ran
            ran = True

        if run.attempt > 1:
            return Failed("the second attempt")
        assert free.wait(10)
        return Completed("the first attempt", effects)

    job_id = await harness.enqueue()
    async with harness.worker(answer, lease=30):
        await harness.row("SELECT 1 FROM outbox WHERE status = 'leased'")
        await harness.conn.execute(
            "WITH taken AS (UPDATE outbox SET status = 'ready', worker_id = NULL, version = version + 1)"
            " INSERT INTO job_state_records (job_id, seq, from_state, to_state, attempt, reason)"
            " VALUES (%s, 2, 'PROCESSING', 'PENDING', 1, 'taken')",
            [job_id],
        )
        await harness.row("SELECT 1 FROM outbox WHERE attempt = 2 UNION ALL SELECT 1 FROM job_results")
        free.set()
        [job] = await harness.ended(job_id)
        assert job.error
        assert (job.state, job.error["message"]) == (JobState.FAILED, "the second attempt")
    assert not ran


async def test_nothing_takes_an_attempt_while_its_effects_run(harness: WorkerHarness) -> None:
    """Its worker's row is gone, and a lapse takes the jobs of other dead workers."""
    await ledger(harness.conn)
    begun, free = asyncio.Event(), asyncio.Event()

    @preset()
    async def answer(job: Any, run: Any) -> Completed:
        async def effects(conn: Conn) -> None:
            begun.set()
            await free.wait()
            await conn.execute("INSERT INTO ledger VALUES (%s, %s)", [job.id, str(run.attempt)])

        return Completed(None, effects)

    job_id = await harness.enqueue()
    async with asyncio.timeout(30), harness.worker(answer, lease=60), harness.maintenance():
        await begun.wait()
        dead = await worker(harness.conn)
        other = await harness.enqueue("elsewhere")
        assert await claim(harness.conn, dead, [Lane("elsewhere", 2)], 1)
        await harness.conn.execute("DELETE FROM workers")
        await harness.row("SELECT 1 FROM outbox WHERE job_id = %s AND status = 'ready'", other)
        free.set()
        [job] = await harness.ended(job_id)
    assert job.state is JobState.COMPLETED
    assert await counters(harness.conn, job_id) == (1, 0, 0)
    assert await fetchone(harness.conn, "SELECT count(*), min(note) FROM ledger") == (1, "1")
