"""A move in its caller's transaction: it happens if the caller commits, and leaves the session as the caller had it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row

from engine.errors import Overloaded
from engine.model import Attempt, JobState, Reason
from engine.moves import Ending, Release, cancel, claim, finish, promote, recorded, redrive, release
from engine.moves.enqueue import enqueue
from tests.conftest import Connect
from tests.support.database import LANES, Conn, fetchone, lapse_dead, new, started, worker

Move = Callable[[Conn, int, Attempt], Awaitable[Any]]


async def cancelled_before(conn: Conn) -> None:
    await cancel(conn, (await enqueue(conn, new())).id, None)


async def redriven(conn: Conn) -> None:
    job = await enqueue(conn, new())
    await cancel(conn, job.id, None)
    await redrive(conn, job.id, "ann")


MOVES: dict[str, Move] = {
    "enqueue": lambda conn, _me, _mine: enqueue(conn, new()),
    "claim": lambda conn, me, _mine: claim(conn, me, LANES, 10),
    "finish": lambda conn, me, mine: finish(
        conn, me, [Ending(mine.job.id, 1, JobState.COMPLETED, Reason.COMPLETED, "1")]
    ),
    "release": lambda conn, me, mine: release(conn, me, [Release(mine.job.id, 1, Reason.SHUTDOWN)]),
    "promote": lambda conn, _me, _mine: promote(conn),
    "lapse": lambda conn, _me, _mine: lapse_dead(conn),
    "cancel a pending job": lambda conn, _me, _mine: cancelled_before(conn),
    "cancel a running job": lambda conn, _me, mine: cancel(conn, mine.job.id, "ann"),
    "redrive": lambda conn, _me, _mine: redriven(conn),
    "recorded": lambda conn, _me, mine: recorded(conn, [mine.key]),
}
OWN = "SET LOCAL lock_timeout = '7s'; SET LOCAL statement_timeout = '77s'; SET LOCAL search_path = pg_temp, public"


async def session(conn: Conn) -> dict[str, Any]:
    """Every setting, as it holds in the transaction."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute("SELECT name, setting FROM pg_settings WHERE name NOT LIKE 'plpgsql.%'")
        return {row["name"]: row["setting"] for row in await cursor.fetchall()}


@pytest.mark.parametrize("autocommit", [True, False])
@pytest.mark.parametrize("move", MOVES)
async def test_a_move_leaves_the_callers_transaction_open_and_its_settings_alone(
    connect: Connect, conn: Conn, move: str, autocommit: bool
) -> None:
    me = await worker(conn)
    mine = await started(conn, me)
    own = await connect(autocommit=autocommit, row_factory=dict_row)
    if autocommit:
        await own.execute("BEGIN")
    await own.execute(OWN)
    before = await session(own)
    await MOVES[move](own, me, mine)
    assert own.info.transaction_status is TransactionStatus.INTRANS
    assert await session(own) == before
    await own.rollback()
    assert await fetchone(conn, "SELECT count(*), max(attempt) FROM outbox WHERE status = 'leased'") == (1, 1)
    assert await fetchone(conn, "SELECT count(*) FROM job_state_records") == (2,)


async def test_a_cancel_that_comes_first_on_a_connection_without_autocommit_is_the_callers_to_commit(
    connect: Connect, conn: Conn
) -> None:
    job = await enqueue(conn, new())
    own = await connect(autocommit=False)
    assert await cancel(own, job.id, "ann") is JobState.CANCELLED
    await own.rollback()
    assert await fetchone(conn, "SELECT status FROM outbox") == ("ready",)


async def test_a_cancel_that_gives_up_leaves_the_transaction_usable_and_its_settings_alone(
    connect: Connect, conn: Conn
) -> None:
    job = await enqueue(conn, new())
    own = await connect()
    async with conn.transaction(), own.transaction():
        await conn.execute("SELECT 1 FROM outbox FOR UPDATE")
        await own.execute("SET LOCAL lock_timeout = '7s'")
        before = await session(own)
        with pytest.raises(Overloaded):
            await cancel(own, job.id, "ann")
        assert await session(own) == before
