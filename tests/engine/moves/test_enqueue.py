"""Enqueueing: from Python in a caller's transaction, from SQL, and in groups with idempotency keys."""

from __future__ import annotations

import asyncio
import json
from dataclasses import fields
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg.sql import SQL, Identifier

from engine.errors import IdempotencyMismatch, InvalidJob
from engine.ids import uuid7
from engine.limits import METADATA
from engine.moves import claim, finish
from engine.moves.enqueue import Accepted, Submission, enqueue, enqueue_group, enqueue_many
from engine.queries.audit import history
from engine.tables.idempotency import IdempotencyKey
from tests.conftest import Connect
from tests.engine.moves.test_moves import completed
from tests.support.database import LANES, Conn, fetchone, new, worker

KEY = IdempotencyKey("ann", "run", "k", b"\1" * 32)


def one(key: IdempotencyKey | None = None, **changes: Any) -> Submission:
    return Submission((new(**changes),), key)


async def count(conn: Conn) -> tuple[int, ...]:
    return await fetchone(
        conn,
        "SELECT (SELECT count(*) FROM jobs), (SELECT count(*) FROM outbox), (SELECT count(*) FROM job_state_records)",
    )


async def test_a_job_exists_only_when_its_caller_commits(connect: Connect) -> None:
    conn, other = await connect(), await connect()
    async with conn.transaction(force_rollback=True):
        await enqueue(conn, new())
    async with conn.transaction():
        await enqueue(conn, new())
        assert await count(other) == (0, 0, 0)
    assert await count(other) == (1, 1, 1)


async def test_a_job_for_later_waits(conn: Conn) -> None:
    due = datetime.now(UTC) + timedelta(days=2)
    await enqueue(conn, new(run_at=due))
    assert await fetchone(conn, "SELECT status, run_at, ready_at FROM outbox") == ("waiting", due, None)
    await enqueue(conn, new(run_at=datetime.now(UTC) - timedelta(days=2)))
    assert await claim(conn, await worker(conn), LANES, 10)


async def test_a_time_long_past_means_at_once_to_python_and_to_sql(conn: Conn) -> None:
    await enqueue(conn, new(run_at=datetime.min.replace(tzinfo=UTC)))
    for moment in ("0001-01-01T00:00Z", "1969-12-31T23:59Z"):
        await conn.execute("SELECT outrider_enqueue('ann', 'p', 'text', run_at => %s)", [moment])
    statuses = await (await conn.execute("SELECT DISTINCT status, run_at FROM outbox")).fetchall()
    assert statuses == [("ready", datetime(1970, 1, 1, tzinfo=UTC))]


TRACE = f"00-{'a' * 32}-{'b' * 16}-01"
EVERY: dict[str, Any] = {
    "user_id": "ann",
    "preset": "p",
    "content": 'text ü ✓ \\ "',
    "metadata": {"a": 1, "b": [None, {"c": 0.5}]},
    "priority": 3,
    "max_attempts": 7,
    "timeout_seconds": 77,
    "traceparent": TRACE,
}
BY_SQL = """
SELECT outrider_enqueue(%(user_id)s, %(preset)s, %(content)s, %(metadata)s::jsonb, %(priority)s, %(run_at)s,
                        delay_seconds => %(delay_seconds)s, max_attempts => %(max_attempts)s,
                        timeout_seconds => %(timeout_seconds)s, traceparent => %(traceparent)s)
"""


