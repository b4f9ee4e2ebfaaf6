"""The end of a process: bounded, whatever an author's code has left behind."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from typing import Any, Final, NoReturn

import structlog

from engine.process import fork

EXIT_SECONDS: Final = 3.0
"""How long the tasks, threads, children and exit handlers that are left at the end may take to end."""
CHILD_SECONDS: Final = 0.5
"""How long a child that is left after that may take to end at a SIGTERM."""
LAST_WORDS_SECONDS: Final = 1.0
"""How long that and the last log line may take together, for example if nobody reads the log."""
MULTIPROCESSING: Final = "multiprocessing"
FORK_SECONDS: Final = 0.5
NOTE_SECONDS: Final = 0.02

followers: Final[set[int]] = set()
"""The processes that this one has started and that end with it, by pid, as long as they are not reaped."""


class Ending:
    """Ends this process with an exit code, at the latest EXIT_SECONDS and LAST_WORDS_SECONDS after `begin`.

    The interpreter's own end has no bound: it waits for threads of ThreadPoolExecutor, for children of
    multiprocessing that ignore SIGTERM, and for exit handlers.
    """

    def __init__(self) -> None:
        self._code = 1
        self._begun = threading.Event()
        # Started now: at the end no thread may be left to be had.
        threading.Thread(target=self._limit, name="ending", daemon=True).start()

    def begin(self, code: int) -> None:
        """The work is over, and only the end remains. The first call counts."""
        if not self._begun.is_set():
            self._code = code
            self._begun.set()

    def finish(self, code: int) -> NoReturn:
        """End the process as the interpreter would: join threads, call exit handlers, flush what was printed."""
        self.begin(code)
        interpreter: Any = (
            threading  # whose `_shutdown` has no public name, nor has the call of the exit handlers
        )
        for last in (interpreter._shutdown, atexit._run_exitfuncs, sys.stdout.flush, sys.stderr.flush):
            try:
                last()
            except BaseException:  # noqa: BLE001 - an author's handler may raise anything, and the rest still runs
                with suppress(Exception):
                    traceback.print_exc()
        leave(code)

    def _limit(self) -> None:
        self._begun.wait()
        # Nothing can be waited for: if all ends in time, so does this thread with the process.
        time.sleep(EXIT_SECONDS)
        try:
            left = [thread.name for thread in threading.enumerate() if not thread.daemon]
            children = _children()
            # If the log is what blocks the process.
            threading.Timer(LAST_WORDS_SECONDS, leave, [self._code]).start()
            structlog.get_logger().warning(
                "process.abandoned",
                seconds=EXIT_SECONDS,
                threads=left,
                children=[child.pid for child in children],
            )
            _stop(children, CHILD_SECONDS)
        finally:
            leave(self._code)


def leave(code: int) -> NoReturn:
    """End this process now, and its followers and children of multiprocessing: these would wait for work for ever."""
    try:
        for pid in list(followers):
            with suppress(ProcessLookupError):  # it has ended meanwhile
                os.kill(pid, signal.SIGKILL)
        if MULTIPROCESSING in sys.modules:
            fork.stop_forking(FORK_SECONDS)
            # A thread that has just forked may not have noted its child yet, and says nothing when it has.
            time.sleep(NOTE_SECONDS)
        for child in _children():
            with suppress(Exception):  # it has ended meanwhile
                child.kill()
    finally:
        os._exit(code)


def _children() -> list[Any]:
    """The living children of multiprocessing; none if no code here has used it."""
    multiprocessing = sys.modules.get(MULTIPROCESSING)
    with suppress(Exception):  # another thread may start or join a child meanwhile
        return multiprocessing.active_children() if multiprocessing else []
    return []


def _stop(children: list[Any], seconds: float) -> None:
    """Ask `children` to end, and wait for that."""
    until = time.monotonic() + seconds
    with suppress(Exception):  # a child may have ended meanwhile
        for child in children:
            child.terminate()
        for child in children:
            child.join(max(0.0, until - time.monotonic()))
