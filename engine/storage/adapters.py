"""psycopg's adapters of our connections: those that were there before an author's code could register others.

An author may register adapters for all connections of the process, or on the connection that effects get. Ours must
go on reading times as datetimes and sending lists as arrays.
"""

from __future__ import annotations

from typing import Any, Final

import psycopg
from psycopg import AsyncConnection
from psycopg.adapt import AdaptersMap


class _Ours:
    """A context to connect with. Made when this module is imported, which is before any pipeline is loaded."""

    adapters: Final = AdaptersMap(psycopg.adapters)
    connection: Final = None


OURS: Final = _Ours()


# psycopg has no public way to take a connection's adapters back.
def lend_adapters(conn: AsyncConnection[Any]) -> None:
    """Give the connection the adapters of the process, those that an author registered among them."""
    conn._adapters = AdaptersMap(psycopg.adapters)


def regain_adapters(conn: AsyncConnection[Any]) -> None:
    """Give the connection our adapters again."""
    conn._adapters = AdaptersMap(OURS.adapters)
