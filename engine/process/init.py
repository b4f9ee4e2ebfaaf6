"""The duties of process 1, as in a container: it passes signals on and reaps orphans.

The kernel gives process 1 no default actions for signals, and hands it every orphan. A process that runs jobs cannot
reap what it does not know, because an author's code may wait for the same child. So process 1 does nothing else: the
command goes on in a child.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import Final, NoReturn

PASSED_ON: Final = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


def leave_process_1() -> None:
    """Go on in a child, if this is process 1. Call it before there are threads."""
    if os.getpid() != 1:
        return
    # A signal that comes before the handlers waits for them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
    child = os.fork()
    if child == 0:
        # Else a terminal's Ctrl-C would reach it twice: from the terminal, and passed on.
        os.setsid()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    _serve(child, before)


def _serve(child: int, before: set[signal.Signals] | set[int]) -> NoReturn:
    """Pass signals on and reap, until `child` ends; then end with its exit code, and the kernel ends the rest."""

    def pass_on(number: int, _frame: object) -> None:
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(child, number)

    for number in PASSED_ON:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(128 - code if code < 0 else code)
