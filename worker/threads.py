"""The threads that plain functions run on. Each is used again, so that what authors keep in a thread stays bounded.

There are never more threads than functions ran at the same time, and so no more than the worker has slots. The
thread that became idle last is used first: where few run at a time, few connections of threading.local are open.
No exit waits for a thread, as it does for those of concurrent.futures, because a function may never return.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Final, TypeVar

T = TypeVar("T")

IDLE: Final = "idle attempt thread"

_idle: Final[list[_Thread]] = []


class _Thread:
    def __init__(self) -> None:
        self._given: SimpleQueue[tuple[str, Callable[[], Any], Callable[[Any], None]]] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=IDLE, daemon=True)
        self._thread.start()

    def give(self, name: str, work: Callable[[], T], done: Callable[[T], None]) -> None:
        self._given.put((name, work, done))

    def _run(self) -> None:
        while True:
            self._thread.name, work, done = self._given.get()
            result = work()
            self._thread.name = IDLE
            # Idle before anyone hears of the result: whoever then starts another function finds this thread.
            _idle.append(self)
            done(result)
            # An idle thread must not keep alive what they refer to.
            del work, done, result


def call(name: str, work: Callable[[], T], done: Callable[[T], None]) -> None:
    """Call `done(work())` in a thread called `name`. Neither may raise, and `done` must be quick.

    Raises RuntimeError if no thread is idle and none can be started.
    """
    (_idle.pop() if _idle else _Thread()).give(name, work, done)
