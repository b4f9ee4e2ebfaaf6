"""Each planted fault is found, under the invariant that it breaks and no other; healthy lives show none."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from engine.model import JobState, NewJob, Reason
from engine.moves import Ending, Release, cancel, claim, claim_suspects, finish, promote, redrive, release
from engine.moves.enqueue import enqueue
from engine.queries.invariants import INVARIANTS, SHOWN, check, report
from engine.tables.outbox import Lane
from tests.conftest import Connect
from tests.support.database import lapse_dead

Conn = AsyncConnection[TupleRow]

LIMITS = {"noop": 3}
ERROR = '{"type": "ValueError", "message": "no", "attempt": 1}'

PLANTED = {
    "I1": {
        "neither": "DELETE FROM outbox WHERE job_id = %(pending)s",
        "both": """
            INSERT INTO job_results (job_id, user_id, state, attempt, errors, crashes, version, run_at)
            SELECT job_id, user_id, 'COMPLETED', attempt, errors, crashes, version, run_at
            FROM outbox WHERE job_id = %(pending)s""",
        "an outbox row without a job": """
            INSERT INTO outbox (job_id, user_id, preset, priority, status, run_at)
            VALUES (gen_random_uuid(), 'ann', 'noop', 2, 'ready', now())""",
        "a result without a job": """
            INSERT INTO job_results (job_id, user_id, state, attempt, errors, crashes, version, run_at)
            VALUES (gen_random_uuid(), 'ann', 'COMPLETED', 1, 0, 0, 2, now())""",
    },
    "I2": {
        "a gap": """
            WITH moved AS (UPDATE job_state_records SET seq = 3 WHERE job_id = %(completed)s AND seq = 2)
            UPDATE job_results SET version = 3 WHERE job_id = %(completed)s""",
        "a first row that comes from somewhere": """
            UPDATE job_state_records SET from_state = 'FAILED' WHERE job_id = %(pending)s""",
        "a step that starts elsewhere": """
            UPDATE job_state_records SET from_state = 'PENDING' WHERE job_id = %(completed)s AND seq = 2""",
        "an illegal edge": """
            WITH cut AS (DELETE FROM job_state_records WHERE job_id = %(cancelled)s AND seq = 1)
            , shown AS (UPDATE job_results SET state = 'COMPLETED', version = 2 WHERE job_id = %(cancelled)s)
            INSERT INTO job_state_records (job_id, seq, from_state, to_state, attempt)
            VALUES (%(cancelled)s, 2, 'PENDING', 'COMPLETED', 0)""",
        "an end that is not the result's": """
            UPDATE job_results SET state = 'FAILED' WHERE job_id = %(completed)s""",
        "an end that is not the outbox row's": """
            UPDATE outbox SET status = 'ready', worker_id = NULL WHERE job_id = %(leased)s""",
        "a version that is not the last seq": "UPDATE outbox SET version = 7 WHERE job_id = %(pending)s",
        "no history": "DELETE FROM job_state_records WHERE job_id = %(pending)s",
        "a history without a job": """
            INSERT INTO job_state_records (job_id, seq, to_state, attempt)
            VALUES (gen_random_uuid(), 0, 'PENDING', 0)""",
    },
    "I3": {
        "a transition by a later attempt": """
            WITH changed AS (UPDATE job_results SET attempt = 2 WHERE job_id = %(completed)s)
            UPDATE job_state_records SET attempt = 2 WHERE job_id = %(completed)s AND seq = 2""",
        "a result by an earlier attempt": """
            UPDATE job_results SET attempt = 0 WHERE job_id = %(completed)s""",
        "an outbox row ahead of its history": "UPDATE outbox SET attempt = 2 WHERE job_id = %(leased)s",
    },
    "I5": {
        "a terminal state without a result": """
            WITH gone AS (
                DELETE FROM job_results WHERE job_id = %(completed)s
                RETURNING job_id, user_id, attempt, version, run_at)
            INSERT INTO outbox (job_id, user_id, preset, priority, status, attempt, version, run_at)
            SELECT job_id, user_id, 'noop', 2, 'ready', attempt, version, run_at FROM gone""",
        "a result without a terminal state": """
            WITH cut AS (DELETE FROM job_state_records WHERE job_id = %(completed)s AND seq = 2)
            UPDATE job_results SET version = 1 WHERE job_id = %(completed)s""",
    },
    "I6": {
        "an attempt that starts twice": """
            WITH changed AS (UPDATE outbox SET version = 3 WHERE job_id = %(leased)s)
            INSERT INTO job_state_records (job_id, seq, from_state, to_state, attempt)
            VALUES (%(leased)s, 2, 'PROCESSING', 'PENDING', 1),
                   (%(leased)s, 3, 'PENDING', 'PROCESSING', 1)""",
        "an attempt number that is left out": """
            WITH changed AS (UPDATE outbox SET attempt = 2 WHERE job_id = %(leased)s)
            UPDATE job_state_records SET attempt = 2 WHERE job_id = %(leased)s AND seq = 1""",
    },
    "I7": {
        "more errors than allowed": "UPDATE job_results SET errors = 4 WHERE job_id = %(failed)s",
        "more errors than the job's own limit": """
            WITH limited AS (UPDATE jobs SET max_attempts = 1 WHERE id = %(failed)s)
            UPDATE job_results SET errors = 2 WHERE job_id = %(failed)s""",
        "more crashes than allowed": "UPDATE job_results SET crashes = 4 WHERE job_id = %(failed)s",
        "a job that waits with its errors spent": "UPDATE outbox SET errors = 3 WHERE job_id = %(pending)s",
        "a job that waits with its crashes spent": "UPDATE outbox SET crashes = 3 WHERE job_id = %(pending)s",
        "a completed job with its errors spent": """
            UPDATE job_results SET errors = 3 WHERE job_id = %(completed)s""",
        "a lapse that was not counted": """
            WITH changed AS (UPDATE outbox SET version = 2, status = 'ready', worker_id = NULL
                          WHERE job_id = %(leased)s)
            INSERT INTO job_state_records (job_id, seq, from_state, to_state, attempt, reason)
            VALUES (%(leased)s, 2, 'PROCESSING', 'PENDING', 1, 'lapsed')""",
        "a crash that was counted for a lapse beside others": """
            WITH changed AS (UPDATE outbox SET version = 2, status = 'ready', worker_id = NULL, crashes = 1
                          WHERE job_id = %(leased)s)
            INSERT INTO job_state_records (job_id, seq, from_state, to_state, attempt, reason)
            VALUES (%(leased)s, 2, 'PROCESSING', 'PENDING', 1, 'lapsed beside others')""",
    },
    "I8": {
        "a cancelled job that completes without a redrive": """
            WITH changed AS (UPDATE job_results SET state = 'COMPLETED', version = 4, attempt = 1
                          WHERE job_id = %(cancelled)s)
            INSERT INTO job_state_records (job_id, seq, from_state, to_state, attempt, reason)
            VALUES (%(cancelled)s, 2, 'CANCELLED', 'PENDING', 0, 'retried'),
                   (%(cancelled)s, 3, 'PENDING', 'PROCESSING', 1, 'claimed'),
                   (%(cancelled)s, 4, 'PROCESSING', 'COMPLETED', 1, 'completed')""",
    },
    "I13": {
        "a job that is suspected of nothing": "UPDATE outbox SET suspicion = 1 WHERE job_id = %(pending)s",
        "a job whose lapse was before its redrive": """
            WITH changed AS (
                UPDATE outbox SET suspicion = 1, version = 4, attempt = 1 WHERE job_id = %(pending)s)
            INSERT INTO job_state_records (job_id, seq, from_state, to_state, attempt, reason)
            VALUES (%(pending)s, 1, 'PENDING', 'PROCESSING', 1, 'claimed'),
                   (%(pending)s, 2, 'PROCESSING', 'PENDING', 1, 'lapsed beside others'),
                   (%(pending)s, 3, 'PENDING', 'CANCELLED', 1, 'cancelled'),
                   (%(pending)s, 4, 'CANCELLED', 'PENDING', 1, 'redriven')""",
    },
}
CASES = [
    pytest.param(name, sql, id=f"{name}-{fault}")
    for name, faults in PLANTED.items()
    for fault, sql in faults.items()
]


async def worker(conn: Conn, lease: float = 60.0) -> int:
    sql = """INSERT INTO workers (name, presets, slots, expires_at)
             VALUES ('w', '{noop}', 10, clock_timestamp() + %s * interval '1 second') RETURNING id"""
    [(id_,)] = await (await conn.execute(sql, [lease])).fetchall()
    return int(id_)


async def started(conn: Conn, worker_id: int) -> tuple[UUID, int]:
    """Claim one job: its id and the attempt's number."""
    [attempt] = await claim(conn, worker_id, [Lane("noop", 2)], 1) or await claim_suspects(
        conn, worker_id, ["noop"], 1
    )
    return attempt.job.id, attempt.number


