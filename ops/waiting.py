"""Waits by polling, where there is no event: for another process, a file or a row. Each wait has a time limit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import Any, Final, TypeVar, overload

T = TypeVar("T")

WAIT_SECONDS: Final = 15.0
POLL_SECONDS: Final = 0.01


@overload
async def until(look: Callable[[], Awaitable[T | None]], seconds: float = WAIT_SECONDS) -> T: ...
@overload
async def until(look: Callable[[], T | None], seconds: float = WAIT_SECONDS) -> T: ...
async def until(look: Callable[[], Any], seconds: float = WAIT_SECONDS) -> Any:
    """Call `look` until its result (awaited, if it is awaitable) is true. Return the result. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while True:
            seen = look()
            found = await seen if isawaitable(seen) else seen
            if found:
                return found
            await asyncio.sleep(POLL_SECONDS)


def eventually(
    condition: Callable[[], object], seconds: float = 2 * WAIT_SECONDS, poll: float = POLL_SECONDS
) -> bool:
    """Whether `condition` came true within `seconds`. Blocks."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        # A plain sleep: the callers are threads and commands without an event loop.
        time.sleep(poll)
    return True