@pytest.mark.parametrize(
    "when", [{}, {"run_at": datetime(2999, 1, 1, tzinfo=UTC)}, {"delay_seconds": 3600}], ids=str
)
@pytest.mark.parametrize(
    "asked", [{"user_id": "ann", "preset": "p", "content": "text"}, EVERY], ids=["least", "all"]
)
async def test_web_library_and_sql_write_the_same_rows(conn: Conn, asked: dict[str, Any], when: Any) -> None:
    job = new(**asked, **when)
    await enqueue_group(conn, [Submission((job,))])
    await enqueue(conn, job)
    await enqueue_many(conn, [job])
    members = {each.name: getattr(job, each.name) for each in fields(job)}
    await conn.execute(BY_SQL, members | {"metadata": json.dumps(job.metadata)})
    for table, volatile in (
        ("jobs", ["id", "created_at", "run_at"]),
        ("outbox", ["job_id", "position", "run_at", "ready_at"]),
        ("job_state_records", ["job_id", "timestamp"]),
    ):
        cursor = await conn.execute(
            SQL("SELECT to_jsonb(t) - %s::text[] FROM {} t").format(Identifier(table)), [volatile]
        )
        first, *others = [row[0] for row in await cursor.fetchall()]
        assert others == [first] * 3
    due = (
        "SELECT count(DISTINCT date_trunc('minute', q.run_at - CASE WHEN %s THEN created_at ELSE '1970-01-01' END)),"
        " count(*) FILTER (WHERE jobs.run_at = q.run_at AND (ready_at IS NULL) = (status = 'waiting'))"
        " FROM outbox q JOIN jobs ON id = job_id"
    )
    assert await fetchone(conn, due, "run_at" not in when) == (1, 4)


async def test_sql_makes_version_7_ids_of_the_present(conn: Conn) -> None:
    (made,) = await fetchone(
        conn, "SELECT outrider_enqueue('ann', 'p', 'x', run_at => now() + interval '1 d')"
    )
    assert made.version == 7
    assert made.variant == uuid7().variant
    assert abs((made.int >> 80) - (uuid7().int >> 80)) < 60_000


def test_ids_increase_and_are_version_7() -> None:
    ids = [uuid7() for _ in range(10_000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    assert {i.version for i in ids} == {7}


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"content": ""}, "/content"),
        ({"content": "x" * (256 * 1024 + 1)}, "/content"),
        ({"content": "a\0b"}, "/content"),
        ({"content": "\ud800"}, "/content"),
        ({"user_id": ""}, "/user_id"),
        ({"preset": "No Such!"}, "/preset"),
        ({"priority": 0}, "/priority"),
        ({"priority": 5}, "/priority"),
        ({"priority": 1.5}, "/priority"),
        ({"priority": True}, "/priority"),
        ({"timeout_seconds": 2.5}, "/timeout_seconds"),
        ({"max_attempts": 2.0}, "/max_attempts"),
        ({"max_attempts": 26}, "/max_attempts"),
        ({"max_attempts": 0}, "/max_attempts"),
        ({"timeout_seconds": 86_401}, "/timeout_seconds"),
        ({"run_at": datetime(2030, 1, 1)}, "/run_at"),  # noqa: DTZ001
        ({"run_at": datetime(9999, 12, 31, tzinfo=UTC)}, "/run_at"),
        ({"metadata": {"a": {"b": float("nan")}}}, "/metadata/a/b"),
        ({"metadata": {"a/b": [0, float("inf")]}}, "/metadata/a~1b/1"),
        ({"metadata": {"n": 2**64}}, "/metadata/n"),
        ({"metadata": {"s": "\0"}}, "/metadata/s"),
        ({"metadata": {"\ud800": 1}}, "/metadata"),
        ({"metadata": {"x": {1, 2}}}, "/metadata/x"),
        ({"metadata": {"x": "y" * METADATA.high}}, "/metadata"),
        ({"delay_seconds": -1.0}, "/delay_seconds"),
        ({"delay_seconds": float("nan")}, "/delay_seconds"),
        ({"delay_seconds": 1.0, "run_at": datetime(2030, 1, 1, tzinfo=UTC)}, "/delay_seconds"),
    ],
)
async def test_what_cannot_be_stored_is_refused_by_name(conn: Conn, changes: Any, pointer: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        await enqueue(conn, new(**changes))
    assert pointer in [problem.pointer for problem in caught.value.problems]
    assert await count(conn) == (0, 0, 0)


@pytest.mark.parametrize(
    "arguments",
    [
        "'u', 'p', ''",
        "'u', 'p', repeat('x', 262145)",
        "'', 'p', 'x'",
        "'u', 'No preset', 'x'",
        "'u', 'p', 'x', '[]'",
        "'u', 'p', 'x', '{}', 5",
        "'u', 'p', 'x', '{}', 2, 'infinity'",
        "'u', 'p', 'x', '{}', 2, '12026-01-01'",
        "'u', 'p', 'x', traceparent => 'no trace'",
        f"'u', 'p', 'x', traceparent => '00-{'0' * 32}-{'b' * 16}-01'",
        f"'u', 'p', 'x', traceparent => '01-{'a' * 32}-{'b' * 16}-01-more'",
        "'u', 'p', 'x', delay_seconds => 1, run_at => now()",
        "'u', 'p', 'x', job_id => gen_random_uuid()",
        "'u', 'p', 'x', job_id => '00000000-0000-7000-0000-000000000000'",
    ],
)
async def test_the_schema_refuses_from_sql_what_could_not_be_read_back(conn: Conn, arguments: str) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        await conn.execute(f"SELECT outrider_enqueue({arguments})".encode())
    assert await count(conn) == (0, 0, 0)


async def test_an_unknown_member_is_refused_rather_than_ignored(conn: Conn) -> None:
    misspelt = '[{"user_id": "u", "preset": "p", "content": "x", "prioriti": 1}]'
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="unknown member: prioriti"):
        await conn.execute("SELECT outrider_enqueue_many(%s)", [misspelt])
    assert await count(conn) == (0, 0, 0)


