"""The maintained move and remove what is due, all of it and nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from uuid import UUID, uuid4

import pytest
from prometheus_client import REGISTRY
from psycopg import sql
from psycopg.errors import InsufficientPrivilege
from structlog.testing import capture_logs

from engine.errors import OutriderError
from engine.ids import first_id_of, uuid7
from engine.model import JobState, Reason
from engine.moves import Ending, claim, finish
from engine.storage.connections import open_pool
from engine.tables.outbox import Lane
from engine.tables.progress import Progress, report
from ops.waiting import until
from relay.maintenance.loop import Maintenance
from relay.maintenance.tasks import BATCH, PeriodicTask
from tests.support.database import Conn, fetchone, make_too_slow, started, worker
from tests.support.worker_harness import WorkerHarness

Maintained = Callable[..., Maintenance]


@pytest.fixture
async def maintained(harness: WorkerHarness) -> AsyncIterator[Maintained]:
    made: list[Maintenance] = []

    def make(
        lease: float = 60, retention_days: int = 0, on_ready: Callable[[], None] = lambda: None
    ) -> Maintenance:
        maintenance = Maintenance(
            harness.url, harness.pool, lease_seconds=lease, retention_days=retention_days, on_ready=on_ready
        )
        made.append(maintenance)
        return maintenance

    yield make
    for each in made:
        await each.aclose()


async def once(maintenance: Maintenance, name: str, conn: Conn) -> int:
    [task] = [each for each in maintenance.tasks if each.name == name]
    return await task.work(conn, BATCH)


async def many(conn: Conn, count: int) -> None:
    """Waiting jobs that are due, as SQL would write them."""
    await conn.execute(
        "WITH made AS (SELECT outrider_enqueue('ann', 'p', 'text', '{}', 2, now() + interval '1 hour')"
        " FROM generate_series(1, %s)) SELECT count(*) FROM made",
        [count],
    )
    await conn.execute("UPDATE outbox SET run_at = clock_timestamp() - interval '1 second'")


async def test_more_due_jobs_than_a_batch_are_all_promoted_and_the_rest_wait(harness: WorkerHarness) -> None:
    woken = 0

    def on_ready() -> None:
        nonlocal woken
        woken += 1

    await many(harness.conn, 2 * BATCH + 5)
    later = await harness.enqueue()
    await harness.conn.execute(
        "UPDATE outbox SET status = 'waiting', ready_at = NULL, run_at = now() + interval '1 hour'"
        " WHERE job_id = %s",
        [later],
    )
    async with harness.maintenance() as maintenance:
        maintenance._on_ready = on_ready
        await harness.row("SELECT 1 FROM outbox HAVING count(*) FILTER (WHERE status = 'waiting') = 1")
    assert await fetchone(harness.conn, "SELECT job_id FROM outbox WHERE status = 'waiting'") == (later,)
    assert woken
    positions = "SELECT count(DISTINCT position), count(*) FROM outbox"
    assert len(set(await fetchone(harness.conn, positions))) == 1


async def test_progress_goes_with_its_attempt(harness: WorkerHarness, maintained: Maintained) -> None:
    worker_id = await worker(harness.conn)
    running, over, ended = [await started(harness.conn, worker_id) for _ in range(3)]
    await report(
        harness.conn,
        [
            Progress(*running.key, 1, 0.5, ""),
            Progress(over.job.id, over.number - 1, 1, 0.5, ""),
            Progress(*ended.key, 1, 0.5, ""),
        ],
    )
    await finish(harness.conn, worker_id, [Ending(*ended.key, JobState.COMPLETED, Reason.COMPLETED, "1")])
    assert await once(maintained(), "prune_progress", harness.conn) == 2
    assert await fetchone(harness.conn, "SELECT job_id FROM job_progress") == (running.job.id,)


async def test_idempotency_keys_go_when_they_expire(harness: WorkerHarness, maintained: Maintained) -> None:
    await harness.conn.execute(
        "INSERT INTO idempotency_keys SELECT 'ann', 'run', n, 'x', '[]', now() + n * interval '1 hour'"
        " FROM generate_series(-3, 2) n"
    )
    assert await once(maintained(), "prune_keys", harness.conn) == 4
    assert await fetchone(harness.conn, "SELECT array_agg(key ORDER BY key) FROM idempotency_keys") == (
        ["1", "2"],
    )


async def finished(conn: Conn, worker_id: int, days: float, state: JobState) -> UUID:
    made = first_id_of(time.time() - days * 86_400).int + uuid7().int % 2**80
    attempt = await started(conn, worker_id, id=UUID(int=made))
    await finish(conn, worker_id, [Ending(*attempt.key, state, Reason(state.lower()))])
    await conn.execute(
        "UPDATE job_results SET finished_at = now() - %s * interval '1 day' WHERE job_id = %s",
        [days, attempt.job.id],
    )
    return attempt.job.id


async def test_finished_jobs_go_whole_after_their_days_and_others_stay(
    harness: WorkerHarness, maintained: Maintained
) -> None:
    worker_id = await worker(harness.conn)
    for state in (JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED):
        await finished(harness.conn, worker_id, 8.01, state)
        await finished(harness.conn, worker_id, 7.99, state)
    await started(harness.conn, worker_id)
    old = await harness.enqueue()
    await harness.conn.execute("UPDATE jobs SET created_at = now() - interval '1 year' WHERE id = %s", [old])
    maintenance = maintained(retention_days=8)
    assert await once(maintenance, "prune_jobs", harness.conn) == 3
    assert await once(maintenance, "prune_jobs", harness.conn) == 0
    assert await fetchone(
        harness.conn,
        "SELECT (SELECT count(*) FROM jobs), (SELECT count(*) FROM job_results),"
        " (SELECT count(DISTINCT job_id) FROM job_state_records)",
    ) == (5, 3, 5)


async def test_without_a_retention_nothing_finished_is_ever_removed(maintained: Maintained) -> None:
    assert "prune_jobs" not in {each.name for each in maintained().tasks}


async def test_maintenance_without_the_rights_for_it_fails_rather_than_do_nothing(
    harness: WorkerHarness, maintained: Maintained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.maintenance.vacuum.DEAD_ROWS", 0)
    role = sql.Identifier(f"stranger_{uuid4().hex}")
    await harness.conn.execute(sql.SQL("CREATE ROLE {}; SET ROLE {}").format(role, role))
    try:
        with pytest.raises(InsufficientPrivilege, match="outbox"):
            await once(maintained(), "vacuum", harness.conn)
    finally:
        await harness.conn.execute(sql.SQL("RESET ROLE; DROP ROLE {}").format(role))
    assert await once(maintained(), "vacuum", harness.conn) == 0


async def test_a_busy_outbox_is_vacuumed(
    harness: WorkerHarness, maintained: Maintained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.maintenance.vacuum.DEAD_ROWS", 50)
    await harness.conn.execute("ALTER TABLE outbox SET (autovacuum_enabled = false)")
    await many(harness.conn, 60)
    await harness.conn.execute("SELECT pg_stat_force_next_flush()")
    await harness.row("SELECT 1 FROM pg_stat_user_tables WHERE relname = 'outbox' AND n_dead_tup >= 50")
    await once(maintained(), "vacuum", harness.conn)
    await harness.conn.execute("SELECT pg_stat_force_next_flush()")
    await harness.row("SELECT 1 FROM pg_stat_user_tables WHERE relname = 'outbox' AND vacuum_count = 1")


async def test_a_table_that_has_outgrown_its_statistics_is_planned_for_as_it_is(
    harness: WorkerHarness, maintained: Maintained
) -> None:
    """VACUUM of an emptied table says that its pages hold no rows, and that is believed for all pages to come."""
    maintenance = maintained()

    async def planned() -> bool:
        await once(maintenance, "analyze", harness.conn)
        (rows,) = await fetchone(harness.conn, "SELECT reltuples FROM pg_class WHERE relname = 'outbox'")
        return bool(rows > 500)

    await many(harness.conn, 600)
    await harness.conn.execute("DELETE FROM outbox; DELETE FROM jobs; DELETE FROM job_state_records")
    await harness.conn.execute("VACUUM (TRUNCATE false) outbox")
    assert await fetchone(
        harness.conn, "SELECT reltuples, relpages > 0 FROM pg_class WHERE relname = 'outbox'"
    ) == (
        0,
        True,
    )
    await many(harness.conn, 1200)
    await harness.conn.execute("SELECT pg_stat_force_next_flush()")
    await until(planned)


async def test_maintenance_is_ready_once_promote_and_lapse_succeed_and_until_they_have_not_for_a_lease(
    harness: WorkerHarness,
) -> None:
    async def ready() -> bool:
        try:
            await maintenance.ready()
        except OutriderError:
            return False
        return True

    async def behind() -> bool:
        return not await ready()

    async with harness.maintenance(lease=0.3) as maintenance:
        assert await behind()
        await until(ready)
        for needed in ("outbox", "workers"):
            async with harness.conn.transaction():
                await harness.conn.execute(f"LOCK TABLE {needed} IN ACCESS EXCLUSIVE MODE".encode())
                await until(behind)
            await until(ready)


async def test_a_task_that_fails_runs_again(harness: WorkerHarness) -> None:
    def errors() -> float:
        labels = {"task": "promote"}
        return REGISTRY.get_sample_value("outrider_maintenance_errors_total", labels) or 0.0

    async def more() -> bool:
        return errors() > before

    before = errors()
    await many(harness.conn, 1)
    await harness.conn.execute("ALTER TABLE outbox RENAME TO elsewhere")
    async with harness.maintenance(lease=60):
        await until(more)
        await harness.conn.execute("ALTER TABLE elsewhere RENAME TO outbox")
        await harness.row("SELECT 1 FROM outbox WHERE status = 'ready'")


async def test_a_pool_that_effects_have_emptied_does_not_stop_promotion(harness: WorkerHarness) -> None:
    await many(harness.conn, 1)
    async with open_pool(harness.url, name="small", size=1) as pool:
        maintenance = Maintenance(
            harness.url, pool, lease_seconds=60, retention_days=0, on_ready=lambda: None
        )
        async with pool.connection():
            stop = asyncio.Event()
            task = asyncio.create_task(maintenance.run(stop))
            await harness.row("SELECT 1 FROM outbox WHERE status = 'ready'")
            stop.set()
        await task


async def test_two_maintainers_promote_each_job_once(harness: WorkerHarness) -> None:
    await many(harness.conn, 500)
    async with harness.maintenance(), harness.maintenance():
        await harness.row("SELECT 1 FROM outbox HAVING bool_and(status = 'ready')")
    assert await fetchone(harness.conn, "SELECT count(DISTINCT position) FROM outbox") == (500,)


@pytest.mark.parametrize(
    "fault", [lambda: TypeError("a bug"), asyncio.CancelledError], ids=["bug", "cancelled below"]
)
@pytest.mark.parametrize("name", ["promote", "sample", "prune_keys"])
async def test_a_task_that_fails_unexpectedly_stops_no_other_and_is_run_again(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch, name: str, fault: Callable[[], BaseException]
) -> None:
    """The same input would end the task in every relay, and nothing would be promoted any more."""
    monkeypatch.setattr("relay.maintenance.loop.SAMPLE_SECONDS", 0.01)
    monkeypatch.setattr("relay.maintenance.loop.prune_tasks", lambda _days: [])
    monkeypatch.setattr("relay.maintenance.loop.vacuum_tasks", list)
    runs = {"promote": 0, "sample": 0, "prune_keys": 0}

    async def fails_twice(*_args: object) -> int:
        runs[name] += 1
        if runs[name] < 3:
            raise fault()
        return 0

    await many(harness.conn, 1)
    maintenance = Maintenance(harness.url, harness.pool, lease_seconds=60, on_ready=lambda: None)
    if name == "promote":
        real = maintenance._promote
        monkeypatch.setattr(maintenance, "_promote", lambda: fails_twice() if runs[name] < 2 else real())
    elif name == "sample":
        monkeypatch.setattr(maintenance.sampler, "sample", fails_twice)
    else:
        maintenance.tasks = [PeriodicTask(name, 0.01, fails_twice)]
    stop = asyncio.Event()
    with capture_logs() as lines:
        task = asyncio.create_task(maintenance.run(stop))
        await harness.row("SELECT 1 FROM outbox WHERE status = 'ready'")
        await until(lambda: [line for line in lines if line["event"] == "maintenance.recovered"])
        stop.set()
        await task
    [failed] = [line for line in lines if line["event"] == "maintenance.failed"]
    assert (failed["task"], failed["log_level"]) == (name, "error")
    assert isinstance(failed["exc_info"], type(fault()))


async def test_a_database_too_slow_for_a_whole_batch_promotes_smaller_ones(harness: WorkerHarness) -> None:
    """A batch that hits its deadline is rolled back: with a fixed size nothing would ever move."""
    await many(harness.conn, 300)
    await make_too_slow(harness.conn, "UPDATE ON outbox", 60)
    maintenance = Maintenance(harness.url, harness.pool, lease_seconds=60, on_ready=lambda: None)
    stop = asyncio.Event()
    task = asyncio.create_task(maintenance.run(stop))
    try:
        await harness.row("SELECT 1 FROM outbox HAVING bool_and(status = 'ready')")
        assert maintenance._promotes.current < 300
    finally:
        stop.set()
        await task


async def test_a_database_too_slow_for_a_whole_batch_lapses_smaller_ones(harness: WorkerHarness) -> None:
    """The attempts of one worker lapse together, so the size is a number of workers."""
    for _ in range(150):
        await harness.enqueue()
    for _ in range(10):
        assert len(await claim(harness.conn, await worker(harness.conn), [Lane("p", 2)], 15)) == 15
    await harness.conn.execute("DELETE FROM workers")
    await make_too_slow(harness.conn, "UPDATE ON outbox", 60)
    maintenance = Maintenance(harness.url, harness.pool, lease_seconds=0.1, on_ready=lambda: None)
    stop = asyncio.Event()
    task = asyncio.create_task(maintenance.run(stop))
    try:
        await harness.row("SELECT 1 FROM outbox HAVING bool_and(status = 'ready')")
    finally:
        stop.set()
        await task


async def test_an_idempotency_key_is_kept_to_its_last_minute(
    harness: WorkerHarness, maintained: Maintained
) -> None:
    await harness.conn.execute(
        "INSERT INTO idempotency_keys VALUES ('ann', 'run', 'k', 'x', '[]', now() + interval '1 minute')"
    )
    assert await once(maintained(), "prune_keys", harness.conn) == 0
