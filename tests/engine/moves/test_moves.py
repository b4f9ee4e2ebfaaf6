"""The moves, each on a real database: what it writes, what it refuses, and who wins a race."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from engine.errors import JobNotFound, Overloaded, StateConflict
from engine.model import Attempt, JobState, Reason
from engine.moves import Ending, Release, cancel, claim, finish, promote, recorded, redrive, release
from engine.moves.enqueue import enqueue
from engine.queries import jobs
from engine.tables.outbox import Lane
from tests.conftest import Connect
from tests.support.database import (
    LANES,
    Conn,
    blocked,
    counters,
    fetchone,
    lapse_dead,
    new,
    rewritten,
    started,
    trail,
    worker,
)

ERROR = '{"type": "Boom", "message": "no", "attempt": 1}'


def completed(attempt: Attempt) -> Ending:
    return Ending(attempt.job.id, attempt.number, JobState.COMPLETED, Reason.COMPLETED, '{"a": 1}')


def failed(attempt: Attempt) -> Ending:
    return Ending(attempt.job.id, attempt.number, JobState.FAILED, Reason.FAILED, None, ERROR, "f", "{}", 1)


def after_error(attempt: Attempt, delay: float | None = 0.0) -> Release:
    return Release(attempt.job.id, attempt.number, Reason.ERROR, delay, ERROR, 1)


async def state(conn: Conn, attempt: Attempt) -> JobState:
    [view] = await jobs.read(conn, [(attempt.job.id, None)])
    assert view is not None
    return view.state


async def test_a_claim_starts_an_attempt_and_audits_it(conn: Conn) -> None:
    me = await worker(conn)
    job = await enqueue(conn, new(metadata={"k": [1, "ü"]}, content='"quoted"\\ {x}, NULL'))
    [attempt] = await claim(conn, me, LANES, 10)
    assert attempt.key == (job.id, 1)
    assert attempt.job == job
    assert await trail(conn, job.id) == [
        (0, None, "PENDING", 0, "enqueued"),
        (1, "PENDING", "PROCESSING", 1, "claimed"),
    ]
    assert await claim(conn, me, LANES, 10) == []


async def test_lower_priorities_are_claimed_first_and_then_in_order(conn: Conn) -> None:
    me = await worker(conn)
    late = await enqueue(conn, new(priority=4))
    first = await enqueue(conn, new(priority=2))
    second = await enqueue(conn, new(priority=2))
    urgent = await enqueue(conn, new(priority=1))
    taken = [(await claim(conn, me, LANES, 1))[0].job.id for _ in range(4)]
    assert taken == [urgent.id, first.id, second.id, late.id]


async def test_a_claim_takes_only_the_lanes_it_names_above_their_marks(conn: Conn) -> None:
    me = await worker(conn)
    await enqueue(conn, new(preset="other"))
    below = await enqueue(conn, new())
    above = await enqueue(conn, new())
    (position,) = await fetchone(conn, "SELECT position FROM outbox WHERE job_id = %s", below.id)
    assert [a.job.id for a in await claim(conn, me, [Lane("p", 2, position)], 10)] == [above.id]
    assert [a.job.id for a in await claim(conn, me, [Lane("p", 2)], 10)] == [below.id]


async def test_two_claims_at_once_share_the_rows(connect: Connect) -> None:
    conn, rival = await connect(), await connect()
    me, other = await worker(conn), await worker(conn)
    ids = {(await enqueue(conn, new())).id for _ in range(20)}
    async with asyncio.timeout(10), conn.transaction():
        mine = await claim(conn, me, LANES, 12)
        theirs = await claim(rival, other, LANES, 20)
    assert len(mine) == 12
    assert {a.job.id for a in mine} | {a.job.id for a in theirs} == ids
    assert not {a.job.id for a in mine} & {a.job.id for a in theirs}


@pytest.mark.parametrize("seconds", [None, -1.0], ids=["gone", "expired"])
async def test_a_worker_without_a_live_row_claims_nothing(conn: Conn, seconds: float | None) -> None:
    me = 12345 if seconds is None else await worker(conn, seconds=seconds)
    await enqueue(conn, new())
    assert await claim(conn, me, LANES, 10) == []


async def test_metadata_that_cannot_be_decoded_costs_its_own_job_only(conn: Conn) -> None:
    me = await worker(conn)
    good = await enqueue(conn, new(metadata={"a": 1}))
    await rewritten(conn, (await enqueue(conn, new())).id, '{"n": ' + "[" * 3000 + "]" * 3000 + "}")
    bad, fine = sorted(await claim(conn, me, LANES, 10), key=lambda a: a.job.id == good.id)
    assert bad.undecodable
    assert fine.undecodable is None
    assert fine.job.metadata == {"a": 1}


async def test_a_finished_job_has_a_result_and_no_outbox_row(conn: Conn) -> None:
    me = await worker(conn)
    attempt = await started(conn, me)
    assert await finish(conn, me, [completed(attempt)]) == {attempt.key: JobState.COMPLETED}
    [view] = await jobs.read(conn, [(attempt.job.id, "ann")])
    assert view is not None
    assert (view.state, view.output, view.version, view.error) == (JobState.COMPLETED, '{"a": 1}', 2, None)
    assert await fetchone(conn, "SELECT count(*) FROM outbox") == (0,)
    assert (await trail(conn, attempt.job.id))[-1] == (2, "PROCESSING", "COMPLETED", 1, "completed")


async def test_a_lost_lease_writes_nothing(conn: Conn) -> None:
    me, other = await worker(conn), await worker(conn)
    attempt = await started(conn, me)
    stale = completed(attempt)
    assert await finish(conn, other, [stale]) == {}
    assert await finish(conn, me, [stale._replace(attempt=2)]) == {}
    assert await release(conn, other, [after_error(attempt)]) == {}
    assert await state(conn, attempt) is JobState.PROCESSING
    assert len(await trail(conn, attempt.job.id)) == 2


async def test_a_batch_writes_what_is_held_and_leaves_out_what_is_lost(conn: Conn) -> None:
    me, other = await worker(conn), await worker(conn)
    mine, theirs = await started(conn, me), await started(conn, other)
    assert await finish(conn, me, [completed(mine), completed(theirs)]) == {mine.key: JobState.COMPLETED}


async def test_a_retry_waits_and_spends_an_error_then_starts_a_new_attempt(conn: Conn) -> None:
    me = await worker(conn)
    attempt = await started(conn, me)
    await release(conn, me, [after_error(attempt, 3600.0)])
    assert await promote(conn) == 0
    assert await counters(conn, attempt.job) == (1, 1, 0)
    [view] = await jobs.read(conn, [(attempt.job.id, None)])
    assert view is not None
    assert view.error == {"type": "Boom", "message": "no", "attempt": 1}
    assert view.started_at is not None
    await conn.execute("UPDATE outbox SET run_at = clock_timestamp()")
    assert await promote(conn) == 1
    [again] = await claim(conn, me, LANES, 10)
    assert (again.number, again.errors) == (2, 1)
    assert again.position > attempt.position


async def test_a_release_keeps_its_place_and_spends_nothing(conn: Conn) -> None:
    me = await worker(conn)
    attempt = await started(conn, me)
    await release(conn, me, [Release(attempt.job.id, 1, Reason.SHUTDOWN)])
    assert await counters(conn, attempt.job) == (1, 0, 0)
    [again] = await claim(conn, me, LANES, 10)
    assert (again.number, again.position) == (2, attempt.position)


async def test_promote_takes_what_is_due_in_order_and_no_more_than_asked(conn: Conn) -> None:
    ids = [(await enqueue(conn, new())).id for _ in range(3)]
    await conn.execute("UPDATE outbox SET status = 'waiting', run_at = clock_timestamp() + interval '1 h'")
    await conn.execute(
        "UPDATE outbox SET run_at = clock_timestamp() - interval '1 s' WHERE job_id <> %s", [ids[2]]
    )
    await conn.execute(
        "UPDATE outbox SET run_at = clock_timestamp() - interval '2 s' WHERE job_id = %s", [ids[1]]
    )
    assert await promote(conn, 1) == 1
    assert await fetchone(conn, "SELECT job_id FROM outbox WHERE status = 'ready'") == (ids[1],)
    assert await promote(conn) == 1


@pytest.mark.parametrize("status", ["ready", "waiting", "published"])
async def test_a_pending_job_is_cancelled_at_once_and_again(conn: Conn, status: str) -> None:
    job = await enqueue(conn, new())
    await conn.execute("UPDATE outbox SET status = %s::outbox_status", [status])
    for _ in range(2):
        assert await cancel(conn, job.id, "ann") is JobState.CANCELLED
    assert await trail(conn, job.id) == [
        (0, None, "PENDING", 0, "enqueued"),
        (1, "PENDING", "CANCELLED", 0, "cancelled"),
    ]


@pytest.mark.parametrize("delay", [None, 5.0], ids=["release", "retry"])
async def test_a_running_job_is_asked_to_stop_and_cancelled_when_given_back(
    conn: Conn, delay: float | None
) -> None:
    me = await worker(conn)
    attempt = await started(conn, me)
    assert await cancel(conn, attempt.job.id, "ann") is JobState.PROCESSING
    assert await release(conn, me, [after_error(attempt, delay)]) == {attempt.key: JobState.CANCELLED}
    assert await state(conn, attempt) is JobState.CANCELLED
    assert await fetchone(conn, "SELECT count(*) FROM outbox") == (0,)


async def test_an_attempt_that_completes_before_it_stops_stays_completed(conn: Conn) -> None:
    me = await worker(conn)
    attempt = await started(conn, me)
    await cancel(conn, attempt.job.id, "ann")
    await finish(conn, me, [completed(attempt)])
    with pytest.raises(StateConflict):
        await cancel(conn, attempt.job.id, "ann")


async def test_a_retry_that_waits_for_a_cancel_sees_it(connect: Connect) -> None:
    conn, owner = await connect(), await connect()
    me = await worker(conn)
    attempt = await started(conn, me)
    async with asyncio.timeout(10):
        async with owner.transaction():
            await cancel(owner, attempt.job.id, "ann")
            giving_back = asyncio.create_task(release(conn, me, [after_error(attempt)]))
            await blocked(owner)
        assert await giving_back == {attempt.key: JobState.CANCELLED}


async def test_a_cancel_that_waits_for_a_claim_asks_the_attempt_to_stop(connect: Connect) -> None:
    conn, owner = await connect(), await connect()
    me = await worker(conn)
    job = await enqueue(conn, new())
    async with asyncio.timeout(10):
        async with conn.transaction():
            await claim(conn, me, LANES, 1)
            cancelling = asyncio.create_task(cancel(owner, job.id, "ann"))
            await blocked(conn)
        assert await cancelling is JobState.PROCESSING
    assert await fetchone(conn, "SELECT cancel_requested FROM outbox") == (True,)


@pytest.mark.parametrize("ending", [failed, None], ids=["failed", "cancelled"])
async def test_a_redrive_starts_a_new_budget_and_keeps_the_old_result(conn: Conn, ending: object) -> None:
    me = await worker(conn)
    attempt = await started(conn, me)
    if ending is failed:
        await finish(conn, me, [failed(attempt)])
    else:
        await cancel(conn, attempt.job.id, None)
        await release(conn, me, [after_error(attempt)])
    await redrive(conn, attempt.job.id, "ann")
    assert await counters(conn, attempt.job) == (1, 0, 0)
    seq, before, after, _, reason = (await trail(conn, attempt.job.id))[-1]
    assert (seq, after, reason) == (3, "PENDING", "redriven")
    (old,) = await fetchone(conn, "SELECT metadata FROM job_state_records WHERE seq = 3")
    assert old["result"]["state"] == before
    assert [a.number for a in await claim(conn, me, LANES, 1)] == [2]


async def test_only_failed_and_cancelled_jobs_are_redriven(conn: Conn) -> None:
    me = await worker(conn)
    job = await enqueue(conn, new())
    with pytest.raises(StateConflict):
        await redrive(conn, job.id, "ann")
    [attempt] = await claim(conn, me, LANES, 1)
    with pytest.raises(StateConflict):
        await redrive(conn, job.id, "ann")
    await finish(conn, me, [completed(attempt)])
    with pytest.raises(StateConflict):
        await redrive(conn, job.id, "ann")


async def test_another_owners_job_is_not_found(conn: Conn) -> None:
    job = await enqueue(conn, new())
    for job_id, owner in ((job.id, "bob"), (uuid4(), "ann"), (uuid4(), None)):
        with pytest.raises(JobNotFound):
            await cancel(conn, job_id, owner)
        with pytest.raises(JobNotFound):
            await redrive(conn, job_id, owner)
    assert (await trail(conn, job.id))[-1][0] == 0


async def test_recorded_tells_what_a_worker_wrote_from_what_lapsed(conn: Conn) -> None:
    me, dead = await worker(conn), await worker(conn)
    done, back, running = [await started(conn, me) for _ in range(3)]
    lost = await started(conn, dead)
    await finish(conn, me, [completed(done)])
    await release(conn, me, [after_error(back)])
    await conn.execute("DELETE FROM workers WHERE id = %s", [dead])
    await lapse_dead(conn)
    assert await recorded(conn, [a.key for a in (done, back, running, lost)]) == {
        done.key: JobState.COMPLETED,
        back.key: JobState.PENDING,
    }


async def test_a_move_in_the_callers_transaction_rolls_back_with_it(conn: Conn) -> None:
    me = await worker(conn)
    attempt = await started(conn, me)
    async with conn.transaction(force_rollback=True):
        await finish(conn, me, [completed(attempt)])
    assert await state(conn, attempt) is JobState.PROCESSING


async def test_a_cancel_does_not_wait_long_for_a_row_that_effects_hold(connect: Connect) -> None:
    conn, owner = await connect(), await connect()
    attempt = await started(conn, await worker(conn))
    async with asyncio.timeout(10), conn.transaction():
        await conn.execute("SELECT FROM outbox WHERE job_id = %s FOR UPDATE", [attempt.job.id])
        with pytest.raises(Overloaded):
            await cancel(owner, attempt.job.id, "ann")
    assert await fetchone(owner, "SHOW lock_timeout") == ("0",)
    assert await cancel(owner, attempt.job.id, "ann") is JobState.PROCESSING
