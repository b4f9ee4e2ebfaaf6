"""Enqueueing on an application's connection: any psycopg AsyncConnection will do, and any other is refused in words."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg import AsyncClientCursor, AsyncConnection, AsyncRawCursor
from psycopg.rows import dict_row, kwargs_row, scalar_row

from engine import DuplicateJob, Job, enqueue, enqueue_many
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
        (of_package("django.db.backends.postgresql.base", "DatabaseWrapper"), "SELECT outrider_enqueue("),
        (None, "NoneType"),
        (new(), "NewJob"),
    ],
    ids=lambda value: type(value).__module__,
)
def test_any_other_connection_is_refused_at_the_call_even_without_an_await(other: Any, words: str) -> None:
    for call in (lambda: enqueue(other, new()), lambda: enqueue_many(other, [new()])):
        with pytest.raises(TypeError) as refused:
            call()
        assert "needs a psycopg AsyncConnection" in str(refused.value)
        assert words in str(refused.value)


def test_a_synchronous_connection_is_told_of_the_function(database_url: str) -> None:
    with psycopg.connect(database_url) as conn:
        with pytest.raises(TypeError, match=r"not psycopg\.Connection: .* SELECT outrider_enqueue"):
            enqueue(conn, new())  # type: ignore[arg-type,unused-coroutine] # the call itself is refused
        [job_id] = conn.execute("SELECT outrider_enqueue('ann', 'p', 'text')").fetchone() or ()
    assert job_id.version == 7


async def test_a_subclass_of_the_connection_will_do(database_url: str) -> None:
    class Ours(AsyncConnection[Any]):
        """An application's own."""

    async with await Ours.connect(database_url, autocommit=True) as conn:
        job = await enqueue(conn, new())
    assert isinstance(job, Job)
