"""Offloads work on large documents to a thread, so that the event loop goes on answering other requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

from aiohttp import web

from engine.errors import Overloaded
from web.presence import require_client

LARGE_BYTES: Final = 64 * 1024
MAX_WAITING_BYTES: Final = 64 << 20

P = ParamSpec("P")
R = TypeVar("R")


class Offload:
    """Handles one large document at a time, because its values take up to fifty times its bytes."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def run(
        self, request: web.BaseRequest, size: int, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Call `work`, which handles `size` bytes of `request`, in a thread.

        Raises Overloaded while too many bytes wait, or ClientConnectionResetError if the client leaves before its turn.
        """
        if self._waiting >= MAX_WAITING_BYTES:
            raise Overloaded("many large requests are waiting already")
        self._waiting += size
        try:
            async with self._turn:
                require_client(request)
                return await asyncio.to_thread(work, *args, **kwargs)
        finally:
            self._waiting -= size
