"""Finds the attempt that kept the interpreter to itself: a native call that holds the GIL stops every other thread.

The lease's thread cannot run then, and may lose the lease. A thread that does nothing but sleep notices that it
overslept. Afterwards the CPU times of the threads tell who ran meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import structlog

if TYPE_CHECKING:
    from worker.execution import Execution

SHARE: Final = 0.5
"""A thread is to blame only if it used this share of the CPU time that the process used meanwhile."""
LEAST: Final = 0.1
"""A process that used less than this share of the time was stopped, or had no CPU: nobody in it is to blame."""

log = structlog.get_logger()


class ThreadClock:
    """The CPU time that the current thread uses from now on, in nanoseconds, to be read by any thread."""

    def __init__(self) -> None:
        self._clock = time.pthread_getcpuclockid(threading.get_ident())
        self._began = time.thread_time_ns()
        self._stopped: int | None = None

    def stop(self) -> None:
        """Call in the thread itself, before it takes other work or ends: an ended thread has no clock."""
        self._stopped = time.thread_time_ns() - self._began

    @property
    def used(self) -> int:
        if self._stopped is not None:
            return self._stopped
        return time.clock_gettime_ns(self._clock) - self._began


class InterpreterWatch:
    """Compares what the threads used while it slept, as often as every `period` seconds, from enter to exit.

    Create it in the thread of the event loop.
    """

    def __init__(self, period: float, executions: Callable[[], Collection[Execution]]) -> None:
        self._period = period
        self._executions = executions
        self._loop = ThreadClock()
        self._running: list[Execution] = []
        self._marked: dict[Execution | None, int] = {}
        self._process = time.process_time_ns()
        self._stopping = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._sleep, name="interpreter watch", daemon=True).start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._stopping.set()

    def _sleep(self) -> None:
        while not self._stopping.is_set():
            self.mark()
            began = time.monotonic()
            self._stopping.wait(self._period)
            late = time.monotonic() - began - self._period
            if late >= self._period:
                self.overslept(late)

    def mark(self) -> None:
        """Note what each thread has used so far. None stands for the event loop."""
        self._process = time.process_time_ns()
        self._running = list(self._executions())
        self._marked = {None: self._loop.used}
        for execution in self._running:
            if execution.thread is not None:
                self._marked[execution] = execution.thread.used

    def overslept(self, seconds: float) -> None:
        """Log who ran most since the mark, as the sleep took `seconds` too long. Nobody, if the process did not run."""
        # An attempt may have begun since, and ended already.
        running = {*self._running, *list(self._executions())}
        begun = {each: 0 for each in running if each.thread is not None}
        found = [(self._since(each, then), each) for each, then in (begun | self._marked).items()]
        used, execution = max(found, key=lambda each: each[0])
        in_all = time.process_time_ns() - self._process
        if in_all < LEAST * seconds * 1e9 or used < SHARE * in_all:
            return
        if execution is None:
            # Any attempt on the event loop may be the one.
            names = [f"{each.attempt.job.id}#{each.number}" for each in running if each.pipeline.is_async]
            log.error("interpreter.blocked", seconds=round(seconds, 3), running=names)
            return
        job, number = execution.attempt.job, execution.number
        log.error(
            "interpreter.blocked",
            seconds=round(seconds, 3),
            job_id=job.id,
            preset=job.preset,
            attempt=number,
        )

    def _since(self, execution: Execution | None, then: int) -> int:
        clock = self._loop if execution is None else execution.thread
        return 0 if clock is None else clock.used - then
