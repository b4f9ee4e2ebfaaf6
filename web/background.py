"""Runs endless loops beside the requests. The process stops when such a loop ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import structlog

log = structlog.get_logger()

Loop = asyncio.Task[None]


@asynccontextmanager
async def running(loop: Coroutine[Any, Any, None], died: asyncio.Event) -> AsyncIterator[Loop]:
    """Run an endless `loop` beside the block. If the loop ends before the block, that is logged and `died` is set."""
    task = asyncio.create_task(loop)
    task.add_done_callback(partial(_ended, died))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


def _ended(died: asyncio.Event, task: Loop) -> None:
    if not task.cancelled():
        log.critical("background.died", loop=str(task.get_coro()), exc_info=task.exception())
        died.set()
