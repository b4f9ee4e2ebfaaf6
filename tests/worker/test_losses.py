"""What goes missing, a lease, a reply, a connection, a thread, costs no job and is charged to none."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any
from uuid import UUID

import psycopg
import pytest

from engine.errors import DatabaseUnavailable
from engine.model import Attempt, Completed, JobState
from engine.moves import claim
from engine.pipeline import Pipeline
from engine.storage.notify import READY
from ops.waiting import WAIT_SECONDS, until
from tests.support.database import LANES, counters, fetchone, trail
from tests.support.wire_proxy import wire_proxy
from tests.support.worker_harness import WorkerHarness, known, preset
from worker import consumer
from worker.source import PostgresSource


def held_at_first() -> Pipeline:
    """Its first attempt never ends by itself; a later one returns its number."""

    @preset()
    async def work(_job: Any, run: Any) -> int:
        if run.attempt == 1:
            await asyncio.Event().wait()
        return int(run.attempt)

    return work


async def test_a_lost_worker_row_stops_its_attempts_drops_their_outcomes_and_brings_a_new_id(
    harness: WorkerHarness,
) -> None:
    ran: list[int] = []
    free = asyncio.Event()

    @preset()
    async def work(_job: Any, run: Any) -> int:
        ran.append(run.attempt)
        if run.attempt == 1:
            await asyncio.Event().wait()
        await free.wait()
        return int(run.attempt)

    job_id = await harness.enqueue()
    async with harness.worker(work, lease=0.6), harness.maintenance(lease=0.1):
        (worker_id,) = await harness.row("SELECT worker_id FROM outbox WHERE status = 'leased'")
        await harness.conn.execute("DELETE FROM workers")
        (new,) = await harness.row("SELECT worker_id FROM outbox WHERE attempt = 2 AND status = 'leased'")
        free.set()
        [job] = await harness.ended(job_id)
    assert new != worker_id
    assert (job.state, job.output, ran) == (JobState.COMPLETED, "2", [1, 2])
    assert await counters(harness.conn, job_id) == (2, 0, 0)


async def test_jobs_whose_claim_had_no_reply_are_released_after_two_beats_and_run(
    harness: WorkerHarness,
) -> None:
    @preset()
    async def work(_job: Any, run: Any) -> int:
        return int(run.attempt)

    ids = [await harness.enqueue() for _ in range(3)]
    async with wire_proxy(harness.url) as proxy:
        proxy.arm("claim", "after its commit")
        async with harness.worker(work, lease=0.6, url=proxy.url):
            ended = await harness.ended(*ids)
    assert [job.output for job in ended] == ["2"] * 3
    for job_id in ids:
        assert await counters(harness.conn, job_id) == (2, 0, 0)
        assert (await trail(harness.conn, job_id))[2][-1] == "unknown to its worker"


async def test_a_lease_that_runs_out_while_the_database_is_away_is_charged_to_no_job(
    harness: WorkerHarness,
) -> None:
    work = held_at_first()

    job_id = await harness.enqueue()
    async with harness.worker(work, lease=0.6) as worker:
        await harness.row("SELECT 1 FROM outbox WHERE status = 'leased'")
        async with harness.conn.transaction():
            await harness.conn.execute("SELECT 1 FROM workers FOR UPDATE")  # no beat gets through
            await until(lambda: known(worker.consumer._lease._id is None))
        [job] = await harness.ended(job_id)
    assert (job.state, job.output) == (JobState.COMPLETED, "2")
    assert await counters(harness.conn, job_id) == (2, 0, 0)
    assert (await trail(harness.conn, job_id))[2][-1] == "lease lost"


async def test_a_claim_whose_reply_was_lost_with_the_lease_is_taken_back_too(harness: WorkerHarness) -> None:
    """It is leased under the old id and was never held, so no heartbeat under the new id shows it."""
    work = held_at_first()

    held = await harness.enqueue()
    async with harness.worker(work, lease=0.9) as worker:
        (old,) = await harness.row("SELECT worker_id FROM outbox WHERE status = 'leased'")
        async with harness.conn.transaction():
            await harness.conn.execute("SELECT 1 FROM workers FOR UPDATE")
            unknown = await harness.enqueue()
            [attempt] = await claim(harness.conn, old, LANES, 1)
            assert attempt.job.id == unknown
            await until(lambda: known(worker.consumer._lease._id is None))
        await harness.ended(held, unknown)
    for job_id in (held, unknown):
        assert await counters(harness.conn, job_id) == (2, 0, 0)
        assert (await trail(harness.conn, job_id))[2][-1] == "lease lost"


@pytest.mark.parametrize("lock", ["SELECT 1 FROM outbox FOR UPDATE", "LOCK TABLE outbox"])
async def test_a_lock_on_the_outbox_longer_than_a_lease_costs_neither_lease_nor_attempt(
    harness: WorkerHarness, lock: str
) -> None:
    free = asyncio.Event()

    @preset()
    async def work(_job: Any, run: Any) -> int:
        await free.wait()
        return int(run.attempt)

    job_id = await harness.enqueue()
    async with harness.worker(work, lease=0.9), harness.maintenance(lease=0.9):
        (expires,) = await harness.row("SELECT expires_at FROM workers, outbox WHERE status = 'leased'")
        async with harness.conn.transaction():
            await harness.conn.execute(lock.encode())
            await harness.row("SELECT 1 FROM workers WHERE expires_at > %s + interval '2.5 seconds'", expires)
        free.set()
        [job] = await harness.ended(job_id)
    assert job.output == "1"
    assert await counters(harness.conn, job_id) == (1, 0, 0)


async def test_a_context_that_sql_has_written_wrongly_costs_no_worker(harness: WorkerHarness) -> None:
    @preset()
    async def work(job: Any, _run: Any) -> Any:
        return job.traceparent

    ids = [await harness.enqueue() for _ in range(3)]
    odd = dict(zip(ids, ("garbage", "", "00-zz"), strict=True))
    for job_id, context in odd.items():
        await harness.conn.execute("UPDATE jobs SET traceparent = %s WHERE id = %s", [context, job_id])
    async with harness.worker(work):
        ended = await harness.ended(*ids)
    assert {(job.state, job.output) for job in ended} == {(JobState.COMPLETED, "null")}


class SlowSource(PostgresSource):
    """A claim whose reply is long on its way."""

    def __init__(self, url: str, presets: tuple[str, ...]) -> None:
        super().__init__(url, presets)
        self.reply = asyncio.Event()

    async def claim(self, worker_id: int, limit: int) -> list[Attempt]:
        found = await super().claim(worker_id, limit)
        if found:
            await self.reply.wait()
        return found


async def test_what_is_still_being_claimed_is_not_taken_for_lost(harness: WorkerHarness) -> None:
    @preset()
    async def work(_job: Any, run: Any) -> int:
        return int(run.attempt)

    source = SlowSource(harness.url, ("p",))
    job_id = await harness.enqueue()
    async with harness.worker(work, lease=0.6, source=source):
        (expires,) = await harness.row("SELECT expires_at FROM workers, outbox WHERE status = 'leased'")
        for _ in range(4):
            (expires,) = await harness.row("SELECT expires_at FROM workers WHERE expires_at > %s", expires)
        source.reply.set()
        [job] = await harness.ended(job_id)
    assert job.output == "1"


async def test_a_claim_that_fails_is_tried_again(harness: WorkerHarness) -> None:
    errors = [DatabaseUnavailable("gone"), psycopg.DataError("a date after year 10K")]

    class Failing(PostgresSource):
        async def claim(self, worker_id: int, limit: int) -> list[Attempt]:
            if errors:
                raise errors.pop()
            return await super().claim(worker_id, limit)

    @preset()
    async def work(_job: Any, _run: Any) -> None: ...

    job_id = await harness.enqueue()
    async with harness.worker(work, source=Failing(harness.url, ("p",))):
        [job] = await harness.ended(job_id)
    assert job.state is JobState.COMPLETED


async def test_a_hint_that_comes_while_a_claim_runs_is_followed_by_another_claim(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer, "MIN_IDLE_SECONDS", 3600.0)
    monkeypatch.setattr(consumer, "MAX_IDLE_SECONDS", 3600.0)
    monkeypatch.setattr("engine.storage.listener.SOON", ())
    ids: list[UUID] = []

    class Hinted(PostgresSource):
        """The job is ready, and its hint has come, when an empty claim returns."""

        async def claim(self, worker_id: int, limit: int) -> list[Attempt]:
            found = await super().claim(worker_id, limit)
            if asked.is_set() and not ids:
                ids.append(await harness.enqueue())
                worker.consumer._on_hint(READY, "p")
            return found

    @preset()
    async def work(_job: Any, _run: Any) -> None: ...

    asked = asyncio.Event()
    async with harness.worker(work, lease=60, source=Hinted(harness.url, ("p",))) as worker:
        # The listener and the first heartbeat wake the worker, too. They come before.
        await harness.row(
            "SELECT 1 FROM pg_stat_activity, workers WHERE datname = current_database()"
            " AND application_name = 'outrider listener' AND state = 'idle' AND strpos(query, 'hints_wanted_until') > 0"
        )
        asked.set()
        worker.consumer._on_hint(READY, "p")
        await until(lambda: known(bool(ids)))
        [job] = await harness.ended(*ids)
    assert job.state is JobState.COMPLETED


async def test_a_plain_function_that_never_returns_keeps_its_slot_and_the_rest_go_on(
    harness: WorkerHarness,
) -> None:
    let_go = threading.Event()

    @preset()
    def work(job: Any, _run: Any) -> str:
        if job.content == "stuck":
            assert let_go.wait(WAIT_SECONDS)
        return "done"

    stuck = await harness.enqueue(content="stuck", max_attempts=1, timeout_seconds=1)
    async with harness.worker(work, slots=2) as worker:
        await harness.ended(stuck)
        others = [await harness.enqueue() for _ in range(5)]
        assert {job.state for job in await harness.ended(*others)} == {JobState.COMPLETED}
        assert worker.consumer._slots.occupied
        let_go.set()
        await until(lambda: known(not worker.consumer._slots.occupied))


async def test_a_worker_whose_slots_are_all_stuck_for_a_lease_drains_and_says_so(
    harness: WorkerHarness,
) -> None:
    let_go = threading.Event()

    @preset()
    def stuck(_job: Any, _run: Any) -> None:
        assert let_go.wait(WAIT_SECONDS)

    ids = [await harness.enqueue(max_attempts=1, timeout_seconds=1) for _ in range(2)]
    async with harness.worker(stuck, slots=2, lease=0.3) as worker:
        await harness.ended(*ids)
        assert await worker.ended() == 1
    assert await fetchone(harness.conn, "SELECT count(*) FROM workers") == (0,)
    let_go.set()


async def test_a_loop_blocked_for_less_than_a_lease_loses_nothing(harness: WorkerHarness) -> None:
    @preset()
    async def work(job: Any, _run: Any) -> None:
        if job.content == "block":
            time.sleep(0.8)  # noqa: ASYNC251 - this is what it must not do

    first = [await harness.enqueue() for _ in range(20)]
    block = await harness.enqueue(content="block")
    rest = [await harness.enqueue() for _ in range(20)]
    ids = [*first, block, *rest]
    async with harness.worker(work, lease=1.2, slots=7), harness.maintenance(lease=1.2):
        await harness.ended(*ids)
    assert {await counters(harness.conn, job_id) for job_id in ids} == {(1, 0, 0)}


async def test_jobs_outlive_connections_that_are_terminated_under_them(harness: WorkerHarness) -> None:
    free = asyncio.Event()

    @preset()
    async def work(_job: Any, run: Any) -> Any:
        await free.wait()

        async def effects(conn: Any) -> None:
            await conn.execute("SELECT 1")

        return Completed(run.attempt, effects)

    ids = [await harness.enqueue() for _ in range(10)]
    async with harness.worker(work, lease=5):
        await harness.row("SELECT 1 FROM outbox HAVING bool_and(status = 'leased')")
        terminate = (
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        await harness.conn.execute(terminate)
        free.set()
        for _ in range(3):
            await harness.conn.execute(terminate)
        ended = await harness.ended(*ids)
    assert {job.output for job in ended} == {"1"}
    assert {await counters(harness.conn, job_id) for job_id in ids} == {(1, 0, 0)}
