"""What is at fault when a statement fails: the server, a value, or our own code; decided by the SQLSTATE alone."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Any, Final

from psycopg import DataError, Error, OperationalError

from engine.errors import DatabaseUnavailable


class Blame(Enum):
    """What is at fault, and so what helps."""

    SERVER = "server"
    """No connection, a limit, a lock, a time-out, a read-only server: the same statement may succeed later."""
    VALUE = "value"
    """A value that PostgreSQL refuses: the statement succeeds with another one."""
    CODE = "code"
    """The statement, or the schema and the rights under it: it fails until somebody changes one of them."""


# Classes and codes of https://www.postgresql.org/docs/current/errcodes-appendix.html. A longer prefix is looked at
# first: 25006 is a read-only server, while the rest of class 25 is a transaction that our code has misused.
BLAMES: Final = {
    "08": Blame.SERVER,  # the connection
    "22": Blame.VALUE,
    "23514": Blame.VALUE,  # a CHECK; the other constraints are kept by the statements themselves
    "25006": Blame.SERVER,  # a read-only transaction: a standby, or a default of the role
    "25P03": Blame.SERVER,  # idle in a transaction for too long
    "28": Blame.SERVER,  # the role may not connect at present
    "3D000": Blame.SERVER,  # the database is gone, or is being restored
    "40": Blame.SERVER,  # a deadlock, a serialization failure, a conflict with recovery
    "53": Blame.SERVER,  # connections, memory, disk
    "54": Blame.VALUE,  # too large for the server
    "55P03": Blame.SERVER,  # a lock
    "57": Blame.SERVER,  # cancelled, or shut down
    "58": Blame.SERVER,  # the system under the server
    "72": Blame.SERVER,  # a snapshot that is too old
}
PREFIXES: Final = (5, 2)


def blame(error: BaseException) -> Blame:
    """What is at fault when `error` ends a statement. Errors of Python are our own code's."""
    if isinstance(error, DatabaseUnavailable):
        return Blame.SERVER
    if not isinstance(error, Error):
        return Blame.CODE
    if state := error.sqlstate:
        known = (BLAMES[prefix] for length in PREFIXES if (prefix := state[:length]) in BLAMES)
        return next(known, Blame.CODE)
    # psycopg found the fault itself: there is no connection, or a value cannot be sent.
    if isinstance(error, OperationalError):
        return Blame.SERVER
    return Blame.VALUE if isinstance(error, DataError) else Blame.CODE


def by_blame(log: Any, error: BaseException) -> Callable[..., None]:
    """The method of `log` that tells of `error`: an outage is a warning; anything else an error with its traceback.

    An outage names itself: its traceback would only fill the log for as long as the outage lasts.
    """
    text = str(error).strip()
    if blame(error) is Blame.SERVER:
        return partial(log.warning, error=text)
    return partial(log.error, error=text, exc_info=error)


def told(before: BaseException | None, error: BaseException) -> bool:
    """Whether a loop that has told of the error `before`, and has failed ever since, need not tell of `error`.

    An outage is told of once, however its errors vary. Faults of our own are told of one by one.
    """
    if before is None or blame(before) is not blame(error):
        return False
    same = (type(before), getattr(before, "sqlstate", None)) == (
        type(error),
        getattr(error, "sqlstate", None),
    )
    return same or blame(error) is Blame.SERVER