async def test_null_is_absent_to_the_sql_functions(conn: Conn) -> None:
    await conn.execute(
        "SELECT outrider_enqueue('u', 'p', 'x', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)"
    )
    await conn.execute("SELECT outrider_enqueue('u', 'p', 'x')")
    assert await fetchone(conn, "SELECT count(DISTINCT (metadata, priority)), count(*) FROM jobs") == (1, 2)


async def test_the_same_key_and_body_is_one_job(conn: Conn) -> None:
    first, folded, other = await enqueue_group(conn, [one(KEY), one(KEY), one()])
    assert isinstance(first, Accepted)
    assert first.replayed is False
    assert folded == Accepted(first.job_ids, replayed=True)
    assert isinstance(other, Accepted)
    assert await enqueue_group(conn, [one(KEY)]) == [Accepted(first.job_ids, replayed=True)]
    assert await count(conn) == (2, 2, 2)


async def test_the_same_key_with_another_body_is_refused_alone(conn: Conn) -> None:
    changed = KEY._replace(fingerprint=b"\2" * 32)
    good, bad = await enqueue_group(conn, [one(KEY), one(changed)])
    assert isinstance(good, Accepted)
    assert isinstance(bad, IdempotencyMismatch)
    bad_again, fine = await enqueue_group(conn, [one(changed), one()])
    assert isinstance(bad_again, IdempotencyMismatch)
    assert isinstance(fine, Accepted)


async def test_a_key_belongs_to_its_owner_and_route(conn: Conn) -> None:
    keys = [KEY, KEY._replace(owner="bob"), KEY._replace(route="batch")]
    answers = await enqueue_group(conn, [one(key) for key in keys])
    assert all(isinstance(a, Accepted) and not a.replayed for a in answers)


async def test_an_expired_key_is_free_again(conn: Conn) -> None:
    [first] = await enqueue_group(conn, [one(KEY)])
    await conn.execute("UPDATE idempotency_keys SET expires_at = now() - interval '1 s'")
    [second] = await enqueue_group(conn, [one(KEY._replace(fingerprint=b"\3" * 32))])
    assert isinstance(first, Accepted)
    assert isinstance(second, Accepted)
    assert first.job_ids != second.job_ids


async def test_many_at_once_with_one_key_are_one_job(connect: Connect) -> None:
    conns = [await connect() for _ in range(8)]
    async with asyncio.timeout(10):
        groups = await asyncio.gather(*(enqueue_group(c, [one(KEY), one(KEY)]) for c in conns))
    answers = [answer for group in groups for answer in group]
    ids = {answer.job_ids for answer in answers if isinstance(answer, Accepted)}
    assert len(ids) == 1
    assert sum(isinstance(a, Accepted) and not a.replayed for a in answers) == 1
    assert await count(conns[0]) == (1, 1, 1)


