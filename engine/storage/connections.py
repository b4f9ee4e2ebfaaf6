"""Connections to PostgreSQL: single, pooled, or with pinned plans. engine/storage/session.py has their settings."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection, AsyncCursor, Error, OperationalError
from psycopg.rows import TupleRow, tuple_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from engine.errors import DatabaseUnavailable
from engine.storage import session
from engine.storage.adapters import OURS, regain_adapters
from engine.storage.deadline import STATEMENT_SECONDS, deadline, sever
from engine.storage.open_connections import own
from engine.telemetry.metrics import POOL_CONNECTIONS

Connection = AsyncConnection[TupleRow]
Pool = AsyncConnectionPool[Connection]

CONNECT_SECONDS: Final = 5
CHECK_SECONDS: Final = 1.0

LINK: Final[dict[str, Any]] = {
    "connect_timeout": CONNECT_SECONDS,
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    # psycopg knows no codec for some encodings that a role may have, and could not even send the first SET.
    "client_encoding": "UTF8",
}
"""Socket options of every connection, so that a lost peer is noticed. `tcp_user_timeout` is in ms, the others in s."""


async def connect(url: str, *, name: str, pinned: bool = False) -> Connection:
    """Open a connection in autocommit mode. `pinned` pins the plans and prepares each statement at its first use.

    Raises DatabaseUnavailable or UnfitDatabase.
    """
    options: dict[str, Any] = {"prepare_threshold": 0} if pinned else {}
    try:
        conn = await AsyncConnection.connect(url, **_named(name), **options)
    except OperationalError as error:
        raise DatabaseUnavailable(str(error).strip()) from error
    try:
        await _set_up(conn, session.PINNED if pinned else {})
    except BaseException:
        await conn.close()
        raise
    return conn


def connect_sync(
    url: str, *, name: str, more: Mapping[str, str] | None = None, **options: Any
) -> psycopg.Connection[TupleRow]:
    """`connect` without an event loop. `more` are further settings, `options` are libpq's or psycopg's."""
    try:
        conn = psycopg.connect(url, **(_named(name) | options))
    except OperationalError as error:
        raise DatabaseUnavailable(str(error).strip()) from error
    own(conn)
    timer = threading.Timer(CONNECT_SECONDS, sever, [conn])
    timer.start()
    try:
        session.set_up_sync(conn, more)
    except BaseException as error:
        conn.close()
        if isinstance(error, OperationalError):
            raise DatabaseUnavailable(str(error).strip()) from error
        raise
    finally:
        timer.cancel()
    return conn


async def refuse_pooler(url: str) -> None:
    """Raise UnfitDatabase if `url` leads to a pooler that gives sessions away between statements."""
    async with (
        await connect(url, name="start") as first,
        await connect(url, name="start") as second,
        deadline(first, CONNECT_SECONDS),
        deadline(second, CONNECT_SECONDS),
    ):
        await session.refuse_pooler(first, second)


@asynccontextmanager
async def open_pool(url: str, *, name: str, size: int, reset_on_return: bool = False) -> AsyncIterator[Pool]:
    """A pool of autocommit connections, for everything but hot statements. Getting a connection waits 5 s at most.

    `reset_on_return` is for a pool that an author's code uses: each connection returns to the pool as new, whatever
    was SET or locked on the connection.
    """
    pool: Pool = AsyncConnectionPool(
        url,
        min_size=1,
        max_size=size,
        open=False,
        timeout=CONNECT_SECONDS,
        reconnect_timeout=CONNECT_SECONDS,
        kwargs=_named(name) | ({"prepare_threshold": None} if reset_on_return else {}),
        configure=_set_up,
        reset=_discard if reset_on_return else None,
    )
    async with pool:
        _show(name, pool)
        yield pool


@asynccontextmanager
async def borrow(pool: Pool, seconds: float = STATEMENT_SECONDS) -> AsyncIterator[Connection]:
    """A live connection of the pool, under a deadline of `seconds`. Raises DatabaseUnavailable.

    A connection that breaks after this look fails its borrower: what was sent may have happened, so only the borrower
    can know whether to send it again.
    """
    try:
        conn = await _live(pool)
    except (PoolTimeout, OperationalError) as error:
        raise DatabaseUnavailable(str(error).strip()) from error
    try:
        async with deadline(conn, seconds):
            yield conn
    finally:
        await pool.putconn(conn)


async def _live(pool: Pool) -> Connection:
    """The pool's first connection that is alive; the pool replaces the others. Raises PoolTimeout.

    The pool's own `check` would pause for a second after each dead connection but the first: a restart of the server
    leaves a pool full of them.
    """
    until = time.monotonic() + pool.timeout
    while True:
        conn = await pool.getconn(timeout=until - time.monotonic())
        try:
            if await alive(conn):
                return conn
        except BaseException:
            await pool.putconn(conn)
            raise
        await pool.putconn(conn)


async def alive(conn: Connection) -> bool:
    """Whether an idle connection still leads to its server; closes the connection if not.

    This costs a round trip only if the server has sent something meanwhile: its last words before it hung up, or a
    mere change of its settings, as after `pg_reload_conf()`.
    """
    if conn.closed:
        return False
    waiting = select.poll()
    waiting.register(conn.fileno(), select.POLLIN)
    if not waiting.poll(0):
        return True
    try:
        async with deadline(conn, CHECK_SECONDS):
            await conn.execute("SELECT 1", prepare=False)
    except (DatabaseUnavailable, Error):
        # The caller opens another one, and learns then whether the server is away.
        await conn.close()
        return False
    return True


class PinnedConnection:
    """One connection with pinned plans, opened at its first use and again after it broke. For one user at a time.

    A round trip costs 96 µs through a pool, and 40 to 58 µs on a connection of one's own.
    """

    def __init__(self, url: str, *, name: str) -> None:
        self._url = url
        self._name = name
        self._conn: Connection | None = None

    @asynccontextmanager
    async def use(self, seconds: float = STATEMENT_SECONDS) -> AsyncIterator[Connection]:
        """The connection, under a deadline of `seconds`. Raises DatabaseUnavailable."""
        if self._conn is None or not await alive(self._conn):
            self._conn = await connect(self._url, name=self._name, pinned=True)
        async with deadline(self._conn, seconds):
            yield self._conn

    async def aclose(self) -> None:
        if self._conn is not None:
            await self._conn.close()


def _show(name: str, pool: Pool) -> None:
    """Make each scrape read the figures from the pool itself, which costs no query."""
    for state, figure in (("open", "pool_size"), ("idle", "pool_available"), ("waiting", "requests_waiting")):
        POOL_CONNECTIONS.labels(name, state).set_function(partial(_figure, pool, figure))


def _figure(pool: Pool, name: str) -> float:
    return pool.get_stats().get(name, 0)


def _named(name: str) -> dict[str, Any]:
    return {"autocommit": True, "application_name": f"outrider {name}", "context": OURS, **LINK}


async def _set_up(conn: Connection, more: Mapping[str, str] | None = None) -> None:
    own(conn)
    async with deadline(conn, CONNECT_SECONDS):
        await session.set_up(conn, more)


async def _discard(conn: Connection) -> None:
    """Make a connection as new: what an author set on it, in the server and in psycopg."""
    conn.row_factory = tuple_row
    conn.cursor_factory = AsyncCursor
    conn.prepare_threshold = None
    regain_adapters(conn)
    await conn.set_autocommit(True)
    await conn.execute("DISCARD ALL")
    await _set_up(conn)
