"""The session that effects run in: whatever an author does there, the result is written, or the job says why."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from psycopg import AsyncRawCursor, sql
from psycopg.rows import dict_row
from psycopg.types.string import StrDumper, TextLoader

from engine.model import Completed, JobState
from engine.storage.connections import open_pool
from tests.support.database import Conn, counters, fetchone
from tests.support.worker_harness import WorkerHarness, preset

STATES = {
    "a role": "SET LOCAL ROLE {role}",
    "a role of the session": "SET ROLE {role}",
    "another user": "SET SESSION AUTHORIZATION {role}",
    "a path": "SET LOCAL search_path TO pg_catalog",
    "a path of the session": "SET search_path TO pg_catalog",
    "dates": "SET LOCAL DateStyle TO German",
    "arrays": "SET LOCAL array_nulls TO off",
    "an encoding": "SET LOCAL client_encoding TO LATIN1",
    "all settings": "RESET ALL",
    "a savepoint": "SAVEPOINT mine",
    "a prepared statement": "PREPARE mine AS SELECT 1",
    "a cursor": "DECLARE mine CURSOR FOR SELECT 1",
    "a time-out": "SET LOCAL lock_timeout TO '1ms'",
    "constraints": "SET CONSTRAINTS ALL DEFERRED",
    "a listener": "LISTEN mine",
    "factories": "SELECT 1",
    "adapters": "SELECT 1",
    "temporary tables": "CREATE TEMP TABLE outbox (LIKE public.outbox) ON COMMIT DROP;"
    "CREATE TEMP TABLE job_results (LIKE public.job_results) ON COMMIT DROP;"
    "CREATE TEMP TABLE jobs (x int) ON COMMIT DROP",
}


class Wrong(StrDumper):
    """As if an author's class had a representation of its own."""

    def dump(self, obj: Any) -> bytes:  # noqa: ARG002 - the signature is psycopg's
        return b"wrong"


@pytest.fixture
async def role(conn: Conn) -> AsyncIterator[str]:
    """A role without rights in the test's database. A server has its roles in common, so each test has its own."""
    name = f"{conn.info.dbname}_weak"
    await conn.execute(f"CREATE ROLE {name}".encode())
    yield name
    await conn.execute(f"DROP ROLE {name}".encode())


@pytest.mark.parametrize("state", STATES)
async def test_whatever_effects_leave_set_the_result_is_written(
    harness: WorkerHarness, role: str, state: str
) -> None:
    statement = STATES[state].format(role=role).encode()

    @preset(max_attempts=1)
    async def answer(_job: Any, _run: Any) -> Completed:
        async def effects(conn: Conn) -> None:
            await conn.execute(statement)
            if state == "factories":
                conn.row_factory = dict_row
                conn.cursor_factory = AsyncRawCursor
            if state == "adapters":
                conn.adapters.register_dumper(str, Wrong)
                conn.adapters.register_loader("timestamptz", TextLoader)

        return Completed("grüße, 世界", effects)

    # The second job may get the connection that the first one had.
    async with (
        open_pool(harness.url, name="effects", size=1, reset_on_return=True) as alone,
        harness.worker(answer, effects=alone, publish_results=True),
    ):
        for _ in range(2):
            [job] = await harness.ended(await harness.enqueue())
            assert (job.state, job.output) == (JobState.COMPLETED, '"grüße, 世界"'), job.error


@pytest.mark.parametrize(
    "end",
    ["COMMIT", "ROLLBACK", "COMMIT AND CHAIN", "ROLLBACK AND CHAIN", "COMMIT; BEGIN", "read only", "raise"],
)
async def test_effects_that_end_their_transaction_fail_the_job_with_the_reason_and_happen_once(
    harness: WorkerHarness, end: str
) -> None:
    await harness.conn.execute("CREATE TABLE ledger (job_id uuid, note text)")
    statement = {"read only": "SET TRANSACTION READ ONLY", "raise": "COMMIT"}.get(end, end).encode()

    @preset(max_attempts=3)
    async def answer(job: Any, _run: Any) -> Completed:
        async def effects(conn: Conn) -> None:
            await conn.execute("INSERT INTO ledger VALUES (%s, 'done')", [job.id])
            await conn.execute(statement)
            if end == "raise":
                raise ValueError("after the commit")

        return Completed(None, effects)

    job_id = await harness.enqueue()
    async with harness.worker(answer), harness.maintenance():
        [job] = await harness.ended(job_id)
    assert job.state is JobState.FAILED
    assert job.error
    assert "transaction" in job.error["message"]
    assert await counters(harness.conn, job_id) == (1, 1, 0)
    committed = end.startswith("COMMIT") or end == "raise"
    assert await fetchone(harness.conn, "SELECT count(*) FROM ledger") == (int(committed),)


async def test_effects_find_the_names_and_the_time_zone_of_their_role(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTRIDER_SCHEMA", "public")
    database = sql.Identifier(harness.conn.info.dbname)
    for setting, value in (("search_path", "app"), ("TimeZone", "Asia/Tokyo")):
        statement = sql.SQL("ALTER DATABASE {} SET {} TO {}")
        await harness.conn.execute(statement.format(database, sql.Identifier(setting), sql.Literal(value)))
    await harness.conn.execute("CREATE SCHEMA app")
    await harness.conn.execute("CREATE TABLE app.jobs (place text, zone text, seconds text)")

    @preset()
    async def answer(_job: Any, _run: Any) -> Completed:
        async def effects(conn: Conn) -> None:
            settings = ("search_path", "TimeZone", "idle_in_transaction_session_timeout")
            found = [await fetchone(conn, f"SHOW {name}") for name in settings]
            await conn.execute("INSERT INTO jobs VALUES (%s, %s, %s)", [value for (value,) in found])

        return Completed(None, effects)

    job_id = await harness.enqueue(timeout_seconds=90)
    async with (
        open_pool(harness.url, name="effects", size=1, reset_on_return=True) as pool,
        harness.worker(answer, effects=pool),
    ):
        [job] = await harness.ended(job_id)
    assert job.state is JobState.COMPLETED, job.error
    assert await fetchone(harness.conn, "SELECT * FROM app.jobs") == ("app", "Asia/Tokyo", "90s")
