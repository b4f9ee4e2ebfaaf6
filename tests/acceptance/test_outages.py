"""A database that goes away under worker processes: nothing is lost, nothing is charged, nothing is done twice."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from psycopg import AsyncConnection, OperationalError, sql

import migrations
from engine.model import JobState
from ops.local import local_postgres
from tests.acceptance.conftest import Site, open_site
from tests.conftest import Databases
from tests.engine.scene import until
from tests.helpers import Conn, counters, fetchone

TERMINATE = (
    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
    " WHERE datname = current_database() AND application_name LIKE 'outrider %' AND pid <> pg_backend_pid()"
)


async def test_jobs_that_run_while_every_connection_is_terminated_again_and_again_complete_once(
    site: Site,
) -> None:
    for _ in range(2):
        await site.start(lease=5)
    ids = await site.submit("short", 160)
    for done in range(20, 120, 20):
        await site.running(done)
        await site.conn.execute(TERMINATE)
    ended = await site.ended(*ids)
    assert {job.state for job in ended} == {JobState.COMPLETED}
    assert sorted(job_id for job_id, _ in await site.ledger()) == sorted(ids)
    spent = {(await counters(site.conn, job_id))[1:] for job_id in ids}
    assert spent == {(0, 0)}


async def test_outcomes_of_an_outage_are_recorded_when_the_database_is_back(
    site: Site, databases: Databases
) -> None:
    worker = await site.start(lease=10)
    ids = [*await site.submit("wait", 3), *await site.submit("plain", 3), *await site.submit("effects", 3)]
    await site.running(9)
    (name,) = await fetchone(site.conn, "SELECT current_database()")
    closing = sql.SQL("ALTER DATABASE {} WITH ALLOW_CONNECTIONS {}")
    databases._admin.execute(closing.format(sql.Identifier(name), sql.Literal(False)))
    try:
        await site.conn.execute(TERMINATE)
        site.go()
        await worker.says("record.failed", times=4)
        assert worker.logged("attempt.ended") == 0
    finally:
        databases._admin.execute(closing.format(sql.Identifier(name), sql.Literal(True)))
    ended = await site.ended(*ids)
    assert {job.output for job in ended} == {"1"}
    assert {await counters(site.conn, job_id) for job_id in ids} == {(1, 0, 0)}
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
        async with open_site(url, tmp_path) as site:
            await site.conn.execute("CREATE UNLOGGED TABLE mark AS SELECT 1")
            worker = await site.start(lease=10)
            waiting = [*await site.submit("wait", 3), *await site.submit("plain", 3)]
            short = await site.submit("short", 40)
            await site.running(20)
            os.kill(site.conn.info.backend_pid, signal.SIGKILL)
            site.go()
            async with await until(lambda: recovered(url)) as site.conn:
                ended = await site.ended(*waiting, *short)
                spent = {await counters(site.conn, each.job_id) for each in ended}
                written = await site.ledger()
                await site.checked()
    assert ({job.output for job in ended}, spent) == ({"1"}, {(1, 0, 0)})
    assert sorted(job_id for job_id, _ in written) == sorted(short)
    assert worker.logged("worker.registered") == 1
