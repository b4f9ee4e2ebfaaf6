"""Endless loops beside the work of a process, which go on after a fault that nobody expected."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Literal, ParamSpec, get_args

import structlog

from engine.cancellation import survivable
from engine.telemetry.metrics import LOOP_FAULTS

PAUSE_SECONDS: Final = 1.0
"""Less than a lease, because a worker's loops prove that it lives."""

Name = Literal["notify", "listen", "report", "publish", "claim", "watch", "progress", "source", "record"]

P = ParamSpec("P")

log = structlog.get_logger()

for each in get_args(Name):
    LOOP_FAULTS.labels(each)


async def keep_running(
    name: Name, loop: Callable[P, Awaitable[None]], *args: P.args, **kwargs: P.kwargs
) -> None:
    """Run `loop` with the arguments until it returns or this call is cancelled. After an exception it is run again.

    A loop that raised would end its process and everything that runs there, and an input that makes it raise would
    do the same in every process. So the fault is logged with its traceback and counted, and the others never notice.
    """
    while True:
        try:
            return await loop(*args, **kwargs)
        except BaseException as error:
            if not survivable(error):
                raise
            note_fault(name, error)
        await asyncio.sleep(PAUSE_SECONDS)


def note_fault(name: Name, error: BaseException) -> None:
    """Count and log an error that nobody expected, for a loop that goes on by itself."""
    LOOP_FAULTS.labels(name).inc()
    log.error("loop.failed", loop=name, exc_info=error)
