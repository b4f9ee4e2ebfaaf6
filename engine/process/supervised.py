"""The side of a supervised process: a socket to its supervisor, on standard input.

The process tells its admin port there. The end of the socket means that the supervisor has ended: the process drains,
as at a SIGTERM, and if it drains already, it ends at once, as at a second one.
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from typing import Final

FLAG: Final = "--supervised"
"""The argument that says that standard input is such a socket."""

_link: int | None = None


def follow(arguments: list[str]) -> bool:
    """Follow the supervisor, if the arguments of this process name one. Returns whether they do. Call it first."""
    global _link
    if FLAG not in arguments:
        return False
    # Not inherited by what an author's code starts, which reads nothing instead.
    _link = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    threading.Thread(target=_end_with_supervisor, args=[_link], name="supervised", daemon=True).start()
    return True


def tell(port: int) -> None:
    """Tell the supervisor, if there is one, the port of the admin server: all has started."""
    if _link is not None:
        with suppress(OSError):  # it has ended, and the thread finds out, too
            os.write(_link, b"%d\n" % port)


def _end_with_supervisor(link: int) -> None:
    with suppress(OSError):  # a reset is an end, too
        while os.read(link, 1):
            pass
    os.kill(os.getpid(), signal.SIGTERM)