async def enqueued(conn: Conn, **options: Any) -> UUID:
    return (await enqueue(conn, NewJob(user_id="ann", preset="noop", content="x", **options))).id


async def one_of_each(conn: Conn) -> dict[str, UUID]:
    """A healthy database: a job in every state, made by the moves themselves."""
    mine = await worker(conn)
    jobs: dict[str, UUID] = {}
    for name, ending in (("completed", JobState.COMPLETED), ("failed", JobState.FAILED)):
        jobs[name] = await enqueued(conn)
        _, number = await started(conn, mine)
        error = ERROR if ending is JobState.FAILED else None
        await finish(
            conn,
            mine,
            [Ending(jobs[name], number, ending, Reason(ending.lower()), error=error, spent=int(bool(error)))],
        )
    jobs["leased"] = await enqueued(conn)
    await started(conn, mine)
    jobs["cancelled"] = await enqueued(conn)
    await cancel(conn, jobs["cancelled"], None)
    jobs["pending"] = await enqueued(conn)
    jobs["scheduled"] = await enqueued(conn, run_at=datetime.now(UTC) + timedelta(hours=1))
    return jobs


@pytest.mark.parametrize(("name", "sql"), CASES)
async def test_a_planted_fault_is_found_under_its_invariant_alone(conn: Conn, name: str, sql: str) -> None:
    jobs = await one_of_each(conn)
    assert await check(conn, LIMITS) == []
    await conn.execute(sql, jobs)
    findings = await check(conn, LIMITS)
    assert [(found.invariant.name, found.jobs) for found in findings] == [(name, 1)]
    [(job_id, detail)] = findings[0].offenders
    assert detail
    if "gen_random_uuid" not in sql:
        assert job_id in jobs.values()


