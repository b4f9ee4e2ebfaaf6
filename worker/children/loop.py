"""The event loop of a child, which knows what an author's code has begun on it."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final
from weakref import WeakSet

EXECUTOR: Final = "asyncio"
"""The prefix of the threads of the loop's own executor, which later attempts use again."""


class Loop(asyncio.SelectorEventLoop):
    """`lent` is set while an author's code runs: the tasks that begin meanwhile are the author's."""

    def __init__(self) -> None:
        super().__init__()
        self.lent = False
        self._tasks: WeakSet[asyncio.Task[Any]] = WeakSet()
        self._executor = _Executor(thread_name_prefix=EXECUTOR)
        self.set_default_executor(self._executor)

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        task = super().create_task(coro, **options)
        if self.lent:
            self._tasks.add(task)
        return task

    @property
    def threads(self) -> int:
        """How many threads its executor has, at work or not."""
        return len(self._executor._threads)

    def left(self) -> str | None:
        """What the author's code has left on the loop, in words."""
        if self._executor.running:
            return "a call in a thread"
        if self._tasks and (task := next((each for each in self._tasks if not each.done()), None)):
            return f"the task {task.get_name()!r}"
        return None


class _Executor(ThreadPoolExecutor):
    """Knows the calls that have not returned."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.running: set[Future[Any]] = set()

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        future = super().submit(*args, **kwargs)
        self.running.add(future)
        future.add_done_callback(self.running.discard)
        return future
