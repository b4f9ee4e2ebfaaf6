"""The deadline of a statement, and the meaning of a failure: try again, come back later, or a fault of our own."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from psycopg import AsyncConnection, BaseConnection, Error, errors

from engine.errors import DatabaseUnavailable

STATEMENT_SECONDS: Final = 10.0
"""How long an ordinary statement may take before its connection is severed."""


@asynccontextmanager
async def deadline(conn: AsyncConnection[Any], seconds: float = STATEMENT_SECONDS) -> AsyncIterator[None]:
    """Sever `conn` if the block takes longer than `seconds`. Raises DatabaseUnavailable then, and if `conn` breaks.

    Cancelling psycopg asks the server to cancel and waits for the answer: behind a black-holed server that took 13 s.
    Shutting the socket down ends the wait at once. Closing the socket could hit a reused descriptor instead.
    """
    timer = asyncio.get_running_loop().call_later(seconds, sever, conn)
    try:
        yield
    except Error as error:
        if conn.closed or _unavailable(error):
            # After a fail-over the connection may lead to a read-only server.
            sever(conn)
            raise DatabaseUnavailable(str(error).strip()) from error
        raise
    finally:
        timer.cancel()


def sever(conn: BaseConnection[Any]) -> None:
    """Shut the connection's socket down, so that every wait on the connection fails now."""
    if conn.closed:
        return
    # If the peer has closed the connection already, shutdown() raises OSError.
    with socket.socket(fileno=os.dup(conn.fileno())) as link, suppress(OSError):
        link.shutdown(socket.SHUT_RDWR)


def transient(error: BaseException) -> bool:
    """Whether the same statements may be sent again: after a deadlock or a serialization failure."""
    return isinstance(error, errors.DeadlockDetected | errors.SerializationFailure)


def _unavailable(error: Error) -> bool:
    """Whether the server is at fault, not the statement: out of disk or memory, shutting down, or read-only."""
    state = error.sqlstate or ""
    return state.startswith(("53", "57P", "58")) or state == errors.ReadOnlySqlTransaction.sqlstate
