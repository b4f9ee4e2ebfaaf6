"""Lends connections to lists: for a bounded time, and to no owner more than a share of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, LiteralString

from psycopg.errors import QueryCanceled

from engine.errors import OutriderError, Overloaded
from engine.storage.connections import Connection, Pool, borrow

SECONDS: Final = 2.0
"""How long each statement of a list may take. With an index for the whole list it takes milliseconds."""
AT_ONCE: Final = 7
"""Lists at once in this process. Fewer than the pool's connections: lists never keep other requests waiting."""
OWN_AT_ONCE: Final = 3
OWN_WAITING: Final = 20
TURN_SECONDS: Final = 5.0

LIMIT: LiteralString = "SELECT set_config('statement_timeout', %s, true)"


class ListTooLong(OutriderError):
    """A statement of the list took longer than SECONDS."""


@dataclass(slots=True)
class _Share:
    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(OWN_AT_ONCE))
    asking: int = 0


class Lists:
    """The lists of one process. An owner's further lists wait for his own earlier ones, not for a connection."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._shares: dict[str, _Share] = {}

    def __len__(self) -> int:
        """The number of lists that run or wait."""
        return sum(share.asking for share in self._shares.values())

    @asynccontextmanager
    async def connection(self, owner: str) -> AsyncIterator[Connection]:
        """A connection in a transaction, whose statements may take SECONDS.

        Raises Overloaded if too many lists of `owner` wait or the wait is too long, ListTooLong, DatabaseUnavailable.
        """
        async with self._turn(owner), borrow(self._pool) as conn:
            try:
                async with conn.transaction():
                    await conn.execute(LIMIT, [f"{SECONDS * 1000:.0f}ms"])
                    yield conn
            except QueryCanceled as error:
                raise ListTooLong(f"not read within {SECONDS:g} s") from error

    @asynccontextmanager
    async def _turn(self, owner: str) -> AsyncIterator[None]:
        share = self._shares.setdefault(owner, _Share())
        if share.asking >= OWN_AT_ONCE + OWN_WAITING:
            raise Overloaded(f"{OWN_WAITING} lists of yours are waiting already")
        share.asking += 1
        try:
            async with AsyncExitStack() as turns:
                try:
                    async with asyncio.timeout(TURN_SECONDS):
                        # The owner's own turn comes first: who waits for it keeps no other owner waiting.
                        await turns.enter_async_context(share.turns)
                        await turns.enter_async_context(self._turns)
                except TimeoutError:
                    raise Overloaded("too many lists are being read") from None
                yield
        finally:
            share.asking -= 1
            if not share.asking:
                del self._shares[owner]
