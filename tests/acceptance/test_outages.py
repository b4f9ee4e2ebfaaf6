"""A database that goes away under worker processes: nothing is lost, nothing is charged, nothing is done twice."""

from __future__ import annotations

from psycopg import sql

from engine.model import JobState
from tests.acceptance.conftest import Site
from tests.conftest import Databases
from tests.helpers import counters, fetchone

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