async def test_groups_that_share_keys_in_any_order_do_not_deadlock(connect: Connect) -> None:
    conns = [await connect() for _ in range(6)]
    keys = [KEY._replace(key=f"k{n}") for n in range(20)]
    async with asyncio.timeout(20):
        for _ in range(5):
            await asyncio.gather(
                *(
                    enqueue_group(c, [one(k) for k in (keys if n % 2 else reversed(keys))])
                    for n, c in enumerate(conns)
                )
            )
    assert await count(conns[0]) == (20, 20, 20)


async def test_a_group_sent_again_adds_nothing_even_for_a_job_that_finished_meanwhile(conn: Conn) -> None:
    group = [one(), one(KEY)]
    first = await enqueue_group(conn, group)
    me = await worker(conn)
    await finish(conn, me, [completed(a) for a in await claim(conn, me, LANES, 10)])
    assert await enqueue_group(conn, group) == first
    assert await count(conn) == (2, 0, 6)


async def test_a_batch_keeps_its_order(conn: Conn) -> None:
    batch = tuple(new(content=str(n)) for n in range(100))
    [accepted] = await enqueue_group(conn, [Submission(batch)])
    assert isinstance(accepted, Accepted)
    cursor = await conn.execute(
        "SELECT content FROM jobs ORDER BY array_position(%s, id)", [list(accepted.job_ids)]
    )
    assert [row[0] for row in await cursor.fetchall()] == [str(n) for n in range(100)]
    assert all(isinstance(job_id, UUID) for job_id in accepted.job_ids)


async def test_the_callers_row_factory_does_not_matter(connect: Connect) -> None:
    conn = await connect(row_factory=dict_row)
    async with conn.transaction():
        job = await enqueue(conn, new())
        [accepted] = await enqueue_group(conn, [one(KEY)])
    assert isinstance(accepted, Accepted)
    assert await history(conn, job.id, "ann") is not None


async def test_a_delay_is_counted_by_the_databases_clock(conn: Conn) -> None:
    await enqueue(conn, new(delay_seconds=90.5))
    status, delay = await fetchone(
        conn, "SELECT status, jobs.run_at - created_at FROM outbox JOIN jobs ON id = job_id"
    )
    assert status == "waiting"
    assert abs(delay.total_seconds() - 90.5) < 1


async def test_a_time_in_any_zone_is_stored_as_that_moment(conn: Conn) -> None:
    due = datetime.now(timezone(timedelta(hours=20, minutes=23))) + timedelta(days=1)
    await enqueue(conn, new(run_at=due))
    assert await fetchone(conn, "SELECT run_at FROM outbox") == (due,)


async def test_a_key_is_kept_with_its_jobs_or_not_at_all(conn: Conn) -> None:
    await conn.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;"
        "CREATE TRIGGER refuse BEFORE INSERT ON outbox FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    with pytest.raises(psycopg.errors.RaiseException):
        await enqueue_group(conn, [one(KEY)])
    assert await fetchone(conn, "SELECT count(*) FROM idempotency_keys") == (0,)
    await conn.execute("DROP TRIGGER refuse ON outbox")
    [accepted] = await enqueue_group(conn, [one(KEY)])
    assert isinstance(accepted, Accepted)
    assert accepted.replayed is False


async def test_a_key_is_kept_for_24_hours_to_the_end(conn: Conn) -> None:
    [first] = await enqueue_group(conn, [one(KEY)])
    (left,) = await fetchone(conn, "SELECT expires_at - clock_timestamp() FROM idempotency_keys")
    assert timedelta(hours=23, minutes=55) < left <= timedelta(hours=24)
    await conn.execute("UPDATE idempotency_keys SET expires_at = clock_timestamp() + interval '30 s'")
    [again] = await enqueue_group(conn, [one(KEY)])
    assert isinstance(first, Accepted)
    assert again == Accepted(first.job_ids, replayed=True)


async def test_a_delay_counts_from_the_databases_now_in_a_group_too(conn: Conn) -> None:
    async with conn.transaction():
        await enqueue(conn, new(delay_seconds=90.5))
        await enqueue_group(conn, [one(delay_seconds=90.5)])
        exact = "SELECT array_agg(DISTINCT run_at - now()) FROM jobs"
        assert await fetchone(conn, exact) == ([timedelta(seconds=90.5)],)
