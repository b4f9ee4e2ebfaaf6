"""Outcomes reach the database once, whatever breaks on the way, and no bad one costs its neighbours."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import psycopg
import pytest
from prometheus_client import REGISTRY
from psycopg.rows import dict_row

from engine.db import open_pool
from engine.model import Completed, Failed, JobState, Retry
from tests.engine.cutter import Moment, cutter
from tests.engine.scene import Scene, known, preset, until
from tests.helpers import Conn, counters, fetchone, trail


def attempts(preset: str, outcome: str) -> float:
    labels = {"preset": preset, "outcome": outcome}
    return REGISTRY.get_sample_value("outrider_attempts_total", labels) or 0.0


async def ledger(conn: Conn) -> None:
    await conn.execute("CREATE TABLE ledger (job_id uuid, note text)")


HOSTILE = {
    "nan": float("nan"),
    "nul": "a\0b",
    "surrogate": "\ud800",
    "large": "x" * (5 << 20),
    "bytes": b"",
    "number": 2**70,
}


async def test_output_that_cannot_be_stored_fails_its_job_and_its_neighbours_complete(scene: Scene) -> None:
    ready = asyncio.Event()

    @preset()
    async def answer(job: Any, _run: Any) -> Any:
        await ready.wait()  # all of them end in one group
        return HOSTILE.get(job.content, job.content)

    ids = [await scene.enqueue(content=name) for name in (*HOSTILE, "good", "better")]
    async with scene.worker(answer):
        await scene.row("SELECT 1 FROM outbox HAVING bool_and(status = 'leased')")
        ready.set()
        *bad, good, better = await scene.ended(*ids)
    assert [each.state for each in bad] == [JobState.FAILED] * len(HOSTILE)
    assert all(each.error and "cannot be stored" in each.error["message"] for each in bad)
    assert (good.output, better.output) == ('"good"', '"better"')


async def test_output_that_postgresql_alone_refuses_fails_its_job_only(scene: Scene) -> None:
    # A numeric in a trigger stands for whatever a deployment adds to its tables.
    await scene.conn.execute(
        "CREATE FUNCTION judge() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " PERFORM (new.output #>> '{}')::numeric; RETURN new; END $$;"
        "CREATE TRIGGER judge BEFORE INSERT ON job_results FOR EACH ROW WHEN (new.state = 'COMPLETED')"
        " EXECUTE FUNCTION judge()"
    )
    ready = asyncio.Event()

    @preset()
    async def answer(job: Any, _run: Any) -> Any:
        await ready.wait()
        return job.content

    ids = [await scene.enqueue(content=content) for content in ("1", "two", "3", "4")]
    async with scene.worker(answer):
        await scene.row("SELECT 1 FROM outbox HAVING bool_and(status = 'leased')")
        ready.set()
        states = [each.state for each in await scene.ended(*ids)]
    assert states == ["COMPLETED", "FAILED", "COMPLETED", "COMPLETED"]


@pytest.mark.parametrize("moment", ["before it is sent", "after its commit"])
@pytest.mark.parametrize("end", ["result", "put back"])
async def test_a_connection_cut_at_a_write_records_it_once_and_counts_nothing_lost(
    scene: Scene, moment: Moment, end: str
) -> None:
    name = f"cut-{end[:3]}-{moment[:3]}"
    free = asyncio.Event()

    @preset(name)
    async def answer(_job: Any, run: Any) -> Any:
        await free.wait()
        return Retry(0, "again") if end == "put back" and run.attempt == 1 else "done"

    async with cutter(scene.url) as cut, scene.worker(answer, url=cut.url):
        job_id = await scene.enqueue(name)
        await scene.row("SELECT 1 FROM outbox WHERE status = 'leased'")
        cut.arm("record", moment)
        free.set()
        await scene.row("SELECT 1 FROM job_state_records WHERE seq = 2")
        await until(lambda: known(attempts(name, "completed" if end == "result" else "retry") == 1))
        async with scene.maintenance():
            [job] = await scene.ended(job_id)
    assert cut.cuts == 1
    assert job.state is JobState.COMPLETED
    assert await counters(scene.conn, job_id) == ((1, 0, 0) if end == "result" else (2, 1, 0))
    assert attempts(name, "lost") == 0


async def test_a_write_that_was_interrupted_is_sent_again(scene: Scene) -> None:
    free = asyncio.Event()

    @preset()
    async def answer(_job: Any, _run: Any) -> None:
        await free.wait()

    job_id = await scene.enqueue()
    async with scene.worker(answer):
        await scene.row("SELECT 1 FROM outbox WHERE status = 'leased'")
        other = await psycopg.AsyncConnection.connect(scene.url)
        async with other:
            await other.execute("SELECT 1 FROM outbox FOR UPDATE")
            free.set()
            (pid,) = await scene.row(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
                " AND application_name = 'outrider record' AND wait_event_type = 'Lock'"
            )
            await scene.conn.execute("SELECT pg_cancel_backend(%s)", [pid])
        [job] = await scene.ended(job_id)
    assert job.state is JobState.COMPLETED
    assert await counters(scene.conn, job_id) == (1, 0, 0)


async def test_a_write_that_is_refused_is_held_until_it_is_allowed(scene: Scene) -> None:
    @preset("held")
    async def answer(_job: Any, _run: Any) -> None: ...

    await scene.conn.execute("ALTER TABLE job_results RENAME TO elsewhere")
    job_id = await scene.enqueue("held")
    async with scene.worker(answer):
        await scene.row(
            "SELECT 1 FROM pg_stat_database WHERE datname = current_database() AND xact_rollback > 0"
        )
        await scene.conn.execute("ALTER TABLE elsewhere RENAME TO job_results")
        [job] = await scene.ended(job_id)
    assert (job.state, attempts("held", "lost")) == (JobState.COMPLETED, 0)
    assert await counters(scene.conn, job_id) == (1, 0, 0)


async def test_an_outcome_that_postgresql_refuses_fails_its_job_and_its_group_is_written_without_it(
    scene: Scene,
) -> None:
    """Results and jobs put back are written together or not at all: split, the group starts from nothing."""
    await scene.conn.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE check_violation; END $$;"
        "CREATE TRIGGER refuse BEFORE UPDATE ON outbox FOR EACH ROW WHEN (new.status = 'waiting')"
        " EXECUTE FUNCTION refuse()"
    )
    free = asyncio.Event()

    @preset("mixed")
    async def answer(job: Any, _run: Any) -> Any:
        await free.wait()
        return Retry(0, "again") if job.content == "again" else "done"

    ids = [await scene.enqueue("mixed", content=content) for content in ("one", "again", "two")]
    async with scene.worker(answer):
        await scene.row("SELECT 1 FROM outbox HAVING bool_and(status = 'leased')")
        free.set()
        states = [job.state for job in await scene.ended(*ids)]
    assert states == [JobState.COMPLETED, JobState.FAILED, JobState.COMPLETED]
    assert attempts("mixed", "lost") == 0


async def test_effects_are_written_with_the_result_or_not_at_all(scene: Scene) -> None:
    await ledger(scene.conn)

    @preset(max_attempts=5)
    async def answer(job: Any, run: Any) -> Completed:
        async def effects(conn: Conn) -> None:
            await conn.execute("INSERT INTO ledger VALUES (%s, %s)", [job.id, str(run.attempt)])
            if run.attempt < 3:
                raise {1: ValueError, 2: SystemExit}[run.attempt]("no")

        return Completed(run.attempt, effects)

    job_id = await scene.enqueue()
    async with scene.worker(answer), scene.maintenance():
        [job] = await scene.ended(job_id)
    assert (job.state, job.output) == (JobState.COMPLETED, "3")
    assert await counters(scene.conn, job_id) == (3, 2, 0)
    assert await fetchone(scene.conn, "SELECT count(*), min(note) FROM ledger") == (1, "3")


@pytest.mark.parametrize(
    "error",
    [ValueError("no"), SystemExit(), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError()],
    ids=lambda error: type(error).__name__,
)
async def test_effects_that_always_raise_use_up_the_budget(scene: Scene, error: BaseException) -> None:
    @preset(max_attempts=2)
    def answer(_job: Any, _run: Any) -> Completed:
        async def effects(_conn: Conn) -> None:
            raise error

        return Completed(None, effects)

    job_id = await scene.enqueue()
    async with scene.worker(answer), scene.maintenance():
        [job] = await scene.ended(job_id)
    assert job.state is JobState.FAILED
    assert job.error
    assert job.error["type"] == type(error).__name__
    assert await counters(scene.conn, job_id) == (2, 2, 0)


@pytest.mark.parametrize("moment", ["before it is sent", "after its commit"])
async def test_effects_whose_connection_is_cut_at_commit_happen_once(scene: Scene, moment: Moment) -> None:
    await ledger(scene.conn)
    name = f"effects-{moment[:3]}"
    calls = 0

    async with cutter(scene.url) as cut, open_pool(cut.url, name="effects", size=2, strangers=True) as pool:

        @preset(name)
        async def answer(job: Any, _run: Any) -> Completed:
            async def effects(conn: Conn) -> None:
                nonlocal calls
                calls += 1
                await conn.execute("INSERT INTO ledger VALUES (%s, 'done')", [job.id])
                if calls == 1:
                    cut.arm("effects", moment, "COMMIT")

            return Completed(None, effects)

        async with scene.worker(answer, effects=pool):
            [job] = await scene.ended(job_id := await scene.enqueue(name))
    assert (job.state, cut.cuts) == (JobState.COMPLETED, 1)
    assert calls == (1 if moment == "after its commit" else 2)
    assert attempts(name, "lost") == 0
    assert await fetchone(scene.conn, "SELECT count(*) FROM ledger") == (1,)
    assert await counters(scene.conn, job_id) == (1, 0, 0)


async def test_effects_that_break_their_connection_each_time_use_up_the_budget(scene: Scene) -> None:
    calls = 0

    @preset(max_attempts=1)
    async def answer(_job: Any, _run: Any) -> Completed:
        async def effects(conn: Conn) -> None:
            nonlocal calls
            calls += 1
            await conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")

        return Completed(None, effects)

    job_id = await scene.enqueue()
    async with scene.worker(answer):
        [job] = await scene.ended(job_id)
    assert job.state is JobState.FAILED
    assert calls == 3


async def test_effects_that_last_longer_than_the_job_may_are_stopped_and_count_as_an_error(
    scene: Scene,
) -> None:
    @preset(max_attempts=1)
    async def answer(_job: Any, _run: Any) -> Completed:
        async def effects(conn: Conn) -> None:
            await conn.execute("SELECT pg_sleep(30)")

        return Completed(None, effects)

    job_id = await scene.enqueue(timeout_seconds=1)
    async with scene.worker(answer):
        [job] = await scene.ended(job_id)
    assert job.error
    assert (job.state, job.error["type"]) == (JobState.FAILED, "TimeoutError")


async def test_a_deadlock_between_effects_spends_nothing(scene: Scene) -> None:
    await ledger(scene.conn)
    await scene.conn.execute("INSERT INTO ledger VALUES (NULL, 'a'), (NULL, 'b')")
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

    ids = [await scene.enqueue(content=content) for content in "ab"]
    async with scene.worker(answer):
        states = [each.state for each in await scene.ended(*ids)]
    assert states == [JobState.COMPLETED] * 2
    assert tries == 3
    assert [await counters(scene.conn, job_id) for job_id in ids] == [(1, 0, 0)] * 2


async def test_what_effects_do_to_their_connection_ends_with_them(scene: Scene) -> None:
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

    ids = [await scene.enqueue() for _ in range(3)]
    async with (
        open_pool(scene.url, name="effects", size=1, strangers=True) as alone,
        scene.worker(answer, effects=alone),
    ):
        assert [each.state for each in await scene.ended(*ids)] == [JobState.COMPLETED] * 3
    assert seen == [("0", True)] * 3


async def test_effects_of_a_lost_attempt_are_never_run(scene: Scene) -> None:
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

    job_id = await scene.enqueue()
    async with scene.worker(answer, lease=30):
        await scene.row("SELECT 1 FROM outbox WHERE status = 'leased'")
        await scene.conn.execute(
            "WITH taken AS (UPDATE outbox SET status = 'ready', worker_id = NULL, version = version + 1)"
            " INSERT INTO job_state_records (job_id, seq, from_state, to_state, attempt, reason)"
            " VALUES (%s, 2, 'PROCESSING', 'PENDING', 1, 'taken')",
            [job_id],
        )
        await scene.row("SELECT 1 FROM outbox WHERE attempt = 2 UNION ALL SELECT 1 FROM job_results")
        free.set()
        [job] = await scene.ended(job_id)
        assert job.error
        assert (job.state, job.error["message"]) == (JobState.FAILED, "the second attempt")
    assert not ran


async def test_a_retry_that_its_owner_cancelled_meanwhile_is_counted_as_cancelled(scene: Scene) -> None:
    free = asyncio.Event()

    @preset("unwanted")
    async def answer(_job: Any, _run: Any) -> Retry:
        await free.wait()
        return Retry(60, "later")

    job_id = await scene.enqueue("unwanted")
    async with scene.worker(answer, lease=30):
        await scene.row("SELECT 1 FROM outbox WHERE status = 'leased'")
        await scene.conn.execute("UPDATE outbox SET cancel_requested = true")
        free.set()
        [job] = await scene.ended(job_id)
        await until(lambda: known(attempts("unwanted", "cancelled") == 1))
    assert job.state is JobState.CANCELLED
    assert [reason for *_, reason in await trail(scene.conn, job_id)][-1] == "cancelled"
