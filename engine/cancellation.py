"""Tells what ends a task from what only went wrong in it."""

from __future__ import annotations

import asyncio


def being_cancelled() -> bool:
    """Whether the current task was cancelled.

    A CancelledError may also come from below: gRPC reports a closed call so, and authors' code may raise anything.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def survivable(error: BaseException) -> bool:
    """Whether the loop that raised `error` may go on: its task is not being cancelled, nor does the process end."""
    return not being_cancelled() and isinstance(error, Exception | asyncio.CancelledError)
