"""A call that adds nothing says so: what a given id has become, on one connection and between two."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from psycopg import IsolationLevel
from psycopg.errors import SerializationFailure, UniqueViolation

from engine import Completed, DuplicateJob, InvalidJob, Job, NewJob, enqueue, enqueue_many
from engine.ids import uuid7
from engine.model import JobState
from engine.moves import claim, finish
from tests.conftest import Connect
from tests.engine.moves.test_moves import completed
from tests.support.database import LANES, Conn, blocked, fetchone, new, worker
from tests.support.worker_harness import WorkerHarness, preset

DUE = datetime(2999, 1, 1, tzinfo=UTC)
TRACE = f"00-{'a' * 32}-{'b' * 16}-01"
TAKEN = "job_id: in use by another job"

OTHERS: dict[str, Any] = {
    "user_id": "bob",
    "preset": "q",
    "content": "another text",
    "metadata": {"a": 1},
    "priority": 1,
    "max_attempts": 3,
    "timeout_seconds": 3,
    "run_at": DUE,
}
"""Each makes another job of the same id."""

Add = Callable[[Conn, NewJob], Coroutine[Any, Any, Job]]


async def one_of_many(conn: Conn, job: NewJob) -> Job:
    """The job, after one that is new."""
    return (await enqueue_many(conn, [new(), job]))[1]


both = pytest.mark.parametrize("add", [enqueue, one_of_many], ids=["enqueue", "enqueue_many"])


async def rows(conn: Conn) -> tuple[int, ...]:
    return await fetchone(
        conn,
        "SELECT (SELECT count(*) FROM jobs), (SELECT count(*) FROM outbox), (SELECT count(*) FROM job_state_records)",
    )


async def test_a_job_without_an_id_is_a_new_one_at_each_call(conn: Conn) -> None:
    nightly = new()
    jobs = [await enqueue(conn, nightly) for _ in range(3)]
    jobs += [await enqueue(conn, dataclasses.replace(nightly, user_id=name)) for name in ("bob", "eve")]
    jobs += await enqueue_many(conn, [nightly, nightly])
    assert len({job.id for job in jobs}) == 7
    assert await rows(conn) == (7, 7, 7)
    assert [job.user_id for job in jobs[3:5]] == ["bob", "eve"]
    assert not any(job.replayed for job in jobs)


async def test_a_given_id_is_one_job_and_every_call_is_answered_as_the_first(conn: Conn) -> None:
    job = new(id=uuid7(), metadata={"b": [1], "a": None}, run_at=DUE, traceparent=TRACE)
    first = await enqueue(conn, job)
    again = await enqueue(conn, job)
    [in_a_batch, other] = await enqueue_many(conn, [job, new()])
    assert first.id == job.id
    assert not first.replayed
    assert again == in_a_batch == first._replace(replayed=True)
    assert not other.replayed
    assert await rows(conn) == (2, 2, 2)


async def test_an_id_is_known_after_its_job_has_finished(conn: Conn) -> None:
    job = new(id=uuid7())
    await enqueue(conn, job)
    me = await worker(conn)
    await finish(conn, me, [completed(each) for each in await claim(conn, me, LANES, 10)])
    assert (await enqueue(conn, job)).replayed
    assert await rows(conn) == (1, 0, 3)


async def test_delay_and_trace_are_not_compared_and_those_of_the_first_call_hold(conn: Conn) -> None:
    job = new(id=uuid7(), delay_seconds=5, traceparent=TRACE)
    first = await enqueue(conn, job)
    others: list[dict[str, Any]] = [{"delay_seconds": 7}, {"delay_seconds": None}, {"traceparent": None}]
    for other in others:
        assert await enqueue(conn, dataclasses.replace(job, **other)) == first._replace(replayed=True)


async def test_a_time_is_compared_where_it_is_given(conn: Conn) -> None:
    job = new(id=uuid7(), run_at=DUE)
    await enqueue(conn, job)
    assert (await enqueue(conn, dataclasses.replace(job, run_at=None))).replayed
    assert (await enqueue(conn, dataclasses.replace(job, run_at=DUE.astimezone()))).replayed
    with pytest.raises(DuplicateJob):
        await enqueue(conn, dataclasses.replace(job, run_at=DUE + timedelta(microseconds=1)))
    past = new(id=uuid7(), run_at=datetime.min.replace(tzinfo=UTC))
    assert [(await enqueue(conn, past)).replayed for _ in range(2)] == [False, True]


@both
@pytest.mark.parametrize("field", OTHERS)
async def test_another_job_of_the_same_id_is_refused_and_its_callers_transaction_goes_on(
    conn: Conn, add: Add, field: str
) -> None:
    job = new(id=uuid7())
    await enqueue(conn, job)
    async with conn.transaction():
        await enqueue(conn, new())
        with pytest.raises(DuplicateJob) as refused:
            await add(conn, dataclasses.replace(job, **{field: OTHERS[field]}))
        await enqueue(conn, new())
    assert refused.value.job_id == job.id
    assert await rows(conn) == (3, 3, 3)


@both
async def test_a_refusal_keeps_nothing_with_and_without_autocommit(connect: Connect, add: Add) -> None:
    job = new(id=uuid7())
    for autocommit in (True, False):
        conn = await connect(autocommit=autocommit)
        await enqueue(conn, job)
        with pytest.raises(DuplicateJob):
            await add(conn, dataclasses.replace(job, content="another"))
        await conn.commit()
        assert await rows(conn) == (1, 1, 1)


async def test_a_refusal_says_nothing_of_another_owners_job(conn: Conn) -> None:
    job = new(id=uuid7(), content="a secret", metadata={"secret": 1}, preset="secret")
    await enqueue(conn, job)
    for other in (new(id=job.id, user_id="eve"), dataclasses.replace(job, user_id="eve")):
        with pytest.raises(DuplicateJob) as refused:
            await enqueue(conn, other)
        assert str(refused.value) == f"the id {job.id} is in use by another job"
        assert refused.value.__cause__ is None


async def test_the_same_id_twice_in_one_call_is_one_job_or_refused(conn: Conn) -> None:
    job = new(id=uuid7())
    first, other, again = await enqueue_many(conn, [job, new(), job])
    assert again == first._replace(replayed=True)
    assert not first.replayed
    assert await rows(conn) == (2, 2, 2)
    twice = [new(id=(taken := uuid7())), new(), new(id=taken, content="another")]
    with pytest.raises(DuplicateJob):
        await enqueue_many(conn, twice)
    assert await rows(conn) == (2, 2, 2)
    assert other.id not in (first.id, taken)


async def test_many_are_answered_in_order_and_name_each_fault_by_its_place(conn: Conn) -> None:
    known = new(id=uuid7(), content="5")
    await enqueue(conn, known)
    jobs = await enqueue_many(conn, [known if n == 5 else new(content=str(n)) for n in range(50)])
    assert [job.content for job in jobs] == [str(n) for n in range(50)]
    assert [job.replayed for job in jobs] == [n == 5 for n in range(50)]
    assert await rows(conn) == (50, 50, 50)
    assert await enqueue_many(conn, []) == []
    with pytest.raises(InvalidJob) as refused:
        await enqueue_many(conn, [new(), new(content=""), new(priority=9, id=uuid7())])
    assert [each.pointer for each in refused.value.problems] == ["/1/content", "/2/priority"]
    assert await rows(conn) == (50, 50, 50)


@pytest.mark.parametrize("given", ["x", 7, uuid7().hex], ids=["text", "number", "hex"])
async def test_what_is_no_version_7_id_is_refused_by_name(conn: Conn, given: Any) -> None:
    with pytest.raises(InvalidJob, match="/id: not a version 7 UUID"):
        await enqueue(conn, new(id=given))


SQL = "SELECT outrider_enqueue(%s, 'p', 'text', job_id => %s)"


async def test_sql_answers_a_given_id_with_that_id_and_refuses_it_to_another_job(conn: Conn) -> None:
    job_id = uuid7()
    assert [await fetchone(conn, SQL, "ann", job_id) for _ in range(2)] == [(job_id,)] * 2
    assert (await enqueue(conn, new(id=job_id))).replayed
    with pytest.raises(UniqueViolation) as refused:
        await fetchone(conn, SQL, "eve", job_id)
    assert refused.value.diag.constraint_name == refused.value.diag.message_primary == TAKEN
    assert await rows(conn) == (1, 1, 1)


async def test_sql_refuses_a_whole_array_by_itself(conn: Conn) -> None:
    job = new(id=uuid7())
    await enqueue(conn, job)
    jobs = f"""[{{"user_id": "ann", "preset": "p", "content": "x"}},
                {{"user_id": "eve", "preset": "p", "content": "x", "job_id": "{job.id}"}}]"""
    with pytest.raises(UniqueViolation):
        await fetchone(conn, "SELECT count(*) FROM outrider_enqueue_many(%s)", jobs)
    assert await rows(conn) == (1, 1, 1)


async def test_a_unique_violation_of_the_callers_own_is_not_taken_for_a_duplicate(conn: Conn) -> None:
    await conn.execute("CREATE UNIQUE INDEX ON jobs (content)")
    with pytest.raises(UniqueViolation):
        await enqueue_many(conn, [new(), new()])
    assert await rows(conn) == (0, 0, 0)


@pytest.mark.parametrize("commits", [True, False], ids=["commits", "rolls back"])
@pytest.mark.parametrize("same", [True, False], ids=["same job", "another job"])
@both
async def test_the_second_caller_of_an_id_waits_for_the_first(
    connect: Connect, add: Add, same: bool, commits: bool
) -> None:
    first, second = await connect(), await connect()
    job = new(id=uuid7())
    other = job if same else dataclasses.replace(job, content="another")
    async with asyncio.timeout(20):
        async with first.transaction(force_rollback=not commits):
            await add(first, job)
            waiting = asyncio.create_task(add(second, other))
            await blocked(first)
        if same or not commits:
            assert (await waiting).replayed is commits
        else:
            with pytest.raises(DuplicateJob):
                await waiting
    added = (1, 2)[add is one_of_many]
    assert await rows(first) == ((added + (added - 1 if same else 0)) if commits else added,) * 3


@pytest.mark.parametrize("level", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE], ids=str)
@pytest.mark.parametrize("commits", [True, False], ids=["commits", "rolls back"])
@both
async def test_a_snapshot_that_cannot_show_the_first_job_is_a_serialization_failure(
    connect: Connect, add: Add, commits: bool, level: IsolationLevel
) -> None:
    first, second = await connect(), await connect()
    await second.set_isolation_level(level)
    job = new(id=uuid7())

    async def later() -> Job:
        async with second.transaction():
            return await add(second, job)

    async with asyncio.timeout(20):
        async with first.transaction(force_rollback=not commits):
            await enqueue(first, job)
            waiting = asyncio.create_task(later())
            await blocked(first)
        if commits:
            with pytest.raises(SerializationFailure):
                await waiting
        assert (await (later() if commits else waiting)).replayed is commits
        async with second.transaction():
            assert (await add(second, job)).replayed
            with pytest.raises(DuplicateJob):
                await add(second, dataclasses.replace(job, content="another"))
            await enqueue(second, new())


async def test_calls_that_share_ids_in_any_order_do_not_deadlock(connect: Connect) -> None:
    conns = [await connect() for _ in range(4)]
    jobs = [new(id=uuid7()) for _ in range(50)]
    async with asyncio.timeout(30):
        answers = await asyncio.gather(
            *(enqueue_many(c, jobs if n % 2 else jobs[::-1]) for n, c in enumerate(conns))
        )
    assert sum(not job.replayed for answer in answers for job in answer) == 50
    assert await rows(conns[0]) == (50, 50, 50)


async def test_effects_that_give_an_id_add_one_job_whatever_is_repeated(harness: WorkerHarness) -> None:
    follow_up = new(id=uuid7(), preset="next", content="after")
    refused = []

    @preset(max_attempts=5)
    async def first(_job: Any, run: Any) -> Completed:
        async def effects(conn: Conn) -> None:
            await enqueue(conn, follow_up)
            try:
                await enqueue(conn, dataclasses.replace(follow_up, content="another"))
            except DuplicateJob as error:
                refused.append(error.job_id)
            if run.attempt < 3:
                raise ValueError("no")

        return Completed(None, effects)

    ids = [await harness.enqueue() for _ in range(2)]
    async with harness.worker(first), harness.maintenance():
        done = await harness.ended(*ids)
    assert {job.state for job in done} == {JobState.COMPLETED}
    assert len(refused) == 6
    assert set(refused) == {follow_up.id}
    assert await fetchone(harness.conn, "SELECT count(*) FROM jobs WHERE preset = 'next'") == (1,)
