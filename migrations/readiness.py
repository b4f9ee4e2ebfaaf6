"""What a process checks of the database at its start, and for as long as it runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, LiteralString

from psycopg import AsyncConnection

from engine.errors import DatabaseUnavailable
from engine.storage.connections import PinnedConnection, refuse_pooler
from migrations import check, rights

CHECK_SECONDS: Final = 2.5
"""Less than a readiness check may take: a query that is cancelled from outside waits for the server's answer."""

WRITABLE: LiteralString = "SELECT pg_is_in_recovery(), current_setting('transaction_read_only')"

Check = Callable[[], Awaitable[None]]
Look = Callable[[AsyncConnection[Any]], Awaitable[None]]


@asynccontextmanager
async def open_checks(url: str, process: str) -> AsyncIterator[Mapping[str, Check]]:
    """The readiness checks of `process`, on one connection of their own: schema, rights and writable.

    The first two run at once. Raises UnfitDatabase, and SchemaMismatch or DatabaseUnavailable when one of them fails. A
    database that is read-only stops no process: jobs can still be read, and the database may be promoted.
    """
    await refuse_pooler(url)
    conn = PinnedConnection(url, name="readiness")
    busy = asyncio.Lock()

    def on_connection(look: Look) -> Check:
        async def checked() -> None:
            async with busy:
                try:
                    async with conn.use(CHECK_SECONDS) as each:
                        await look(each)
                except DatabaseUnavailable:
                    # A session keeps the defaults that it began with: the next look needs a new one.
                    await conn.aclose()
                    raise

        return checked

    async def has_rights(each: AsyncConnection[Any]) -> None:
        await rights.check(each, [process])

    checks = {
        "schema": on_connection(check),
        "rights": on_connection(has_rights),
        "writable": on_connection(writable),
    }
    try:
        # In this order: without rights on the list of versions, the schema cannot be checked.
        await checks["rights"]()
        await checks["schema"]()
        yield checks
    finally:
        await conn.aclose()


async def writable(conn: AsyncConnection[Any]) -> None:
    """Raise DatabaseUnavailable if nothing can be written: on a standby, or with a read-only default."""
    [(standby, read_only)] = await (await conn.execute(WRITABLE)).fetchall()
    if standby:
        raise DatabaseUnavailable("the server is a standby: it can be read, but not written")
    if read_only == "on":
        raise DatabaseUnavailable(
            "default_transaction_read_only is on: the database can be read, but not written"
        )
