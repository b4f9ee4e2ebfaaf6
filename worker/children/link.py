"""The child's end of the socket to its worker."""

from __future__ import annotations

import socket
import threading
from collections import deque
from typing import Any, Final

from worker.children.frames import Decoder, Line, encoded

RECEIVE_BYTES: Final = 1 << 16


class Link:
    """Sends frames whole and in order, whichever thread, signal handler or destructor sends them.

    A signal's exception in the middle of a frame would break all that follows. `interrupt` asks before it raises one.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._decoder = Decoder()
        self._received: deque[Any] = deque()
        self._unsent: deque[bytes] = deque()
        self._sending = threading.Lock()
        self._sender: int | None = None
        self._interrupt: BaseException | None = None

    def receive(self) -> Any:
        """The next message; None at the end of the worker, or of its interest in this child."""
        while not self._received:
            if not (data := self.socket.recv(RECEIVE_BYTES)):
                return None
            self._received.extend(self._decoder.feed(data))
        return self._received.popleft()

    def send(self, message: Any) -> None:
        """Raises OSError if the worker has gone, and what `pickle` raises of an author's objects."""
        self._unsent.append(encoded(message))
        if self._sender == threading.get_ident():
            # By a signal handler or a destructor, in the middle of a frame. This one follows.
            return
        with self._sending:
            self._sender = threading.get_ident()
            try:
                while self._unsent:
                    self.socket.sendall(self._unsent.popleft())
            except BaseException:
                # Half a frame: nothing that follows could be read.
                self.socket.close()
                raise
            finally:
                self._sender = None
        if self._interrupt is not None and threading.current_thread() is threading.main_thread():
            interrupt, self._interrupt = self._interrupt, None
            raise interrupt

    def interrupt(self, error: BaseException) -> None:
        """Raise `error` in the main thread, whose signal handler calls this: now, or after the frame that it sends."""
        if self._sender == threading.get_ident():
            self._interrupt = error
        else:
            raise error


class Lines:
    """Takes the finished lines of the log, and gives them to the worker, whose log they are."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def write(self, lines: bytes) -> int:
        self._link.send(Line(lines))
        return len(lines)

    def flush(self) -> None: ...
