"""Connections to PostgreSQL: single, pooled, or with pinned plans."""

from __future__ import annotations

import os
import select
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

from psycopg import AsyncConnection, OperationalError
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow, tuple_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from engine.errors import DatabaseUnavailable
from engine.storage.deadline import STATEMENT_SECONDS, deadline
from engine.storage.open_connections import own
from engine.telemetry.metrics import POOL_CONNECTIONS

Connection = AsyncConnection[TupleRow]
Pool = AsyncConnectionPool[Connection]

CONNECT_SECONDS: Final = 5

LINK: Final[dict[str, Any]] = {
    "connect_timeout": CONNECT_SECONDS,
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
"""Socket options of every connection, so that a lost peer is noticed. `tcp_user_timeout` is in ms, the others in s."""

# An empty queue once made the planner choose sequential scans for the prepared claim, and keep them (p99 5.6 s).
# Every hot statement has one good plan, by index and nested loop. These options allow no other, and plan it once.
PINNED: Final = (
    "-c enable_seqscan=off -c enable_hashjoin=off -c enable_mergejoin=off -c enable_bitmapscan=off "
    "-c jit=off -c plan_cache_mode=force_generic_plan"
)


async def connect(url: str, *, name: str, pinned: bool = False) -> Connection:
    """Open a connection in autocommit mode. `pinned` pins the plans and prepares each statement at its first use.

    Raises DatabaseUnavailable.
    """
    options: dict[str, Any] = {"prepare_threshold": 0} if pinned else {}
    try:
        conn = await AsyncConnection.connect(
            with_options(url, PINNED) if pinned else url,
            autocommit=True,
            application_name=f"outrider {name}",
            **LINK,
            **options,
        )
    except OperationalError as error:
        raise DatabaseUnavailable(str(error).strip()) from error
    own(conn)
    return conn


def with_options(url: str, options: str) -> str:
    """`url` with more server settings. Settings in `url` are kept: a search_path must hold on every connection."""
    given = conninfo_to_dict(url).get("options") or os.environ.get("PGOPTIONS", "")
    return make_conninfo(url, options=f"{given} {options}".strip())


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
        kwargs={"autocommit": True, "application_name": f"outrider {name}", **LINK}
        | ({"prepare_threshold": None} if reset_on_return else {}),
        configure=_own,
        reset=_discard if reset_on_return else None,
    )
    async with pool:
        _show(name, pool)
        yield pool


@asynccontextmanager
async def borrow(pool: Pool, seconds: float = STATEMENT_SECONDS) -> AsyncIterator[Connection]:
    """A connection of the pool, under a deadline of `seconds`. Raises DatabaseUnavailable."""
    try:
        conn = await pool.getconn()
    except (PoolTimeout, OperationalError) as error:
        raise DatabaseUnavailable(str(error).strip()) from error
    try:
        async with deadline(conn, seconds):
            yield conn
    finally:
        await pool.putconn(conn)


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
        if self._conn is not None and not self._conn.closed and _hung_up(self._conn):
            await self._conn.close()
        if self._conn is None or self._conn.closed:
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


async def _own(conn: Connection) -> None:
    own(conn)


async def _discard(conn: Connection) -> None:
    conn.row_factory = tuple_row
    await conn.set_autocommit(True)
    await conn.execute("DISCARD ALL")


def _hung_up(conn: Connection) -> bool:
    """Whether the server has sent something on an idle connection, as servers do when they end a connection.

    The next use of such a connection would only report a fault that may be over by now.
    """
    waiting = select.poll()
    waiting.register(conn.fileno(), select.POLLIN)
    return bool(waiting.poll(0))
