"""Reserve and publish: a claim that comes between wins, and what a relay leaves behind is anybody's."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from engine.errors import LeaseLost
from engine.model import Job, Reason
from engine.moves import Release, cancel, claim, claim_named, claim_published, publish, redrive, release
from engine.moves.enqueue import enqueue, enqueue_many
from engine.pubsub.messages import WakeUp
from engine.tables.outbox import ready_presets
from tests.conftest import Connect
from tests.support.database import LANES, Conn, blocked, fetchone, new, started, unsorted, worker


async def queued(conn: Conn, **asked: object) -> Job:
    return await enqueue(conn, new(**asked))


async def reserved(conn: Conn, *, limit: int = 100, seconds: float = 60) -> list[WakeUp]:
    return await publish.reserve(conn, LANES, limit=limit, seconds=seconds)


async def standing(conn: Conn, job_id: UUID) -> str:
    (status,) = await fetchone(conn, "SELECT status FROM outbox WHERE job_id = %s", job_id)
    return str(status)


async def test_a_published_job_is_marked_and_given_to_no_other_relay(conn: Conn) -> None:
    job = await queued(conn)
    [wake_up] = await reserved(conn)
    assert (wake_up.job_id, wake_up.attempt, wake_up.user_id, wake_up.preset) == (job.id, 0, "ann", "p")
    assert await reserved(conn) == []
    assert await standing(conn, job.id) == "ready"
    assert await publish.published(conn, [wake_up]) == 1
    assert await standing(conn, job.id) == "published"
    assert await reserved(conn) == []


async def test_the_urgent_are_handed_over_first(conn: Conn) -> None:
    for priority in (3, 1, 2):
        await queued(conn, priority=priority)
    assert sorted(each.priority for each in await reserved(conn, limit=2)) == [1, 2]


async def test_a_lane_is_handed_over_in_the_order_of_its_positions(conn: Conn) -> None:
    ids = [(await queued(conn)).id for _ in range(4)]
    await conn.execute("UPDATE outbox SET position = 1000 - position")
    async with unsorted(conn):
        order = [(await reserved(conn, limit=1))[0].job_id for _ in ids]
    assert order == ids[::-1]


async def test_a_job_that_is_locked_keeps_no_other_from_being_handed_over(
    conn: Conn, connect: Connect
) -> None:
    holder = await connect()
    locked, free = await queued(conn), await queued(conn)
    async with asyncio.timeout(10), holder.transaction():
        await holder.execute("SELECT FROM outbox WHERE job_id = %s FOR UPDATE", [locked.id])
        assert [each.job_id for each in await reserved(conn)] == [free.id]
    assert [each.job_id for each in await reserved(conn)] == [locked.id]


async def test_what_a_dead_relay_had_reserved_leaves_again(conn: Conn) -> None:
    job = await queued(conn)
    [first] = await reserved(conn, seconds=0)
    [again] = await reserved(conn)
    assert (first.job_id, first.message.attributes) == (job.id, again.message.attributes)


async def test_what_was_given_back_leaves_at_once(conn: Conn) -> None:
    await queued(conn)
    [wake_up] = await reserved(conn)
    await publish.release(conn, [wake_up])
    [again] = await reserved(conn)
    assert (again.job_id, again.position, again.attempt) == (
        wake_up.job_id,
        wake_up.position,
        wake_up.attempt,
    )


async def test_a_claim_that_comes_before_the_mark_wins(conn: Conn) -> None:
    job = await queued(conn)
    [wake_up] = await reserved(conn)
    me = await worker(conn)
    [attempt] = await claim_named(conn, me, ["p"], [job.id])
    assert await publish.published(conn, [wake_up]) == 0
    assert await standing(conn, job.id) == "leased"
    await release(conn, me, [Release(*attempt.key, Reason.SHUTDOWN)])
    assert await publish.published(conn, [wake_up]) == 0
    assert await standing(conn, job.id) == "ready"


async def test_a_mark_of_an_earlier_turn_is_not_one_of_the_next(conn: Conn) -> None:
    """A job that was cancelled and redriven is on another turn, although no attempt has begun meanwhile."""
    job = await queued(conn)
    [old] = await reserved(conn)
    await cancel(conn, job.id, None)
    await redrive(conn, job.id, None)
    assert await publish.published(conn, [old]) == 0
    [new_turn] = await reserved(conn)
    await publish.release(conn, [old])
    assert await reserved(conn) == []
    assert (new_turn.job_id, new_turn.attempt) == (old.job_id, old.attempt)
    assert await publish.published(conn, [new_turn]) == 1


async def test_a_claim_by_id_waits_for_the_mark(conn: Conn, connect: Connect) -> None:
    job = await queued(conn)
    [wake_up] = await reserved(conn)
    me = await worker(conn)
    other = await connect()
    async with asyncio.timeout(10):
        async with conn.transaction():
            await publish.published(conn, [wake_up])
            claiming = asyncio.create_task(claim_named(other, me, ["p"], [job.id]))
            await blocked(conn)
        [attempt] = await claiming
    assert attempt.job.id == job.id


async def test_a_claim_by_id_takes_what_is_due_and_nobodys_and_known(conn: Conn) -> None:
    me = await worker(conn)
    leased = await started(conn, me)
    ready, published, waiting = await queued(conn), await queued(conn), await queued(conn, delay_seconds=60)
    [marked] = [each for each in await reserved(conn) if each.job_id == published.id]
    await publish.published(conn, [marked])
    foreign, gone = await queued(conn, preset="other"), await queued(conn)
    await cancel(conn, gone.id, None)
    named = [leased.job.id, ready.id, published.id, waiting.id, foreign.id, gone.id, UUID(int=1), ready.id]
    claimed = await claim_named(conn, me, ["p"], named)
    assert {attempt.job.id for attempt in claimed} == {ready.id, published.id}
    assert await claim_named(conn, me, ["p"], named) == []


async def test_a_worker_that_is_gone_learns_so_by_a_claim_by_id(conn: Conn) -> None:
    job = await queued(conn)
    gone = await worker(conn, seconds=-1)
    with pytest.raises(LeaseLost):
        await claim_named(conn, gone, ["p"], [job.id])
    assert await standing(conn, job.id) == "ready"


async def test_stranded_jobs_are_claimed_once_they_are_old_enough(conn: Conn) -> None:
    me = await worker(conn)
    ready, published = await queued(conn), await queued(conn)
    [marked] = [each for each in await reserved(conn) if each.job_id == published.id]
    await publish.published(conn, [marked])
    assert await claim(conn, me, LANES, 10, age=5) == []
    assert await claim_published(conn, me, ["p"], 10, age=10) == []
    await conn.execute("UPDATE outbox SET ready_at = ready_at - interval '6 s'")
    await conn.execute("UPDATE outbox SET published_at = published_at - interval '11 s'")
    assert [each.job.id for each in await claim(conn, me, LANES, 10, age=5)] == [ready.id]
    assert await claim_published(conn, me, ["other"], 10, age=10) == []
    assert [each.job.id for each in await claim_published(conn, me, ["p"], 10, age=10)] == [published.id]


async def test_presets_are_found_wherever_there_are_ready_jobs(conn: Conn) -> None:
    for preset in ("b", "a", "b", "c"):
        await queued(conn, preset=preset)
    await queued(conn, preset="later", delay_seconds=60)
    assert await ready_presets(conn, after="", limit=10) == ["a", "b", "c"]
    assert await ready_presets(conn, after="a", limit=1) == ["b"]
    assert await ready_presets(conn, after="c", limit=10) == []
    assert await reserved(conn) == []


async def test_a_release_after_the_reservation_has_ended_frees_no_job_of_another_relay(conn: Conn) -> None:
    await queued(conn)
    [late] = await reserved(conn, seconds=0)
    [mine] = await reserved(conn)
    await publish.release(conn, [late])
    assert await reserved(conn) == []
    await publish.release(conn, [mine])
    assert len(await reserved(conn)) == 1


async def test_a_reservation_lasts_longer_for_more_jobs(conn: Conn) -> None:
    for _ in range(10):
        await queued(conn)
    found = await publish.reserve(conn, LANES, limit=100, seconds=10, row_seconds=5)
    (now,) = await fetchone(conn, "SELECT clock_timestamp()")
    assert all(each.until is not None and 55 < (each.until - now).total_seconds() <= 60 for each in found)


async def test_a_reservation_writes_to_no_index(conn: Conn) -> None:
    await enqueue_many(conn, [new() for _ in range(300)])
    async with conn.transaction():
        assert len(await reserved(conn, limit=300)) == 300
        updated, in_place = await fetchone(
            conn, "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_xact_user_tables WHERE relname = 'outbox'"
        )
    assert updated == 300
    # The last page may be fuller than its share: rows are added to the one that has room.
    assert in_place >= 240
