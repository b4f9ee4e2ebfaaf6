"""The side of a process that ends with the one that started it: standard input, which that one holds, has an end.

A supervised process has a socket to its supervisor there, and tells its admin port. When the supervisor has ended, it
drains, as at a SIGTERM, and if it drains already, it ends at once, as at a second one. Nobody is left to kill it if it
does not end, so it does that itself. A tied process ends at once: what it works with ends, too.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

from engine.process.prctl import die_with_parent

SUPERVISED: Final = "--supervised="
"""The argument that says that standard input is a supervisor's socket, and how many seconds a stop may take."""
TIED: Final = "--tied"

_link: int | None = None
_tied = False


def follow(arguments: Sequence[str]) -> bool:
    """Follow the supervisor, if the arguments of this process name one. Returns whether they do. Call it first."""
    global _link
    seconds = [float(each.removeprefix(SUPERVISED)) for each in arguments if each.startswith(SUPERVISED)]
    if not seconds:
        return False
    # Not inherited by what an author's code starts, which reads nothing instead.
    _link = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    if TIED in arguments:
        die_with_parent()
    _at_the_end_of(_link, _leave if TIED in arguments else partial(_stop, *seconds))
    return True


def tie() -> None:
    """Let this process, and all that it supervises, end when its parent ends for any reason."""
    global _tied
    _tied = True
    # Certain, but only on Linux, and not for a parent that has died before. The end of standard input covers both.
    die_with_parent()
    _at_the_end_of(0, _leave)


def arguments(stop_seconds: float) -> Sequence[str]:
    """The arguments of a process that this one supervises. Its stop may take `stop_seconds`."""
    supervised = f"{SUPERVISED}{stop_seconds}"
    return (supervised, TIED) if _tied else (supervised,)


def tell(port: int) -> None:
    """Tell the supervisor, if there is one, the port of the admin server: all has started."""
    if _link is not None:
        with suppress(OSError):  # it has ended, and the thread finds out, too
            os.write(_link, b"%d\n" % port)


def _at_the_end_of(descriptor: int, act: Callable[[], None]) -> None:
    def wait() -> None:
        with suppress(OSError):  # a reset is an end, too
            while os.read(descriptor, 1):
                pass
        act()

    threading.Thread(target=wait, name="supervised", daemon=True).start()


def _leave() -> None:
    os._exit(1)


def _stop(seconds: float) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    # What blocks the event loop keeps it from the stop. If it ends in time, so does this thread with it.
    time.sleep(seconds)
    _leave()
