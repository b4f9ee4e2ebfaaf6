"""What a forked child gives up: signals, event loop, descriptors and locks that belong to this process.

An author's code may fork: multiprocessing, ProcessPoolExecutor, os.fork. Without this a SIGTERM for the child is
written to the wake-up descriptor that it shares with us, and stops us instead. A child would also keep our
connections open after our end, and with them our transactions and row locks. What an author opened stays as it is.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Final, NoReturn

from engine.storage import open_connections
from engine.telemetry import instruments, logs

_forking: Final = threading.local()
"""`mask`: the signals that the forking thread had blocked before."""

_gate: Final = threading.Lock()
"""Held while a thread forks."""

_loop: Any = None
_handler: object = None
_sockets: Sequence[socket.socket] = ()
_in_child = False


def protect(loop: asyncio.AbstractEventLoop, sockets: Sequence[socket.socket] = ()) -> None:
    """Make each child forked from now on give up what is ours, and `sockets`. Call it once SIGTERM is heeded."""
    global _loop, _handler, _sockets
    if _loop is None:
        os.register_at_fork(before=_begin, after_in_parent=_end, after_in_child=_become_child)
    _loop, _handler, _sockets = loop, signal.getsignal(signal.SIGTERM), sockets


def end_if_child(error: BaseException | None = None) -> None:
    """End this process if it is a forked child, once it has left the author's code: all that follows is ours."""
    if _in_child:
        _leave(error)


def stop_forking(seconds: float) -> None:
    """Let no thread fork from now on, so that all children can be known. Waits `seconds` for one that forks now."""
    _gate.acquire(timeout=seconds)


def _leave(error: BaseException | None) -> NoReturn:
    code = getattr(error, "code", 1) if error else 0
    os._exit(code if isinstance(code, int) else 1)


def _begin() -> None:
    # Without a bound only at the end of the process, which waits for no thread that forks.
    _gate.acquire()
    # A signal that reached the child before its handlers are reset would be ours.
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def _end() -> None:
    _gate.release()
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _become_child() -> None:
    global _loop, _in_child
    try:
        loop, _loop, _in_child = _loop, None, True
        if loop is not None:  # the child of a child has nothing left to give up
            _give_up_signals()
            asyncio._set_running_loop(None)
            # gRPC closes its own connections in a child.
            _blank(open_connections.descriptors())
            _blank(each.fileno() for each in _sockets)
            if not loop.is_closed():
                loop._ready = _Over()
                _blank(set(_watched(loop)))
            _give_up_locks()
    finally:
        _end()


def _give_up_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if signal.getsignal(number) is _handler:
            usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, usual)


class _Over(deque[Any]):
    """What is ready to run on the event loop of a child: it runs in the parent, and here it would run again."""

    def popleft(self) -> NoReturn:
        os._exit(1)


def _watched(loop: Any) -> Iterable[int]:
    """The descriptors of the event loop: its own, and of all that it watches, as listeners and HTTP connections."""
    yield loop._selector.fileno()
    yield loop._csock.fileno()
    yield from loop._selector.get_map()
    for transport in list(loop._transports.values()):
        # Reading is paused, so the selector does not watch it now. A closed socket has the descriptor -1.
        yield transport.get_extra_info("socket").fileno()


def _blank(descriptors: Iterable[int]) -> None:
    """Put /dev/null in the place of `descriptors`. Closed, their numbers would be used again, and closed again."""
    null = os.open(os.devnull, os.O_RDWR)
    for each in descriptors:
        if each >= 0:
            os.dup2(null, each, inheritable=False)
    os.close(null)


def _give_up_locks() -> None:
    """Free what another thread, which the child does not have, may have held at the moment of the fork."""
    logs.forked()
    instruments.forked()
