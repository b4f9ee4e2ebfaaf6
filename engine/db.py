"""Connections to PostgreSQL: how they are set up, bounded in time and told apart when they fail."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from functools import partial, wraps
from typing import Any, Final, LiteralString, ParamSpec, TypeVar

from psycopg import AsyncConnection, Error, OperationalError, errors
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow, tuple_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from engine import metrics
from engine.errors import DatabaseUnavailable

Connection = AsyncConnection[TupleRow]
Pool = AsyncConnectionPool[Connection]
Rows = list[TupleRow]
P = ParamSpec("P")
R = TypeVar("R")
Running = Coroutine[Any, Any, R]

CONNECT_SECONDS: Final = 5
STATEMENT_SECONDS: Final = 10.0
"""How long an ordinary statement may take before its connection is given up."""

LINK: Final[dict[str, Any]] = {
    "connect_timeout": CONNECT_SECONDS,
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}

# An empty queue once made the planner choose sequential scans for the prepared claim, and keep them (p99 5.6 s).
# Every hot statement has one good plan, by index and nested loop: leave it no other, and plan it once.
PINNED: Final = (
    "-c enable_seqscan=off -c enable_hashjoin=off -c enable_mergejoin=off -c enable_bitmapscan=off "
    "-c jit=off -c plan_cache_mode=force_generic_plan"
)


async def connect(url: str, *, name: str, hot: bool = False) -> Connection:
    """Open a connection in autocommit. `hot` pins the plans and prepares each statement at its first use.

    Raises DatabaseUnavailable.
    """
    options: dict[str, Any] = {"prepare_threshold": 0} if hot else {}
    try:
        return await AsyncConnection.connect(
            with_options(url, PINNED) if hot else url,
            autocommit=True,
            application_name=f"outrider {name}",
            **LINK,
            **options,
        )
    except OperationalError as error:
        raise DatabaseUnavailable(str(error).strip()) from error


def with_options(url: str, options: str) -> str:
    """`url` with more server settings, beside any that it brings: a search_path must hold on every connection."""
    given = conninfo_to_dict(url).get("options") or os.environ.get("PGOPTIONS", "")
    return make_conninfo(url, options=f"{given} {options}".strip())


@asynccontextmanager
async def open_pool(url: str, *, name: str, size: int, strangers: bool = False) -> AsyncIterator[Pool]:
    """A pool of autocommit connections for everything that is not hot. Getting one waits 5 s at most.

    With `strangers`, code that is not ours uses them: each comes back as new, whatever was SET or locked on it.
    """
    pool: Pool = AsyncConnectionPool(
        url,
        min_size=1,
        max_size=size,
        open=False,
        timeout=CONNECT_SECONDS,
        reconnect_timeout=CONNECT_SECONDS,
        kwargs={"autocommit": True, "application_name": f"outrider {name}", **LINK}
        | ({"prepare_threshold": None} if strangers else {}),
        reset=_discard if strangers else None,
    )
    async with pool:
        _show(name, pool)
        yield pool


def _show(name: str, pool: Pool) -> None:
    """Have a scrape ask the pool itself: that costs no query."""
    for state, figure in (("open", "pool_size"), ("idle", "pool_available"), ("waiting", "requests_waiting")):
        metrics.POOL_CONNECTIONS.labels(name, state).set_function(partial(_figure, pool, figure))


def _figure(pool: Pool, name: str) -> float:
    return pool.get_stats().get(name, 0)


async def _discard(conn: Connection) -> None:
    conn.row_factory = tuple_row
    await conn.set_autocommit(True)
    await conn.execute("DISCARD ALL")


@asynccontextmanager
async def deadline(conn: Connection, seconds: float = STATEMENT_SECONDS) -> AsyncIterator[None]:
    """Sever `conn` when the block takes longer. Raises DatabaseUnavailable for that, and for a broken connection.

    Cancelling psycopg asks the server to cancel and waits for it: behind a black-holed server that took 13 s.
    Shutting the socket down ends the wait at once, and unlike closing it cannot hit a reused descriptor.
    """
    timer = asyncio.get_running_loop().call_later(seconds, sever, conn)
    try:
        yield
    except Error as error:
        if conn.closed or _unavailable(error):
            sever(conn)  # after a fail-over it may lead to a server that only reads
            raise DatabaseUnavailable(str(error).strip()) from error
        raise
    finally:
        timer.cancel()


@asynccontextmanager
async def lent(pool: Pool, seconds: float = STATEMENT_SECONDS) -> AsyncIterator[Connection]:
    """A connection of the pool, under a deadline. Raises DatabaseUnavailable."""
    try:
        conn = await pool.getconn()
    except (PoolTimeout, OperationalError) as error:
        raise DatabaseUnavailable(str(error).strip()) from error
    try:
        async with deadline(conn, seconds):
            yield conn
    finally:
        await pool.putconn(conn)


async def fetchall(conn: AsyncConnection[Any], statement: LiteralString, parameters: Any = None) -> Rows:
    """Run a statement and give its rows as tuples, whatever row factory the caller's connection has."""
    async with conn.cursor(row_factory=tuple_row) as cursor:
        await cursor.execute(statement, parameters)
        return await cursor.fetchall()


