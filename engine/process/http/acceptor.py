"""Accepts connections, a few in each turn of the loop. Without descriptors it pauses, and says so now and then.

asyncio's own servers try again for each place of the backlog, and log a traceback for each.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Final

import structlog

BACKLOG: Final = 4096
"""The kernel drops what does not fit, and its client tries again a second later."""
AT_ONCE: Final = 64
"""Connections accepted before the loop does other work."""
AT_ONCE_SHARED: Final = 1
"""The same for sockets that several processes accept from: the one that is free leaves the next to the others."""
PAUSE_SECONDS: Final = 0.5
MADE_ROOM_SECONDS: Final = 0.02
LOG_SECONDS: Final = 5.0
EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
UNAVAILABLE: Final = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})
"""A name as `localhost` has addresses of families that this machine may lack."""

log = structlog.get_logger()


async def bind(host: str | None, port: int) -> list[socket.socket]:
    """A listening socket for each address of `host`, all interfaces for None. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    bound: list[socket.socket] = []
    lacking: OSError | None = None
    try:
        for family, address in dict.fromkeys((each[0], each[4]) for each in found):
            try:
                each = socket.create_server(address, family=family, backlog=BACKLOG)
            except OSError as error:
                if error.errno not in UNAVAILABLE:
                    raise
                lacking = error
            else:
                each.setblocking(False)
                bound.append(each)
        if not bound and lacking is not None:
            raise lacking
    except OSError:
        for each in bound:
            each.close()
        raise
    return bound


class Acceptor:
    """Accepts connections to `sockets` until closed.

    `arrived` gets each with its client's address. `make_room` closes one that can be missed, if there is one. From
    `shared` sockets other processes accept, too.
    """

    def __init__(
        self,
        sockets: list[socket.socket],
        arrived: Callable[[socket.socket, object], None],
        make_room: Callable[[], bool],
        *,
        shared: bool = False,
    ) -> None:
        self.sockets = sockets
        self._at_once = AT_ONCE_SHARED if shared else AT_ONCE
        self._arrived = arrived
        self._make_room = make_room
        self._loop = asyncio.get_running_loop()
        self._log_from = 0.0
        self._closed = False
        for each in sockets:
            self._resume(each)

    def close(self) -> None:
        """Accept no more."""
        self._closed = True
        for each in self.sockets:
            self._loop.remove_reader(each)
            each.close()
        self.sockets = []

    def _resume(self, listener: socket.socket) -> None:
        if not self._closed:
            self._loop.add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(self._at_once):
            try:
                accepted, peer = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in EXHAUSTED:
                    self._pause(listener, error)
                    return
                # One connection's own fault: it has been reset, or its network is down (accept(2)).
                continue
            accepted.setblocking(False)
            self._arrived(accepted, peer)

    def _pause(self, listener: socket.socket, error: OSError) -> None:
        """Stop accepting for a moment: the listener would be ready all the time."""
        self._loop.remove_reader(listener)
        pause = MADE_ROOM_SECONDS if self._make_room() else PAUSE_SECONDS
        self._loop.call_later(pause, self._resume, listener)
        now = self._loop.time()
        if now >= self._log_from:
            self._log_from = now + LOG_SECONDS
            log.warning("connections.not_accepted", error=error.strerror or str(error))