async def test_every_invariant_has_a_planted_fault() -> None:
    assert [invariant.name for invariant in INVARIANTS] == list(PLANTED)


async def test_a_long_and_eventful_life_breaks_nothing(conn: Conn) -> None:
    """Snoozed, released, retried, lapsed, failed, redriven, lapsed, cancelled at work, redriven, done."""
    job = await enqueued(conn)
    mine = await worker(conn)

    async def back(reason: Reason, delay: float | None, error: str | None = None) -> None:
        _, number = await started(conn, mine)
        await release(conn, mine, [Release(job, number, reason, delay, error, spent=int(bool(error)))])
        await promote(conn)
        assert await check(conn, LIMITS) == []

    async def lost() -> None:
        dying = await worker(conn)
        await started(conn, dying)
        await conn.execute("UPDATE workers SET expires_at = clock_timestamp() WHERE id = %s", [dying])
        assert [each.job_id for each in await lapse_dead(conn)] == [job]
        assert await check(conn, LIMITS) == []

    await back(Reason.SNOOZED, 0.0)
    await back(Reason.SHUTDOWN, None)
    await back(Reason.ERROR, 0.0, ERROR)
    await back(Reason.ERROR, 0.0, ERROR)
    await lost()
    await lost()
    await lost()
    await redrive(conn, job, None)
    await lost()
    _, number = await started(conn, mine)
    assert await cancel(conn, job, "ann") is JobState.PROCESSING
    await release(conn, mine, [Release(job, number, Reason.SHUTDOWN)])
    assert await check(conn, LIMITS) == []
    await redrive(conn, job, "ann")
    _, number = await started(conn, mine)
    await finish(conn, mine, [Ending(job, number, JobState.COMPLETED, Reason.COMPLETED, output="1")])
    assert await report(conn, LIMITS) == (await report(conn, {}))
    assert (await report(conn, LIMITS)).jobs == 1
    assert await check(conn, LIMITS) == []


async def test_all_offenders_are_counted_and_the_first_are_named(conn: Conn) -> None:
    jobs = sorted([await enqueued(conn) for _ in range(SHOWN + 5)])
    await conn.execute("DELETE FROM outbox")
    [found] = await check(conn, LIMITS)
    assert (found.invariant.name, found.jobs) == ("I1", SHOWN + 5)
    assert [job for job, _ in found.offenders] == jobs[:SHOWN]


@pytest.mark.alone
async def test_jobs_that_move_during_the_check_are_no_offenders(connect: Connect) -> None:
    mover, checker = await connect(), await connect()
    mine = await worker(mover)
    stop = asyncio.Event()

    async def move() -> int:
        done = 0
        while not stop.is_set():
            job = await enqueued(mover)
            _, number = await started(mover, mine)
            await finish(mover, mine, [Ending(job, number, JobState.COMPLETED, Reason.COMPLETED, output="1")])
            done += 1
        return done

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        moving = group.create_task(move())
        for _ in range(20):
            assert await check(checker, LIMITS) == []
        stop.set()
    assert moving.result() > 20
