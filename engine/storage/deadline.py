"""How long a statement may take, and what its failure means: try again, come back later, or a fault of our own."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from psycopg import AsyncConnection, Error, errors

from engine.errors import DatabaseUnavailable

STATEMENT_SECONDS: Final = 10.0
"""How long an ordinary statement may take before its connection is given up."""


@asynccontextmanager
async def deadline(conn: AsyncConnection[Any], seconds: float = STATEMENT_SECONDS) -> AsyncIterator[None]:
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


def sever(conn: AsyncConnection[Any]) -> None:
    """Cut the connection's socket, so that whatever waits on it fails now."""
    if conn.closed:
        return
    # The peer may have been quicker: then the connection is down already.
    with socket.socket(fileno=os.dup(conn.fileno())) as link, suppress(OSError):
        link.shutdown(socket.SHUT_RDWR)


def transient(error: BaseException) -> bool:
    """Whether the same statements may simply be sent again: a deadlock or a serialization failure."""
    return isinstance(error, errors.DeadlockDetected | errors.SerializationFailure)


def _unavailable(error: Error) -> bool:
    """Whether the server, not the statement, is at fault: out of disk or memory, shutting down, or read-only."""
    state = error.sqlstate or ""
    return state.startswith(("53", "57P", "58")) or state == errors.ReadOnlySqlTransaction.sqlstate
