"""The open connections of this process, so that a forked child can give up its share of each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final
from weakref import WeakSet

from psycopg import BaseConnection, Error

_OPEN: Final[WeakSet[BaseConnection[Any]]] = WeakSet()


def own(conn: BaseConnection[Any]) -> None:
    """Note that `conn` is ours. A closed connection leaves by itself."""
    _OPEN.add(conn)


def descriptors() -> Iterator[int]:
    """The socket of each open connection."""
    for conn in list(_OPEN):
        # Closed, or broken at this moment: it has no socket.
        with suppress(Error):
            yield conn.fileno()
