"""Runs one statement: returns its rows as tuples, and observes its time in a histogram."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, LiteralString, ParamSpec, TypeVar

from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import TupleRow, tuple_row

from engine.telemetry.metrics import STATEMENT_SECONDS

Rows = list[TupleRow]
P = ParamSpec("P")
R = TypeVar("R")
Running = Coroutine[Any, Any, R]


async def fetchall(
    conn: AsyncConnection[Any], statement: LiteralString, parameters: Any = None, *, binary: bool = False
) -> Rows:
    """The rows of a statement as tuples, whatever row and cursor factory the caller's connection has.

    `binary` rows cost server and client less, above all their times. Enums come as text in either format.
    """
    async with AsyncCursor(conn, row_factory=tuple_row) as cursor:
        await cursor.execute(statement, parameters, binary=binary)
        return await cursor.fetchall()


async def fetchone(
    conn: AsyncConnection[Any], statement: LiteralString, parameters: Any = None
) -> TupleRow | None:
    """The row of a statement that returns at most one row, as a tuple; None without a row."""
    async with AsyncCursor(conn, row_factory=tuple_row) as cursor:
        await cursor.execute(statement, parameters)
        return await cursor.fetchone()


def timed(statement: str) -> Callable[[Callable[P, Running[R]]], Callable[P, Running[R]]]:
    """Decorate a function that runs one statement and little else. Its time is observed under the name `statement`."""
    observe = STATEMENT_SECONDS.labels(statement).observe

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
