"""A pinned connection that a readiness check may look at, beside its one user."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from psycopg import DataError, Error, IntegrityError

from engine.errors import DatabaseUnavailable
from engine.storage.connections import Connection, PinnedConnection
from engine.storage.deadline import STATEMENT_SECONDS


class CheckedConnection:
    """As PinnedConnection. User and readiness check take turns."""

    def __init__(self, url: str, *, name: str) -> None:
        self._conn = PinnedConnection(url, name=name)
        self._name = name
        self._turn = asyncio.Lock()
        self._failure: str | None = None
        """Why the last use failed."""

    @asynccontextmanager
    async def use(self, seconds: float = STATEMENT_SECONDS) -> AsyncIterator[Connection]:
        """The connection, under a deadline of `seconds`. Raises DatabaseUnavailable."""
        async with self._turn:
            try:
                async with self._conn.use(seconds) as conn:
                    yield conn
            except (DataError, IntegrityError):
                # A value is at fault: the next use may succeed.
                raise
            except (DatabaseUnavailable, Error) as error:
                self._failure = str(error)
                raise
            self._failure = None

    async def ready(self) -> None:
        """A readiness check: raises DatabaseUnavailable if the connection cannot be had.

        A connection that is in use is judged by the use before: to wait would fail the check under load.
        """
        if not self._turn.locked():
            async with self.use():
                return
        if self._failure is not None:
            raise DatabaseUnavailable(f"{self._name}: {self._failure}")

    async def aclose(self) -> None:
        await self._conn.aclose()
