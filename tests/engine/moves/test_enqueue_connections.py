"""Enqueueing on an application's connection: any connection of psycopg will do, and any other is refused in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import AsyncClientCursor, AsyncConnection, AsyncRawCursor, ClientCursor, RawCursor
from psycopg.rows import dict_row, kwargs_row, scalar_row

from engine import DuplicateJob, InvalidJob, Job, enqueue, enqueue_many
from engine.errors import SchemaMismatch
from engine.ids import uuid7
from engine.model import JobState
from engine.moves import cancel, redrive
from engine.moves.enqueue import Accepted, Submission, enqueue_group
from tests.conftest import Connect
from tests.support.database import Conn, fetchone, new

TEXT = "ü ✓ \U0001f600 'quoted' \\ % {} $1"


OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "raw cursors": {"cursor_factory": AsyncRawCursor},
    "client-side binding": {"cursor_factory": AsyncClientCursor},
    "rows as dicts": {"row_factory": dict_row},
    "rows as scalars": {"row_factory": scalar_row},
    "rows by a call": {"row_factory": kwargs_row(dict)},
    "always prepared": {"prepare_threshold": 0},
    "never prepared": {"prepare_threshold": None},
    "no autocommit": {"autocommit": False},
}


@pytest.mark.parametrize("options", list(OPTIONS.values()), ids=list(OPTIONS))
async def test_the_callers_cursors_and_rows_do_not_matter(connect: Connect, conn: Conn, options: Any) -> None:
    theirs = await connect(**options)
    job_id = uuid7()
    for replayed in (False, True):
        job = await enqueue(theirs, new(id=job_id, content=TEXT, metadata={"a": [TEXT]}))
        assert (job.id, job.content, job.replayed) == (job_id, TEXT, replayed)
    assert len(await enqueue_many(theirs, [new(), new()])) == 2
    await theirs.commit()
    assert await fetchone(
        conn, "SELECT count(*), min(metadata ->> 'a') FROM jobs WHERE content = %s", TEXT
    ) == (
        1,
        f'["{TEXT}"]'.replace("\\", "\\\\"),
    )


@pytest.mark.parametrize("factory", [AsyncRawCursor, AsyncClientCursor])
async def test_no_move_asks_for_a_kind_of_cursor(connect: Connect, factory: Any) -> None:
    conn = await connect(cursor_factory=factory)
    job = await enqueue(conn, new())
    assert await cancel(conn, job.id, "ann") is JobState.CANCELLED
    assert await redrive(conn, job.id, "ann") == "p"
    [accepted] = await enqueue_group(conn, [Submission((new(),))])
    assert isinstance(accepted, Accepted)


@pytest.mark.parametrize(
    "setting",
    [
        "DateStyle = 'German, DMY'",
        "client_encoding = 'LATIN1'",
        "array_nulls = off",
        "TimeZone = 'Asia/Kathmandu'",
        "bytea_output = 'escape'",
        "standard_conforming_strings = off",
        "default_transaction_isolation = 'serializable'",
        "extra_float_digits = -15",
        "enable_indexscan = off",
    ],
)
async def test_the_callers_settings_change_nothing(connect: Connect, conn: Conn, setting: str) -> None:
    theirs = await connect()
    expected = await enqueue(conn, new(content=TEXT, metadata={"a": 0.1}, delay_seconds=0.123456789))
    await theirs.execute(f"SET {setting}".encode())
    job = await enqueue(theirs, new(content=TEXT, metadata={"a": 0.1}, delay_seconds=0.123456789))
    assert abs(job.created_at - expected.created_at).total_seconds() < 60
    assert job.created_at.tzinfo is not None
    kept = "SELECT count(DISTINCT (content, metadata, traceparent, run_at > created_at)), count(*) FROM jobs"
    assert await fetchone(conn, kept) == (1, 2)


async def test_what_the_function_sets_ends_with_it(connect: Connect) -> None:
    conn = await connect()
    shown = (
        "SELECT current_setting('search_path'), current_setting('enable_seqscan'),"
        " current_setting('plan_cache_mode'), current_setting('lock_timeout')"
    )
    before = await fetchone(conn, shown)
    async with conn.transaction():
        await enqueue(conn, new())
        assert await fetchone(conn, shown) == before


async def test_a_call_in_a_pipeline_is_answered_before_the_pipeline_ends(conn: Conn) -> None:
    job_id = uuid7()
    async with conn.pipeline(), conn.transaction():
        await conn.execute("CREATE TABLE mine (id uuid)")
        job = await enqueue(conn, new(id=job_id))
        assert (await enqueue(conn, new(id=job_id))).replayed
        with pytest.raises(DuplicateJob):
            await enqueue(conn, new(id=job_id, content="another"))
        await conn.execute("INSERT INTO mine VALUES (%s)", [job.id])
    assert await fetchone(conn, "SELECT count(*) FROM mine JOIN jobs USING (id)") == (1,)


def of_package(module: str, name: str) -> Any:
    """An object of a class of another driver."""
    return type(name, (), {"__module__": module})()


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            of_package("psycopg_pool.pool_async", "AsyncConnectionPool"),
            "async with pool.connection() as conn",
        ),
        (of_package("asyncpg.connection", "Connection"), "SELECT outrider_enqueue("),
        (of_package("sqlalchemy.ext.asyncio.engine", "AsyncConnection"), "driver_connection"),
        (
            of_package("django.db.backends.postgresql.base", "DatabaseWrapper"),
            "`connection.connection` is one",
        ),
        (None, "NoneType"),
        (new(), "NewJob"),
    ],
    ids=lambda value: type(value).__module__,
)
def test_any_other_connection_is_refused_at_the_call_even_without_an_await(other: Any, words: str) -> None:
    calls: list[Callable[[], object]] = [lambda: enqueue(other, new()), lambda: enqueue_many(other, [new()])]
    for call in calls:
        with pytest.raises(TypeError) as refused:
            call()
        assert "needs a psycopg Connection or AsyncConnection" in str(refused.value)
        assert words in str(refused.value)


SYNCHRONOUS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "raw cursors": {"cursor_factory": RawCursor},
    "client-side binding": {"cursor_factory": ClientCursor},
    "rows as dicts": {"row_factory": dict_row},
    "never prepared": {"prepare_threshold": None},
    "autocommit": {"autocommit": True},
}


@pytest.mark.parametrize("options", list(SYNCHRONOUS.values()), ids=list(SYNCHRONOUS))
def test_a_synchronous_connection_enqueues_without_an_await(database_url: str, options: Any) -> None:
    with psycopg.connect(database_url, **options) as theirs:
        drawn = enqueue(theirs, new(content=TEXT, metadata={"a": [TEXT]}, delay_seconds=0.5, max_attempts=3))
        again = enqueue(theirs, new(id=uuid7()))
        assert enqueue(theirs, new(id=again.id)).replayed
        with pytest.raises(DuplicateJob):
            enqueue(theirs, new(id=again.id, content="another"))
        assert enqueue_many(theirs, []) == []
        both = enqueue_many(theirs, [new(priority=1), new(content="second")])
        assert [each.content for each in both] == [new().content, "second"]
        theirs.commit()
    with psycopg.connect(database_url) as conn:
        kept = conn.execute(
            "SELECT id, content, metadata, max_attempts, run_at > created_at FROM jobs ORDER BY id"
        )
        rows = {row[0]: row[1:] for row in kept.fetchall()}
    assert rows.keys() == {drawn.id, again.id, *(each.id for each in both)}
    assert rows[drawn.id] == (TEXT, {"a": [TEXT]}, 3, True)


def test_a_synchronous_call_is_of_the_callers_transaction_and_checks_first(database_url: str) -> None:
    with psycopg.connect(database_url) as theirs:
        enqueue(theirs, new())
        theirs.rollback()
        with pytest.raises(InvalidJob) as refused:
            enqueue(theirs, new(content=""))
        assert [each.pointer for each in refused.value.problems] == ["/content"]
        with pytest.raises(InvalidJob) as refused:
            enqueue_many(theirs, [new(), new(preset="No")])
        assert [each.pointer for each in refused.value.problems] == ["/1/preset"]
        with pytest.raises(SchemaMismatch):
            enqueue(theirs, new(), schema="gone")
        theirs.rollback()
        assert theirs.execute("SELECT count(*) FROM jobs").fetchone() == (0,)


async def test_a_subclass_of_the_connection_will_do(database_url: str) -> None:
    class Ours(AsyncConnection[Any]):
        """An application's own."""

    async with await Ours.connect(database_url, autocommit=True) as conn:
        job = await enqueue(conn, new())
    assert isinstance(job, Job)
