"""What an attempt leaves behind in its child: undone where that is possible, else a reason to end the child."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading

# Those of `signal` turn each answer into an enum, which takes longer than all that is looked at here.
from _signal import getsignal, pthread_sigmask  # type: ignore[import-not-found]
from typing import Final

from worker.children.loop import EXECUTOR, Loop

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

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._threads = frozenset(threading.enumerate())
        self._handlers = [*map(getsignal, SIGNALS)]
        self._mask = pthread_sigmask(signal.SIG_BLOCK, ())
        self._folder = os.open(".", os.O_PATH | os.O_CLOEXEC)
        self._limits = [*map(resource.getrlimit, LIMITS)]
        self._streams = sys.stdout, sys.stderr
        self._umask = os.umask(0o077)
        os.umask(self._umask)

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
        if (on_loop := self._loop.left()) is not None:
            return f"an attempt left {on_loop}"
        return "an attempt left a process" if _has_processes() else None

    def _put_back(self) -> None:
        """Raises OSError, or ValueError of a closed stream, for what cannot be put back."""
        if [*map(getsignal, SIGNALS)] != self._handlers:
            for number, handler in zip(SIGNALS, self._handlers, strict=True):
                if handler is not None and getsignal(number) is not handler:
                    signal.signal(number, handler)
        signal.setitimer(signal.ITIMER_REAL, 0)
        pthread_sigmask(signal.SIG_SETMASK, self._mask)
        os.umask(self._umask)
        os.fchdir(self._folder)
        if [*map(resource.getrlimit, LIMITS)] != self._limits:
            for each, limits in zip(LIMITS, self._limits, strict=True):
                resource.setrlimit(each, limits)
        sys.stdout, sys.stderr = self._streams
        sys.stdout.flush()


def _has_processes() -> bool:
    """Whether this process has a child or has adopted one, ended or not."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True
