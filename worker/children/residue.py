"""What an attempt leaves behind in its child: undone where that is possible, else a reason to end the child."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, Final

EXECUTOR: Final = "asyncio"
"""The prefix of the threads of the event loop's own executor, which later attempts use again."""
SIGNALS: Final = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGPIPE,
    signal.SIGALRM,
    signal.SIGTERM,
    signal.SIGCHLD,
    signal.SIGPROF,
)
"""Those that programs handle. A look at each of the 64 would cost more than the attempt."""
LIMITS: Final = (
    resource.RLIMIT_AS,
    resource.RLIMIT_CPU,
    resource.RLIMIT_DATA,
    resource.RLIMIT_FSIZE,
    resource.RLIMIT_NOFILE,
)


class Residue:
    """Remembers how the process was when it was made, before any attempt."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._executor = _Executor(thread_name_prefix=EXECUTOR)
        loop.set_default_executor(self._executor)
        self._tasks: set[asyncio.Task[Any]] = set()
        """Those that an author's code has left. The engine's own are not among them."""
        self._threads = frozenset(threading.enumerate())
        self._handlers = [*map(signal.getsignal, SIGNALS)]
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self._folder = os.open(".", os.O_PATH | os.O_CLOEXEC)
        self._limits = [*map(resource.getrlimit, LIMITS)]
        self._streams = sys.stdout, sys.stderr
        self._umask = os.umask(0o077)
        os.umask(self._umask)

    @contextmanager
    def of_author(self) -> Iterator[None]:
        """The block calls an author's code: the tasks that begin in it, and are there after it, are left by it."""
        before = asyncio.all_tasks(self._loop)
        try:
            yield
        finally:
            self._tasks |= asyncio.all_tasks(self._loop) - before

    def left(self) -> str | None:
        """Put back what can be put back. Returns what cannot, for the log."""
        try:
            self._put_back()
        except (OSError, ValueError) as error:
            return f"an attempt has changed the process: {error}"
        left = [
            each.name
            for each in threading.enumerate()
            if each not in self._threads and not each.name.startswith(f"{EXECUTOR}_")
        ]
        if left:
            return f"an attempt left the thread {left[0]!r}" + (
                f" and {len(left) - 1} more" if left[1:] else ""
            )
        if self._executor.running:
            return "an attempt left a call in a thread"
        if left_task := next((each for each in self._tasks if not each.done()), None):
            return f"an attempt left the task {left_task.get_name()!r}"
        return "an attempt left a process" if _has_processes() else None

    def _put_back(self) -> None:
        """Raises OSError, or ValueError of a closed stream, for what cannot be put back."""
        if [*map(signal.getsignal, SIGNALS)] != self._handlers:
            for number, handler in zip(SIGNALS, self._handlers, strict=True):
                if handler is not None and signal.getsignal(number) is not handler:
                    signal.signal(number, handler)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        os.umask(self._umask)
        os.fchdir(self._folder)
        if [*map(resource.getrlimit, LIMITS)] != self._limits:
            for each, limits in zip(LIMITS, self._limits, strict=True):
                resource.setrlimit(each, limits)
        sys.stdout, sys.stderr = self._streams
        sys.stdout.flush()


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


def _has_processes() -> bool:
    """Whether this process has a child or has adopted one, ended or not."""
    with suppress(ChildProcessError):
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return True
    return False
