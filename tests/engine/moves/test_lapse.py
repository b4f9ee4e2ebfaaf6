"""A dead worker's attempts go back; a crash is charged only where it is clear to whom, and suspects run apart."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from psycopg import errors

from engine.model import MAX_CRASHES, Attempt, JobState, Reason
from engine.moves import (
    Ending,
    Release,
    cancel,
    claim,
    claim_named,
    claim_published,
    claim_suspects,
    finish,
    lapse,
    redrive,
    release,
    take_back,
)
from engine.moves.enqueue import enqueue
from engine.moves.lapse import Sighting, look
from engine.moves.publish import reserve
from engine.queries import jobs
from engine.tables.progress import Progress, report
from tests.conftest import Connect
from tests.support.database import (
    LANES,
    Conn,
    counters,
    fetchone,
    lapse_dead,
    new,
    started,
    suspected,
    trail,
    worker,
)


async def state(conn: Conn, attempt: Attempt) -> JobState:
    [view] = await jobs.read(conn, [(attempt.job.id, None)])
    assert view is not None
    return view.state


async def suspicion(conn: Conn, attempt: Attempt) -> int:
    (level,) = await fetchone(conn, "SELECT suspicion FROM outbox WHERE job_id = %s", attempt.job.id)
    return int(level)


async def expire(conn: Conn, worker_id: int) -> None:
    await conn.execute("UPDATE workers SET expires_at = now() WHERE id = %s", [worker_id])


async def test_a_job_that_ran_alone_goes_back_is_charged_and_runs_alone_from_then_on(conn: Conn) -> None:
    dead, alive = await worker(conn), await worker(conn)
    lost, kept = await started(conn, dead), await started(conn, alive)
    await expire(conn, dead)
    [lapsed] = await lapse_dead(conn)
    assert lapsed[:6] == (lost.job.id, "p", 1, JobState.PENDING, f"{dead} w", True)
    assert await counters(conn, lost.job) == (1, 0, 1)
    assert await suspicion(conn, lost) == 2
    assert await state(conn, kept) is JobState.PROCESSING
    assert await fetchone(conn, "SELECT array_agg(id) FROM workers") == ([alive],)
    assert await finish(conn, dead, [Ending(*lost.key, JobState.COMPLETED, Reason.COMPLETED)]) == {}


async def test_a_job_that_ran_in_a_process_of_its_own_is_neither_charged_nor_suspected(conn: Conn) -> None:
    dead = await worker(conn, apart=["p"])
    # What a living one runs apart says nothing of this one.
    await worker(conn, apart=["q"])
    apart, lost = await started(conn, dead), await started(conn, dead, preset="q")
    await expire(conn, dead)
    lapsed = {each.job_id: each for each in await lapse_dead(conn)}
    assert (lapsed[apart.job.id].charged, await suspicion(conn, apart)) == (False, 0)
    assert (await trail(conn, apart.job.id))[-1][-1] == Reason.LAPSED_APART
    # It is no company either: the other one was alone.
    assert (lapsed[lost.job.id].charged, await suspicion(conn, lost)) == (True, 2)


async def test_of_a_worker_without_a_row_the_living_tell_what_it_ran_apart(conn: Conn) -> None:
    dead = await worker(conn)
    apart, lost = await started(conn, dead), await started(conn, dead, preset="q")
    await conn.execute("DELETE FROM workers WHERE id = %s", [dead])
    await worker(conn, apart=["p"])
    await lapse_dead(conn)
    assert (await suspicion(conn, apart), await suspicion(conn, lost)) == (0, 1)


async def test_jobs_that_ran_beside_others_are_charged_nothing_and_suspected(conn: Conn) -> None:
    dead, alive = await worker(conn), await worker(conn)
    lost = [await started(conn, dead) for _ in range(3)]
    beside = await started(conn, alive)
    await expire(conn, dead)
    assert [(each.charged, each.state) for each in await lapse_dead(conn)] == [(False, JobState.PENDING)] * 3
    for attempt in lost:
        assert await counters(conn, attempt.job) == (1, 0, 0)
        assert await suspicion(conn, attempt) == 1
        assert (await trail(conn, attempt.job.id))[-1][-1] == Reason.LAPSED_BESIDE_OTHERS
    assert await suspicion(conn, beside) == 0
    [view] = await jobs.read(conn, [(lost[0].job.id, None)])
    assert view
    assert view.error
    assert view.error["message"] == f"worker {dead} stopped without an answer while it ran 3 attempts"


async def test_each_of_two_dead_workers_counts_its_own_attempts(conn: Conn) -> None:
    crowded, lonely = await worker(conn), await worker(conn)
    many = [await started(conn, crowded) for _ in range(2)]
    one = await started(conn, lonely)
    await expire(conn, crowded)
    await expire(conn, lonely)
    charged = {each.job_id: each.charged for each in await lapse_dead(conn)}
    assert charged == {many[0].job.id: False, many[1].job.id: False, one.job.id: True}


async def test_a_locked_neighbour_counts_and_is_itself_never_taken_for_a_lonely_one(connect: Connect) -> None:
    conn, other = await connect(), await connect()
    dead = await worker(conn)
    held, free = await started(conn, dead), await started(conn, dead)
    await expire(conn, dead)
    async with asyncio.timeout(10), other.transaction():
        await other.execute("SELECT FROM outbox WHERE job_id = %s FOR UPDATE", [held.job.id])
        assert [(each.job_id, each.charged) for each in await lapse_dead(conn)] == [(free.job.id, False)]
    assert [(each.job_id, each.charged) for each in await lapse_dead(conn)] == [(held.job.id, False)]
    assert await counters(conn, held.job) == (1, 0, 0)


async def test_the_last_crash_alone_fails_the_job_and_says_what_is_known(conn: Conn) -> None:
    job = await enqueue(conn, new())
    for crash in range(1, MAX_CRASHES + 1):
        me = await worker(conn)
        claimed = await claim(conn, me, LANES, 1) if crash == 1 else await claim_suspects(conn, me, ["p"], 3)
        assert [each.number for each in claimed] == [crash]
        await report(conn, [Progress(job.id, crash, 1, 0.25, "parsing page 3", "parse")])
        await expire(conn, me)
        [lapsed] = await lapse_dead(conn)
        assert lapsed.state is (JobState.FAILED if crash == MAX_CRASHES else JobState.PENDING)
        assert lapsed.progress == "parsing page 3"
    [view] = await jobs.read(conn, [(job.id, None)])
    assert view is not None
    assert view.error == {
        "type": "WorkerLost",
        "attempt": MAX_CRASHES,
        "message": f"worker {me} stopped without an answer while this attempt ran alone on it; "
        "the last step that it began: parse; the last progress of this one: 25 percent parsing page 3",
    }


async def test_a_heartbeat_in_flight_saves_its_worker_from_lapsing(connect: Connect) -> None:
    conn, beating = await connect(), await connect()
    attempt = await started(conn, await worker(conn))
    await conn.execute("UPDATE workers SET expires_at = clock_timestamp()")
    async with asyncio.timeout(10), beating.transaction():
        await beating.execute("UPDATE workers SET expires_at = clock_timestamp() + interval '1 min'")
        assert await lapse_dead(conn) == []
    assert await state(conn, attempt) is JobState.PROCESSING


async def test_a_heartbeat_since_the_look_saves_its_worker_however_the_clock_stands(conn: Conn) -> None:
    attempt = await started(conn, await worker(conn))
    seen = await look(conn, 1)
    await conn.execute("UPDATE workers SET expires_at = expires_at - interval '9 min'")
    assert await lapse(conn, seen) == []
    assert await state(conn, attempt) is JobState.PROCESSING
    assert len(await lapse(conn, await look(conn, 1))) == 1


async def test_a_lapse_that_fails_leaves_the_workers_their_rows(connect: Connect) -> None:
    conn, other = await connect(), await connect(options="-c lock_timeout=50ms")
    attempt = await started(conn, await worker(conn))
    seen = await look(conn, 1)
    async with conn.transaction():
        await conn.execute("LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(errors.LockNotAvailable):
            await lapse(other, seen)
    assert await fetchone(conn, "SELECT count(*) FROM workers") == (1,)
    assert await state(conn, attempt) is JobState.PROCESSING


async def test_a_look_tells_how_long_each_lease_is(conn: Conn) -> None:
    known, older, gone = [await worker(conn) for _ in range(3)]
    await started(conn, gone)
    await conn.execute("UPDATE workers SET lease_seconds = 7 WHERE id = %s", [known])
    await conn.execute("DELETE FROM workers WHERE id = %s", [gone])
    seen = {each.worker_id: each for each in await look(conn, 5)}
    assert seen[known].lease_seconds == 7
    assert seen[older].lease_seconds == pytest.approx(60, abs=10)
    assert seen[gone] == Sighting(gone, None, 5)
    await conn.execute("UPDATE workers SET expires_at = expires_at - interval '2 min'")
    assert {each.worker_id: each.lease_seconds for each in await look(conn, 5)}[older] == 5


async def test_a_row_that_changes_hands_while_a_lapse_looks_is_left_to_its_new_worker(
    connect: Connect,
) -> None:
    conn, zombie = await connect(), await connect()
    dead = await worker(conn)
    attempt = await started(conn, dead)
    await conn.execute("DELETE FROM workers")
    async with asyncio.timeout(10):
        await release(zombie, dead, [Release(attempt.job.id, 1, Reason.SHUTDOWN)])
        fresh = await worker(conn)
        [again] = await claim(conn, fresh, LANES, 1)
        assert await lapse_dead(conn) == []
    assert await state(conn, again) is JobState.PROCESSING


async def test_a_lapse_of_a_job_asked_to_stop_cancels_it(conn: Conn) -> None:
    attempt = await started(conn, await worker(conn))
    await cancel(conn, attempt.job.id, None)
    await conn.execute("DELETE FROM workers")
    assert (await lapse_dead(conn))[0].state is JobState.CANCELLED


async def test_suspects_are_claimed_by_a_claim_of_their_own_alone(conn: Conn) -> None:
    me = await worker(conn)
    job = await suspected(conn, 1)
    assert await claim(conn, me, LANES, 10) == []
    assert await claim_named(conn, me, ["p"], [job.id]) == []
    assert await reserve(conn, LANES, limit=10, seconds=1) == []
    await conn.execute("UPDATE outbox SET status = 'published', published_at = now() - interval '1 h'")
    assert await claim_published(conn, me, ["p"], 10, age=0) == []
    assert await claim_suspects(conn, me, ["q"], 10) == []
    [attempt] = await claim_suspects(conn, me, ["p"], 10)
    assert attempt.key == (job.id, 2)


async def test_what_must_run_alone_is_claimed_alone_and_other_suspects_together_in_their_order(
    conn: Conn,
) -> None:
    me = await worker(conn)
    few = [await suspected(conn, 1) for _ in range(3)]
    urgent = await suspected(conn, 1, priority=1)
    alone = [await suspected(conn, 2) for _ in range(2)]
    claims = [[each.job.id for each in await claim_suspects(conn, me, ["p"], 3)] for _ in range(5)]
    assert claims[:2] == [[alone[0].id], [alone[1].id]]
    assert sorted(claims[2]) == sorted([urgent.id, few[0].id, few[1].id])
    assert claims[3:] == [[few[2].id], []]


@pytest.mark.parametrize(
    ("reason", "delay", "left"),
    [
        (Reason.ERROR, 0.0, 0),
        (Reason.SNOOZED, 0.0, 0),
        (Reason.SHUTDOWN, None, 1),
        (Reason.LEASE_LOST, None, 1),
        (Reason.UNKNOWN, None, 1),
    ],
)
async def test_only_an_end_of_its_own_clears_a_job_of_suspicion(
    conn: Conn, reason: Reason, delay: float | None, left: int
) -> None:
    me = await worker(conn)
    await suspected(conn, 1)
    [attempt] = await claim_suspects(conn, me, ["p"], 1)
    await release(conn, me, [Release(*attempt.key, reason, delay)])
    assert await suspicion(conn, attempt) == left


async def test_a_redrive_clears_a_job_of_suspicion(conn: Conn) -> None:
    job = await suspected(conn, 2)
    await cancel(conn, job.id, None)
    await redrive(conn, job.id, None)
    assert [each.job.id for each in await claim(conn, await worker(conn), LANES, 1)] == [job.id]


async def test_a_lease_taken_back_releases_all_that_is_leased_under_it_but_what_effects_hold(
    connect: Connect,
) -> None:
    conn, effects = await connect(), await connect()
    mine, other = await worker(conn), await worker(conn)
    known, unknown, held = [await started(conn, mine) for _ in range(3)]
    beside = await started(conn, other)
    await cancel(conn, unknown.job.id, None)
    async with asyncio.timeout(10), effects.transaction():
        await effects.execute("SELECT FROM outbox WHERE job_id = %s FOR UPDATE", [held.job.id])
        taken = await take_back(conn, mine)
    assert (sorted(taken.jobs), taken.complete) == (
        [("p", JobState.CANCELLED), ("p", JobState.PENDING)],
        False,
    )
    assert await take_back(conn, mine) == ([("p", JobState.PENDING)], True)
    assert await take_back(conn, mine) == ([], True)
    assert await fetchone(conn, "SELECT array_agg(id) FROM workers") == ([other],)
    assert (await trail(conn, known.job.id))[-1][-1] == Reason.LEASE_LOST
    assert await counters(conn, held.job) == (1, 0, 0)
    assert await state(conn, beside) is JobState.PROCESSING


async def test_a_claim_on_its_way_under_a_lease_taken_back_finds_no_worker(conn: Conn) -> None:
    mine = await worker(conn)
    await take_back(conn, mine)
    await enqueue(conn, new())
    assert await claim(conn, mine, LANES, 1) == []


async def test_a_clock_that_jumps_ahead_stops_claims_until_the_next_heartbeat_only(conn: Conn) -> None:
    me = await worker(conn)
    await enqueue(conn, new())
    minute = timedelta(minutes=1)
    await conn.execute("UPDATE workers SET expires_at = clock_timestamp() - %s", [minute])
    assert await claim(conn, me, LANES, 1) == []
    await conn.execute("UPDATE workers SET expires_at = clock_timestamp() + %s", [minute])
    assert len(await claim(conn, me, LANES, 1)) == 1


async def test_a_job_that_began_a_step_and_reported_no_progress_is_named_with_the_step(conn: Conn) -> None:
    me = await worker(conn)
    attempt = await started(conn, me)
    await report(conn, [Progress(*attempt.key, 1, None, "", "draft")])
    [view] = await jobs.read(conn, [(attempt.job.id, None)])
    assert view is not None
    assert (view.fraction, view.progress_n) == (None, 1)
    await expire(conn, me)
    [lapsed] = await lapse_dead(conn)
    assert lapsed.progress == "draft"
    [view] = await jobs.read(conn, [(attempt.job.id, None)])
    assert view is not None
    assert view.error is not None
    assert view.error["message"].endswith(
        "while this attempt ran alone on it; the last step that it began: draft"
    )
