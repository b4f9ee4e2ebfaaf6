"""Names what keeps the event loop from turning: nothing else on the loop runs meanwhile.

A thread looks several times a second whether the loop has turned. It sees the stack of the loop's thread, and the task
that runs there, also while that holds the interpreter's lock now and then only.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog

from engine.telemetry.metrics import LOOP_BLOCKED

LOOK_SECONDS: Final = 0.25
BLOCKED_SECONDS: Final = 1.0
FRAMES: Final = 12
"""The innermost frames that are logged."""

Describe = Callable[[asyncio.Task[Any]], Mapping[str, Any]]

log = structlog.get_logger()

_describe: Describe | None = None


def describe_by(describe: Describe | None) -> None:
    """Log the fields that `describe` gives for the task that blocks the loop. It is called in another thread."""
    global _describe
    _describe = describe


class LoopWatch:
    """Watches the running loop from its creation to `stop`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._turned = time.monotonic()
        self._told = False
        self._stopping = threading.Event()
        self._turn()
        threading.Thread(target=self._look, name="loop watch", daemon=True).start()

    def stop(self) -> None:
        self._stopping.set()

    def _turn(self) -> None:
        if self._told:
            log.info("loop.unblocked", seconds=round(time.monotonic() - self._turned, 1))
        self._turned, self._told = time.monotonic(), False
        if not self._stopping.is_set():
            self._loop.call_later(LOOK_SECONDS, self._turn)

    def _look(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            seconds = time.monotonic() - self._turned
            if seconds < BLOCKED_SECONDS + LOOK_SECONDS or self._told:
                continue
            self._told = True
            LOOP_BLOCKED.inc()
            log.warning("loop.blocked", seconds=round(seconds, 1), stack=self._stack(), **self._named())

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._thread)
        return "".join(traceback.format_stack(frame)[-FRAMES:])

    def _named(self) -> Mapping[str, Any]:
        """What is known of the task. The loop may go on, and end the task, at the same time."""
        try:
            task = asyncio.current_task(self._loop)
            return _describe(task) if task is not None and _describe is not None else {}
        except Exception as error:  # noqa: BLE001 - the stack is worth a line without the job's id
            return {"task": f"unknown: {type(error).__name__}"}
