"""What the attempts of a child share beside their modules: signals, limits, environment, the interpreter's switches.

Each attempt finds them as they were before the first one. What is an author's own stays as it is: the globals and
caches of modules, what was imported, the state of `random`. If an attempt was the first to import a module, so do those
settings that modules make at their import: they make them once, and rely on them later.
"""

from __future__ import annotations

import builtins
import datetime as dt
import faulthandler
import gc
import locale
import os
import resource
import signal
import socket
import sys
import threading
import time
import warnings

# Those of `signal` turn each answer into an enum, which takes longer than all that is looked at here. Typeshed does not
# know their module, nor what `os.environ` holds.
from _locale import setlocale
from _signal import getsignal, pthread_sigmask, setitimer  # type: ignore[import-not-found]
from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Any, Final

SIGNALS: Final = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGPIPE,
    signal.SIGALRM,
    signal.SIGVTALRM,
    signal.SIGPROF,
    signal.SIGTERM,
    signal.SIGCHLD,
)
"""Those that programs handle. A look at each of the 64 would cost more than the attempt."""
LIMITS: Final = (
    resource.RLIMIT_AS,
    resource.RLIMIT_CORE,
    resource.RLIMIT_CPU,
    resource.RLIMIT_DATA,
    resource.RLIMIT_FSIZE,
    resource.RLIMIT_NOFILE,
)


class Surroundings:
    """Remembers how the process was when it was made, before any attempt."""

    def __init__(self) -> None:
        self._folder = os.open(".", os.O_PATH | os.O_CLOEXEC)
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._before = [*map(copy, _look())]
        self._modules = len(sys.modules)

    def put_back(self) -> None:
        """Raises what says why it cannot: OSError, ValueError, or any error of an author's object that is there now."""
        os.fchdir(self._folder)
        os.umask(self._umask)
        setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        now = _look()
        imported = len(sys.modules) > self._modules
        if now != self._before:
            for place, (put, before, after) in enumerate(zip(PUT, self._before, now, strict=True)):
                if before == after:
                    continue
                if imported and place in BY_MODULES:
                    self._before[place] = copy(after)
                else:
                    put(before)
        self._modules = len(sys.modules)


def _look() -> list[Any]:
    """All that is compared, by one function: an attempt waits for it, and calls that find no caches warm are dear."""
    return [
        [*map(getsignal, SIGNALS)],
        pthread_sigmask(signal.SIG_BLOCK, ()),
        [*map(resource.getrlimit, LIMITS)],
        os.getpriority(os.PRIO_PROCESS, 0),
        os.sched_getaffinity(0),
        os.geteuid(),
        # What it holds, as to read each variable costs thirty times as much.
        os.environ._data,  # type: ignore[attr-defined]
        time.tzname,
        setlocale(locale.LC_ALL),
        sys.getrecursionlimit(),
        sys.getswitchinterval(),
        (gc.isenabled(), gc.get_threshold()),
        (sys.gettrace(), sys.getprofile()),
        (sys.excepthook, sys.unraisablehook, threading.excepthook),
        (sys.stdout, sys.stderr),
        warnings.filters,
        # Whether what is pickled is still found.
        __name__ in sys.modules,
        # Those that libraries replace when they take time or the network for their own.
        (
            builtins.open,
            builtins.print,
            dt.date,
            dt.datetime,
            socket.socket,
            time.monotonic,
            time.sleep,
            time.time,
        ),
    ]


def _put_handlers(handlers: list[Any]) -> None:
    # They would go off without the handlers that they were meant for, and end the process.
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.setitimer(signal.ITIMER_PROF, 0)
    for number, handler in zip(SIGNALS, handlers, strict=True):
        if handler is not None and getsignal(number) is not handler:
            signal.signal(number, handler)


def _put_limits(limits: list[tuple[int, int]]) -> None:
    for each, limit in zip(LIMITS, limits, strict=True):
        resource.setrlimit(each, limit)


def _put_environment(environ: dict[bytes, bytes]) -> None:
    for name in [name for name in os.environb if name not in environ]:
        del os.environb[name]
    os.environb.update(environ)


def _put_zone(_names: tuple[str, str]) -> None:
    time.tzset()


def _put_locale(name: str) -> None:
    setlocale(locale.LC_ALL, name)


def _put_collector(collector: tuple[bool, tuple[int, int, int]]) -> None:
    enabled, threshold = collector
    (gc.enable if enabled else gc.disable)()
    gc.set_threshold(*threshold)


def _put_tracing(functions: tuple[Any, Any]) -> None:
    trace, profile = functions
    sys.settrace(trace)
    sys.setprofile(profile)


def _put_hooks(hooks: tuple[Any, ...]) -> None:
    sys.excepthook, sys.unraisablehook, threading.excepthook = hooks


def _put_streams(streams: tuple[Any, ...]) -> None:
    sys.stdout, sys.stderr = streams


def _put_filters(filters: Any) -> None:
    warnings.resetwarnings()
    warnings.filters.extend(filters)  # type: ignore[attr-defined]  # typeshed shows it as a sequence


def _stays(name: str, _before: Any) -> None:
    raise OSError(f"{name} is another")


def _stays_own(_functions: tuple[Any, ...]) -> None:
    _stays("a function that libraries rely on", None)


PUT: Final[tuple[Callable[[Any], object], ...]] = (
    _put_handlers,
    partial(pthread_sigmask, signal.SIG_SETMASK),
    _put_limits,
    partial(os.setpriority, os.PRIO_PROCESS, 0),
    partial(os.sched_setaffinity, 0),
    partial(_stays, "the user"),
    _put_environment,
    _put_zone,
    _put_locale,
    sys.setrecursionlimit,
    sys.setswitchinterval,
    _put_collector,
    _put_tracing,
    _put_hooks,
    _put_streams,
    _put_filters,
    partial(_stays, "sys.modules"),
    _stays_own,
)
"""Make what `_look` sees what it was before, in the same order: the time zone follows from the environment."""
BY_MODULES: Final = frozenset(
    place
    for place, put in enumerate(PUT)
    if put
    in (_put_environment, _put_zone, _put_locale, sys.setrecursionlimit, _put_hooks, _put_filters, _stays_own)
)
"""The places of what modules set at their import: NumPy filters warnings, Django sets the time zone."""
