"""The side of a process that ends with the one that started it: standard input, which that one holds, has an end.

A supervised process has a socket to its supervisor there, and tells its admin port. When the supervisor has ended, it
drains, as at a SIGTERM, and if it drains already, it ends at once, as at a second one. Nobody is left to kill it if it
does not end, so it does that itself. A tied process ends at once: what it works with ends, too.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from engine.process.prctl import die_with_parent

SUPERVISED: Final = "--supervised="
"""The argument that says that standard input is a supervisor's socket, and how many seconds a stop may take."""
TIED: Final = "--tied"
LISTENERS: Final = "--listeners="
"""The argument with the descriptors of the listening sockets that the process inherits, separated by commas."""

listeners: Final[list[socket.socket]] = []
"""The listening sockets that this process has inherited. Other processes accept connections from them, too."""

_link: int | None = None
_tied = False


def follow(arguments: Sequence[str]) -> None:
    """Follow the supervisor, if the arguments of this process name one. Call it first."""
    global _link, _tied
    seconds = [float(each) for each in _values(arguments, SUPERVISED)]
    if not seconds:
        return
    # As for every command: authors' modules are in the current directory, and replace none of ours.
    sys.path.append(str(Path.cwd()))
    listeners.extend(_inherited(int(each)) for each in _values(arguments, LISTENERS))
    # Not inherited by what an author's code starts, which reads nothing instead.
    _link = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    _tied = TIED in arguments
    if _tied:
        die_with_parent()
    _at_the_end_of(_link, _leave if _tied else partial(_stop, *seconds))


def tie() -> None:
    """Let this process, and all that it supervises, end when its parent ends for any reason."""
    global _tied
    _tied = True
    # Certain, but only on Linux, and not for a parent that has died before. The end of standard input covers both.
    die_with_parent()
    _at_the_end_of(0, _leave)


def arguments(stop_seconds: float, inherited: Collection[int] = (), *, tied: bool = False) -> Sequence[str]:
    """The arguments of a process that this one supervises. Its stop may take `stop_seconds`.

    It gets the listening sockets with the descriptors `inherited`. If this process is tied, so is that one.
    """
    sockets = [f"{LISTENERS}{','.join(map(str, inherited))}"] if inherited else []
    return [f"{SUPERVISED}{stop_seconds}", *sockets, *([TIED] if tied or _tied else [])]


def tell(port: int) -> None:
    """Tell the supervisor, if there is one, the port of the admin server: all has started."""
    if _link is not None:
        with suppress(OSError):  # it has ended, and the thread finds out, too
            os.write(_link, b"%d\n" % port)


def _values(arguments: Sequence[str], name: str) -> list[str]:
    found = [each.removeprefix(name) for each in arguments if each.startswith(name)]
    return [value for each in found for value in each.split(",")]


def _inherited(descriptor: int) -> socket.socket:
    """The socket, which what an author's code starts does not inherit any more."""
    os.set_inheritable(descriptor, False)
    return socket.socket(fileno=descriptor)


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
