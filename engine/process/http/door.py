"""Admits connections to a server. A visitor that says nothing costs a descriptor and a timer, no parser and no task."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Final, Literal, Protocol

from engine.process.http import refusals
from engine.process.http.admission import Full, Limits, OpenConnections, address_of
from engine.telemetry.metrics import CONNECTIONS_CLOSED, HTTP_CONNECTIONS

LINGER_SECONDS: Final = 2.0
"""For how long what comes after the last answer is discarded: closed over unread bytes, a connection is reset, and its
client may lose the answer."""
UNSENT_MILLISECONDS: Final = 60_000
"""How long a client may leave unread what it was sent, before the kernel drops the connection."""
FIRST_WORDS_SECONDS: Final = 0.5
"""How long after its arrival a stop waits for what a connection says first: nobody else can answer it."""
LOOK_SECONDS: Final = 0.01
MAX_LEAVING: Final = 64
"""Refused connections that may linger at once."""
PIECE_BYTES: Final = 64 * 1024
REASONS: Final = ("refused", "replaced", "late")

Server = Literal["api", "admin"]
Reason = Literal["refused", "replaced", "late"]


class Connected(Protocol):
    """The protocol of a visitor that has spoken."""

    @property
    def has_asked(self) -> bool:
        """Whether a request of its is being answered, or was."""

    def replace(self) -> None: ...


class Door:
    """The open connections of one server. `connect` makes the protocol of a visitor that speaks."""

    def __init__(
        self,
        server: Server,
        limits: Limits,
        refusal: refusals.Refusal,
        connect: Callable[[Visitor], Any],
    ) -> None:
        self.limits = limits
        self.refusal = refusal
        self.connect = connect
        self.open: OpenConnections[Visitor] = OpenConnections(limits)
        self._server = server
        self._leaving: set[_Leaving] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        for reason in REASONS:
            CONNECTIONS_CLOSED.labels(server, reason)
        self._show()

    def arrived(self, sock: socket.socket, peer: object) -> None:
        """Admit an accepted connection, or answer it 503."""
        visitor = Visitor(self, sock)
        try:
            replaced = self.open.admit(visitor, address_of(peer))
        except Full:
            self._turn_away(sock)
            return
        if replaced is not None:
            self._replace(replaced)
        self._show()
        visitor.listen()

    def make_room(self) -> bool:
        """Close the connection that can be missed most. False if there is none."""
        replaced = self.open.longest_waiting()
        if replaced is None:
            return False
        self.left(replaced)
        self._replace(replaced)
        return True

    def left(self, visitor: Visitor) -> None:
        """Count `visitor` no longer."""
        self.open.remove(visitor)
        self._show()

    def closed(self, reason: Reason) -> None:
        CONNECTIONS_CLOSED.labels(self._server, reason).inc()

    def start(self, visitor: Visitor) -> None:
        """Give a visitor that speaks its protocol."""
        task = asyncio.get_running_loop().create_task(self._start(visitor))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def hear_out(self) -> None:
        """Wait for the first words of those who have just come, at most FIRST_WORDS_SECONDS."""
        loop = asyncio.get_running_loop()
        until = loop.time() + FIRST_WORDS_SECONDS
        while loop.time() < until and any(each.just_came for each in self.open.everyone()):  # noqa: ASYNC110
            # An event would have to be kept for each request, and set for this one moment.
            await asyncio.sleep(LOOK_SECONDS)

    def close(self) -> None:
        """Close what has never spoken. The server closes the connections that have."""
        for visitor in self.open.everyone():
            if visitor.listens:
                self.left(visitor)
                visitor.close()
        for leaving in list(self._leaving):
            leaving.close()

    async def _start(self, visitor: Visitor) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: self.connect(visitor), visitor.sock
            )
        except OSError:
            # The client has gone already.
            self.left(visitor)
            visitor.sock.close()

    def _replace(self, visitor: Visitor) -> None:
        self.closed("replaced")
        visitor.close()

    def _turn_away(self, sock: socket.socket) -> None:
        self.closed("refused")
        if len(self._leaving) < MAX_LEAVING:
            farewell = refusals.raw(self.refusal(*refusals.NO_ROOM))
            self._leaving.add(_Leaving(sock, farewell, self._leaving.discard))
        else:
            sock.close()

    def _show(self) -> None:
        HTTP_CONNECTIONS.labels(self._server).set(len(self.open))


class Visitor:
    """A connection since it was accepted; `connection` is its protocol, once it has spoken."""

    __slots__ = ("_arrived", "_door", "_timer", "connection", "sock")

    def __init__(self, door: Door, sock: socket.socket) -> None:
        self._arrived = asyncio.get_running_loop().time()
        self._door = door
        self.sock = sock
        self.connection: Connected | None = None
        self._timer: asyncio.TimerHandle | None = None

    def listen(self) -> None:
        """Wait for the first byte."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._door.limits.head_seconds, self._late)
        loop.add_reader(self.sock, self._speaks)

    @property
    def listens(self) -> bool:
        """Whether it has not spoken yet."""
        return self._timer is not None and not self._timer.cancelled()

    @property
    def just_came(self) -> bool:
        """Whether its first request may be on its way still."""
        spoken = self.connection is not None and self.connection.has_asked
        return not spoken and asyncio.get_running_loop().time() < self._arrived + FIRST_WORDS_SECONDS

    @property
    def head_due(self) -> float:
        """The loop's time by which the first head must be whole."""
        return self._timer.when() if self._timer is not None else 0.0

    def close(self) -> None:
        """Close the connection for another one's sake."""
        if self.connection is None:
            self._stop_listening()
            self.sock.close()
        else:
            self.connection.replace()

    def _speaks(self) -> None:
        try:
            if self.sock.recv(1, socket.MSG_PEEK):
                self._stop_listening()
                # Until its protocol has read, it makes room for nobody.
                self._door.open.busy(self)
                _bound_unsent(self.sock)
                self._door.start(self)
                return
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            # A reset ends the visit as a close does.
            pass
        self._leave()

    def _late(self) -> None:
        self._door.closed("late")
        self._leave()

    def _leave(self) -> None:
        self._door.left(self)
        self._stop_listening()
        self.sock.close()

    def _stop_listening(self) -> None:
        asyncio.get_running_loop().remove_reader(self.sock)
        if self._timer is not None:
            self._timer.cancel()


class _Leaving:
    """A refused connection that stays until its client has read the answer, but not for long."""

    def __init__(self, sock: socket.socket, farewell: bytes, gone: Callable[[_Leaving], None]) -> None:
        self._sock = sock
        self._gone = gone
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(LINGER_SECONDS, self.close)
        self._loop.add_reader(sock, self._discard)
        try:
            sock.send(farewell)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            # The client has gone already, which the reader notices.
            pass

    def close(self) -> None:
        self._timer.cancel()
        self._loop.remove_reader(self._sock)
        self._sock.close()
        self._gone(self)

    def _discard(self) -> None:
        try:
            if self._sock.recv(PIECE_BYTES):
                return
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            # A reset, too, ends it.
            pass
        self.close()


def _bound_unsent(sock: socket.socket) -> None:
    """Bound how long the kernel keeps what the client does not read, where it can (Linux)."""
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if option is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, option, UNSENT_MILLISECONDS)
