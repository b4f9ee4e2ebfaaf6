"""The chores move and remove what is due, all of it and nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from uuid import UUID, uuid4

import pytest
from prometheus_client import REGISTRY
from psycopg import sql
from psycopg.errors import InsufficientPrivilege

from engine.db import open_pool
from engine.errors import DatabaseUnavailable
from engine.maintenance import BATCH, Maintenance
from engine.model import JobState, first_id_of, uuid7
from engine.moves import Ending, Lane, claim, finish
from engine.progress import Progress, report
from tests.engine.scene import Scene, until
from tests.helpers import Conn, counters, fetchone, started, worker

Chores = Callable[..., Maintenance]


@pytest.fixture
async def chores(scene: Scene) -> AsyncIterator[Chores]:
    made: list[Maintenance] = []

    def make(
        lease: float = 60, retention_days: int = 0, on_ready: Callable[[], None] = lambda: None
    ) -> Maintenance:
        maintenance = Maintenance(
            scene.url, scene.pool, lease_seconds=lease, retention_days=retention_days, on_ready=on_ready
        )
        made.append(maintenance)
        return maintenance

    yield make
    for each in made:
        await each.aclose()


async def once(maintenance: Maintenance, name: str, conn: Conn) -> int:
    [chore] = [each for each in maintenance.chores if each.name == name]
    return await chore.work(conn)


async def many(conn: Conn, count: int) -> None:
    """Waiting jobs that are due, as SQL would write them."""
    await conn.execute(
        "WITH made AS (SELECT outrider_enqueue('ann', 'p', 'text', '{}', 2, now() + interval '1 hour')"
        " FROM generate_series(1, %s)) SELECT count(*) FROM made",
        [count],
    )
    await conn.execute("UPDATE outbox SET run_at = clock_timestamp() - interval '1 second'")


async def test_more_due_jobs_than_a_batch_are_all_promoted_and_the_rest_wait(scene: Scene) -> None:
    woken = 0

    def on_ready() -> None:
        nonlocal woken
        woken += 1

    await many(scene.conn, 2 * BATCH + 5)
    later = await scene.enqueue()
    await scene.conn.execute(
        "UPDATE outbox SET status = 'waiting', ready_at = NULL, run_at = now() + interval '1 hour'"
        " WHERE job_id = %s",
        [later],
    )
    async with scene.maintenance() as maintenance:
        maintenance._on_ready = on_ready
        await scene.row("SELECT 1 FROM outbox HAVING count(*) FILTER (WHERE status = 'waiting') = 1")
    assert await fetchone(scene.conn, "SELECT job_id FROM outbox WHERE status = 'waiting'") == (later,)
    assert woken
    positions = "SELECT count(DISTINCT position), count(*) FROM outbox"
    assert len(set(await fetchone(scene.conn, positions))) == 1


async def test_nothing_lapses_before_maintenance_has_been_connected_for_a_lease(
    scene: Scene, chores: Chores
) -> None:
    """After an outage every lease has expired, and those whose workers live will be renewed in a moment."""
    attempt = await started(scene.conn, await worker(scene.conn, seconds=-1 + 2))
    await scene.conn.execute("UPDATE workers SET expires_at = clock_timestamp() - interval '1 hour'")
    maintenance = chores(lease=1.0)
    began = time.monotonic()
    assert await maintenance._lapse() == 0

    async def lapsed() -> int:
        return await maintenance._lapse()

    assert await until(lapsed) == 1
    assert time.monotonic() - began >= 1.0
    assert await counters(scene.conn, attempt.job) == (1, 0, 1)


async def test_a_lost_connection_starts_the_wait_before_the_first_lapse_again(
    scene: Scene, chores: Chores
) -> None:
    maintenance = chores(lease=0.5)
    await maintenance._lapse()
    began = maintenance._lapsing_since
    assert began is not None
    await scene.conn.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE application_name = 'outrider lapse' AND datname = current_database()"
    )
    await maintenance._lapse()
    again = maintenance._lapsing_since
    assert again is not None
    assert again[0] is not began[0]
    assert again[1] > began[1]


async def test_a_job_that_loses_its_worker_three_times_fails(scene: Scene) -> None:
    job_id = await scene.enqueue()
    scene.limits["p"] = 3
    async with scene.maintenance(lease=0.05):
        for crash in (1, 2, 3):
            worker_id = await worker(scene.conn)
            await scene.row("SELECT 1 FROM outbox WHERE status = 'ready'")
            [attempt] = await claim(scene.conn, worker_id, [Lane("p", 2)], 1)
            assert attempt.number == crash
            await scene.conn.execute("DELETE FROM workers WHERE id = %s", [worker_id])
        [job] = await scene.ended(job_id)
    assert job.error
    assert (job.state, job.error["type"]) == (JobState.FAILED, "WorkerLost")
    assert await counters(scene.conn, job_id) == (3, 0, 3)


async def test_progress_goes_with_its_attempt(scene: Scene, chores: Chores) -> None:
    worker_id = await worker(scene.conn)
    running, over, ended = [await started(scene.conn, worker_id) for _ in range(3)]
    await report(
        scene.conn,
        [
            Progress(*running.key, 1, 0.5, ""),
            Progress(over.job.id, over.number - 1, 1, 0.5, ""),
            Progress(*ended.key, 1, 0.5, ""),
        ],
    )
    await finish(scene.conn, worker_id, [Ending(*ended.key, JobState.COMPLETED, "completed", "1")])
    assert await once(chores(), "prune_progress", scene.conn) == 2
    assert await fetchone(scene.conn, "SELECT job_id FROM job_progress") == (running.job.id,)


async def test_idempotency_keys_go_when_they_expire(scene: Scene, chores: Chores) -> None:
    await scene.conn.execute(
        "INSERT INTO idempotency_keys SELECT 'ann', 'run', n, 'x', '[]', now() + n * interval '1 hour'"
        " FROM generate_series(-3, 2) n"
    )
    assert await once(chores(), "prune_keys", scene.conn) == 4
    assert await fetchone(scene.conn, "SELECT array_agg(key ORDER BY key) FROM idempotency_keys") == (
        ["1", "2"],
    )


async def finished(conn: Conn, worker_id: int, days: float, state: JobState) -> UUID:
    made = first_id_of(time.time() - days * 86_400).int + uuid7().int % 2**80
    attempt = await started(conn, worker_id, id=UUID(int=made))
    await finish(conn, worker_id, [Ending(*attempt.key, state, "ended")])
    await conn.execute(
        "UPDATE job_results SET finished_at = now() - %s * interval '1 day' WHERE job_id = %s",
        [days, attempt.job.id],
    )
    return attempt.job.id


async def test_finished_jobs_go_whole_after_their_days_and_others_stay(scene: Scene, chores: Chores) -> None:
    worker_id = await worker(scene.conn)
    for state in (JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED):
        await finished(scene.conn, worker_id, 8.01, state)
        await finished(scene.conn, worker_id, 7.99, state)
    await started(scene.conn, worker_id)
    old = await scene.enqueue()
    await scene.conn.execute("UPDATE jobs SET created_at = now() - interval '1 year' WHERE id = %s", [old])
    maintenance = chores(retention_days=8)
    assert await once(maintenance, "prune_jobs", scene.conn) == 3
    assert await once(maintenance, "prune_jobs", scene.conn) == 0
    assert await fetchone(
        scene.conn,
        "SELECT (SELECT count(*) FROM jobs), (SELECT count(*) FROM job_results),"
        " (SELECT count(DISTINCT job_id) FROM job_state_records)",
    ) == (5, 3, 5)


async def test_without_a_retention_nothing_finished_is_ever_removed(chores: Chores) -> None:
    assert "prune_jobs" not in {each.name for each in chores().chores}


async def test_upkeep_without_the_rights_for_it_fails_rather_than_do_nothing(
    scene: Scene, chores: Chores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.maintenance.DEAD_ROWS", 0)
    role = sql.Identifier(f"stranger_{uuid4().hex}")
    await scene.conn.execute(sql.SQL("CREATE ROLE {}; SET ROLE {}").format(role, role))
    try:
        with pytest.raises(InsufficientPrivilege, match="outbox"):
            await once(chores(), "vacuum", scene.conn)
    finally:
        await scene.conn.execute(sql.SQL("RESET ROLE; DROP ROLE {}").format(role))
    assert await once(chores(), "vacuum", scene.conn) == 0


async def test_a_busy_outbox_is_vacuumed(
    scene: Scene, chores: Chores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.maintenance.DEAD_ROWS", 50)
    await scene.conn.execute("ALTER TABLE outbox SET (autovacuum_enabled = false)")
    await many(scene.conn, 60)
    await scene.conn.execute("SELECT pg_stat_force_next_flush()")
    await scene.row("SELECT 1 FROM pg_stat_user_tables WHERE relname = 'outbox' AND n_dead_tup >= 50")
    await once(chores(), "vacuum", scene.conn)
    await scene.conn.execute("SELECT pg_stat_force_next_flush()")
    await scene.row("SELECT 1 FROM pg_stat_user_tables WHERE relname = 'outbox' AND vacuum_count = 1")


async def test_a_table_that_has_outgrown_its_statistics_is_planned_for_as_it_is(
    scene: Scene, chores: Chores
) -> None:
    """VACUUM of an emptied table says that its pages hold no rows, and that is believed for all pages to come."""
    maintenance = chores()

    async def planned() -> bool:
        await once(maintenance, "analyze", scene.conn)
        (rows,) = await fetchone(scene.conn, "SELECT reltuples FROM pg_class WHERE relname = 'outbox'")
        return bool(rows > 500)

    await many(scene.conn, 600)
    await scene.conn.execute("DELETE FROM outbox; DELETE FROM jobs; DELETE FROM job_state_records")
    await scene.conn.execute("VACUUM (TRUNCATE false) outbox")
    assert await fetchone(
        scene.conn, "SELECT reltuples, relpages > 0 FROM pg_class WHERE relname = 'outbox'"
    ) == (
        0,
        True,
    )
    await many(scene.conn, 1200)
    await scene.conn.execute("SELECT pg_stat_force_next_flush()")
    await until(planned)


async def test_maintenance_that_has_not_promoted_for_a_lease_is_not_ready(chores: Chores) -> None:
    maintenance = chores(lease=0.2)
    await maintenance.ready()

    async def behind() -> bool:
        try:
            await maintenance.ready()
        except DatabaseUnavailable:
            return True
        return False

    await until(behind)
    await maintenance._promote()
    await maintenance.ready()


async def test_a_chore_that_fails_runs_again(scene: Scene) -> None:
    def errors() -> float:
        labels = {"chore": "promote"}
        return REGISTRY.get_sample_value("outrider_maintenance_errors_total", labels) or 0.0

    async def more() -> bool:
        return errors() > before

    before = errors()
    await many(scene.conn, 1)
    await scene.conn.execute("ALTER TABLE outbox RENAME TO elsewhere")
    async with scene.maintenance(lease=60):
        await until(more)
        await scene.conn.execute("ALTER TABLE elsewhere RENAME TO outbox")
        await scene.row("SELECT 1 FROM outbox WHERE status = 'ready'")


async def test_a_pool_that_effects_have_emptied_does_not_stop_promotion(scene: Scene) -> None:
    await many(scene.conn, 1)
    async with open_pool(scene.url, name="small", size=1) as pool:
        maintenance = Maintenance(scene.url, pool, lease_seconds=60, retention_days=0, on_ready=lambda: None)
        async with pool.connection():
            stop = asyncio.Event()
            task = asyncio.create_task(maintenance.run(stop))
            await scene.row("SELECT 1 FROM outbox WHERE status = 'ready'")
            stop.set()
        await task


async def test_two_maintainers_promote_each_job_once(scene: Scene) -> None:
    await many(scene.conn, 500)
    async with scene.maintenance(), scene.maintenance():
        await scene.row("SELECT 1 FROM outbox HAVING bool_and(status = 'ready')")
    assert await fetchone(scene.conn, "SELECT count(DISTINCT position) FROM outbox") == (500,)
