"""A database that goes away under worker processes: nothing is lost, nothing is charged, nothing is done twice."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from psycopg import AsyncConnection, OperationalError, sql

import migrations
from engine.model import JobState
from ops.harness.postgres import Databases
from ops.local.server import local_postgres
from ops.waiting import until
from tests.support.database import Conn, counters, fetchone
from tests.system.acceptance.conftest import ProcessHarness, open_processes

pytestmark = pytest.mark.long

TERMINATE = (
    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
    " WHERE datname = current_database() AND application_name LIKE 'outrider %' AND pid <> pg_backend_pid()"
)


async def test_jobs_that_run_while_every_connection_is_terminated_again_and_again_complete_once(
    processes: ProcessHarness,
) -> None:
    for _ in range(2):
        await processes.start(lease=5)
    ids = await processes.submit("short", 160)
    for done in range(20, 120, 20):
        await processes.running(done)
        await processes.conn.execute(TERMINATE)
    ended = await processes.ended(*ids)
    assert {job.state for job in ended} == {JobState.COMPLETED}
    assert sorted(job_id for job_id, _ in await processes.ledger()) == sorted(ids)
    spent = {(await counters(processes.conn, job_id))[1:] for job_id in ids}
    assert spent == {(0, 0)}


async def test_outcomes_of_an_outage_are_recorded_when_the_database_is_back(
    processes: ProcessHarness, databases: Databases
) -> None:
    worker = await processes.start(lease=10)
    ids = [
        *await processes.submit("wait", 3),
        *await processes.submit("plain", 3),
        *await processes.submit("effects", 3),
    ]
    await processes.running(9)
    (name,) = await fetchone(processes.conn, "SELECT current_database()")
    closing = sql.SQL("ALTER DATABASE {} WITH ALLOW_CONNECTIONS {}")
    databases._admin.execute(closing.format(sql.Identifier(name), sql.Literal(False)))
    try:
        await processes.conn.execute(TERMINATE)
        processes.go()
        await worker.says("record.failed", times=4)
        assert worker.logged("attempt.ended") == 0
    finally:
        databases._admin.execute(closing.format(sql.Identifier(name), sql.Literal(True)))
    ended = await processes.ended(*ids)
    assert {job.output for job in ended} == {"1"}
    assert {await counters(processes.conn, job_id) for job_id in ids} == {(1, 0, 0)}
    assert worker.logged("worker.registered") == 1


@contextmanager
def own_server() -> Iterator[str]:
    with TemporaryDirectory(prefix="outrider-test-") as home:
        Path(home).chmod(0o755)  # run by root, the server is another user's process
        with local_postgres(Path(home), {"fsync": "off"}) as url:
            migrations.up(url)
            yield url


async def recovered(url: str) -> Conn | None:
    """A connection, once the server has been through its recovery: that empties unlogged tables."""
    conn = None
    try:
        conn = await AsyncConnection.connect(url, autocommit=True)
        if await fetchone(conn, "SELECT count(*) FROM mark") == (0,):
            return conn
    except OperationalError:
        pass  # it refuses connections, or ended this one
    if conn:
        await conn.close()
    return None


async def test_a_database_that_crashes_and_recovers_costs_no_job_anything(tmp_path: Path) -> None:
    """PostgreSQL ends every session and recovers from its log when one of its processes is killed."""
    with own_server() as url:
        async with open_processes(url, tmp_path) as processes:
            await processes.conn.execute("CREATE UNLOGGED TABLE mark AS SELECT 1")
            worker = await processes.start(lease=10)
            waiting = [*await processes.submit("wait", 3), *await processes.submit("plain", 3)]
            short = await processes.submit("short", 40)
            await processes.running(20)
            os.kill(processes.conn.info.backend_pid, signal.SIGKILL)
            processes.go()
            async with await until(lambda: recovered(url)) as processes.conn:
                ended = await processes.ended(*waiting, *short)
                spent = {await counters(processes.conn, each.job_id) for each in ended}
                written = await processes.ledger()
                await processes.checked()
    assert ({job.output for job in ended}, spent) == ({"1"}, {(1, 0, 0)})
    assert sorted(job_id for job_id, _ in written) == sorted(short)
    assert worker.logged("worker.registered") == 1
