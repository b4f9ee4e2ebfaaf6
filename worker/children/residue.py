"""What an attempt leaves behind in its child: undone where that is possible, else a reason to end the child."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Final

EXECUTOR: Final = "asyncio_"
"""The threads of an event loop's own executor, which later attempts use again."""


class Residue:
    """Remembers how the process was when it was made, before any attempt."""

    def __init__(self) -> None:
        self._threads = frozenset(threading.enumerate())
        self._handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self._folder = Path.cwd()
        self._umask = os.umask(0o077)
        os.umask(self._umask)

    def left(self) -> str | None:
        """Put back what can be put back. Returns what cannot, for the log."""
        self._put_back()
        left = [
            each.name
            for each in threading.enumerate()
            if each not in self._threads and not each.name.startswith(EXECUTOR)
        ]
        if left:
            return f"an attempt left the thread {left[0]!r}" + (
                f" and {len(left) - 1} more" if left[1:] else ""
            )
        return "an attempt left a process" if _has_processes() else None

    def _put_back(self) -> None:
        for number, handler in self._handlers.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        os.umask(self._umask)
        os.chdir(self._folder)


def _has_processes() -> bool:
    """Whether this process has a child, ended or not. What a child of its own has left is the nursery's."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True