async def fetchone(
    conn: AsyncConnection[Any], statement: LiteralString, parameters: Any = None
) -> TupleRow | None:
    """As `fetchall`, for a statement that gives one row at most."""
    async with conn.cursor(row_factory=tuple_row) as cursor:
        await cursor.execute(statement, parameters)
        return await cursor.fetchone()


def timed(statement: str) -> Callable[[Callable[P, Running[R]]], Callable[P, Running[R]]]:
    """Observe how long the decorated function takes, as the seconds of `statement`: it runs that and little else."""
    observe = metrics.STATEMENT_SECONDS.labels(statement).observe

    def around(run: Callable[P, Running[R]]) -> Callable[P, Running[R]]:
        @wraps(run)
        async def observed(*args: P.args, **kwargs: P.kwargs) -> R:
            began = time.perf_counter()
            try:
                return await run(*args, **kwargs)
            finally:
                observe(time.perf_counter() - began)

        return observed

    return around


def sever(conn: Connection) -> None:
    """Cut the connection's socket, so that whatever waits on it fails now."""
    if conn.closed:
        return
    # The peer may have been quicker: then the connection is down already.
    with socket.socket(fileno=os.dup(conn.fileno())) as link, suppress(OSError):
        link.shutdown(socket.SHUT_RDWR)


def _hung_up(conn: Connection) -> bool:
    """Whether the server has said something on an idle connection, as it does when it ends it.

    The next use of such a connection would only tell of a fault that may be over by now.
    """
    waiting = select.poll()
    waiting.register(conn.fileno(), select.POLLIN)
    return bool(waiting.poll(0))


def transient(error: BaseException) -> bool:
    """Whether the same statements may simply be sent again: a deadlock or a serialization failure."""
    return isinstance(error, errors.DeadlockDetected | errors.SerializationFailure)


def _unavailable(error: Error) -> bool:
    """Whether the server, not the statement, is at fault: out of disk or memory, shutting down, or read-only."""
    state = error.sqlstate or ""
    return state.startswith(("53", "57P", "58")) or state == errors.ReadOnlySqlTransaction.sqlstate


class HotConnection:
    """One pinned connection, opened when first needed and again after it broke. For one user at a time.

    A pool costs 96 µs a round trip, a connection of one's own 40 to 58.
    """

    def __init__(self, url: str, *, name: str) -> None:
        self._url = url
        self._name = name
        self._conn: Connection | None = None

    @asynccontextmanager
    async def use(self, seconds: float = STATEMENT_SECONDS) -> AsyncIterator[Connection]:
        """The connection, under a deadline. Raises DatabaseUnavailable."""
        if self._conn is not None and not self._conn.closed and _hung_up(self._conn):
            await self._conn.close()
        if self._conn is None or self._conn.closed:
            self._conn = await connect(self._url, name=self._name, hot=True)
        async with deadline(self._conn, seconds):
            yield self._conn

    async def aclose(self) -> None:
        if self._conn is not None:
            await self._conn.close()


def array(values: Iterable[object]) -> str:
    """A PostgreSQL array literal; None becomes NULL. One literal a column is the cheapest way to send a batch."""
    return "{" + ",".join(["NULL" if v is None else _quoted(str(v)) for v in values]) + "}"


def bare_array(values: Iterable[object]) -> str:
    """As `array`, for values whose text needs no quotes: numbers and ids."""
    return "{" + ",".join(map(str, values)) + "}"


def _quoted(text: str) -> str:
    if "\\" in text or '"' in text:
        text = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
