"""Runs endless loops beside the requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from engine.process.loops import Name, keep_running


@asynccontextmanager
async def running(name: Name, loop: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Run an endless `loop` beside the block (see keep_running)."""
    task = asyncio.create_task(keep_running(name, loop))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
