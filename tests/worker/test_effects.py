"""Effects happen in the transaction that completes their job: with the result or not at all, and once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from psycopg import AsyncRawCursor, sql
from psycopg.rows import dict_row

from engine.model import Completed, Failed, JobState
from engine.storage.connections import open_pool
from tests.support.database import Conn, counters, fetchone
from tests.support.wire_proxy import Moment, wire_proxy
from tests.support.worker_harness import WorkerHarness, attempts, preset


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
    assert attempts(name, "lost") == 0
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
}


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
    await ledger(harness.conn)
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
