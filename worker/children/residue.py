"""What an attempt leaves behind in its child: undone where that is possible, else a reason to end the child."""

from __future__ import annotations

import _thread
import os
import sys
import threading

from worker.children.loop import EXECUTOR, Loop
from worker.children.surroundings import Surroundings


class Residue:
    """Remembers how the process was when it was made, before any attempt."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._threads = frozenset(threading.enumerate())
        self._count = _thread._count()
        self._surroundings = Surroundings()

    def left(self) -> str | None:
        """Put back what can be put back. Returns what cannot, for the log."""
        try:
            self._surroundings.put_back()
            sys.stdout.flush()
        except Exception as error:  # noqa: BLE001 - what stands there now may be an author's, and raise anything
            return f"an attempt has changed the process: {error}"
        if self._loop.is_closed():
            return "an attempt has closed the event loop"
        # A count, as to list threads would cost more. One of `_thread` that has not run yet is seen an attempt later.
        if _thread._count() > self._count + self._loop.threads:
            left = [each.name for each in threading.enumerate() if each not in self._threads]
            named = [name for name in left if not name.startswith(f"{EXECUTOR}_")]
            return f"an attempt left threads: {', '.join(named) or 'unknown'}"
        if (on_loop := self._loop.left()) is not None:
            return f"an attempt left {on_loop}"
        return "an attempt left a process" if _has_processes() else None


def _has_processes() -> bool:
    """Whether this process has a child or has adopted one, ended or not."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True
