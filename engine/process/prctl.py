"""What a process asks of Linux for itself and its relatives, see prctl(2). Other systems have none of it.

Only the standard library is used here: a process without an import path loads this file by its path. Run as a program,
`prctl.py PARENT PROGRAM …` becomes the program in its arguments, which ends with the process PARENT. That takes no
`preexec_fn`, whose fork may hang beside gRPC's threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Final

PR_SET_PDEATHSIG: Final = 1
PR_SET_CHILD_SUBREAPER: Final = 36
# Loaded here, because the library may be out of reach after privileges are dropped.
_LIBC: Final = ctypes.CDLL(None)


def die_with_parent(number: signal.Signals = signal.SIGKILL, parent: int | None = None) -> None:
    """Let the kernel send this process `number` when the thread that started it ends, even by SIGKILL.

    The kernel does not do so for a parent that has ended before. Give the id of the process that `parent` must be, and
    the signal comes at once then.
    """
    if sys.platform == "linux":
        _LIBC.prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), number)


def adopt_orphans() -> None:
    """Become the parent of every process below this one whose parent ends."""
    if sys.platform == "linux":
        _LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


if __name__ == "__main__":
    die_with_parent(parent=int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 - the program is the caller's
