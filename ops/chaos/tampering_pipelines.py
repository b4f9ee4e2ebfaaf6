"""Pipelines that tamper with what they share with later attempts, or with the engine, and one that looks for traces."""

from __future__ import annotations

import _thread
import asyncio
import atexit
import contextvars
import ctypes
import decimal
import faulthandler
import gc
import locale
import os
import random
import resource
import signal
import socket
import stat
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NoReturn

from engine import Job, Pipeline, Run
from ops.chaos.isolation_pipelines import TIMEOUT, guilty

LOOK_SECONDS: Final = 0.3
"""How long a look takes. What goes off within it has been left to go off."""
PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4

variable: Final = contextvars.ContextVar("variable", default="unset")
kept: Final[list[Any]] = []


@guilty("exit-well")
def exits_well(_job: Job, _run: Run) -> None:
    os._exit(0)


@guilty("descriptors")
def closes_descriptors(_job: Job, _run: Run) -> None:
    os.closerange(3, 256)


@guilty("output")
def closes_output(_job: Job, _run: Run) -> None:
    os.close(1)
    os.close(2)


@guilty("leak")
def leaks_descriptors(_job: Job, _run: Run) -> None:
    with suppress(OSError):  # the limit
        while True:
            kept.append(os.dup(0))


@guilty("scribble")
def writes_to_the_worker(_job: Job, _run: Run) -> None:
    for number in range(3, 100):
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                os.write(number, b"\0\0\0\5hello")
    # Longer than the worker needs to see it.
    time.sleep(60)


@guilty("daemon")
def leaves_a_daemon(_job: Job, _run: Run) -> None:
    if (child := os.fork()) == 0:
        os.setsid()
        if os.fork() == 0:
            # Longer than anything waits for it.
            time.sleep(600)
        os._exit(0)
    os.waitpid(child, 0)


@guilty("parent")
def signals_its_parent(_job: Job, _run: Run) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGALRM):
        os.kill(os.getppid(), number)


@guilty("group")
def signals_its_group(_job: Job, _run: Run) -> None:
    os.kill(0, signal.SIGTERM)


@guilty("folder")
def deletes_its_folder(_job: Job, _run: Run) -> None:
    folder = tempfile.mkdtemp()
    os.chdir(folder)
    Path(folder).rmdir()


class Endless:
    def __getattr__(self, name: str) -> Any:
        return getattr(self, name + "x")


@guilty("stack")
def overflows_the_stack(_job: Job, _run: Run) -> None:
    # Python 3.12 and later bound the recursion of C code themselves, to what fits into the usual stack.
    resource.setrlimit(resource.RLIMIT_STACK, (128 << 10, resource.getrlimit(resource.RLIMIT_STACK)[1]))
    sys.setrecursionlimit(1 << 30)
    _ = Endless().x


@guilty("interpreter")
def turns_switches(_job: Job, _run: Run) -> None:
    gc.disable()
    gc.set_threshold(1)
    sys.setrecursionlimit(100)
    sys.setswitchinterval(1.0)
    warnings.simplefilter("error")
    sys.settrace(lambda *_: None)
    sys.excepthook = threading.excepthook = sys.unraisablehook = _raise
    sys.stdout = sys.stderr = None


@guilty("environment")
def changes_the_environment(_job: Job, _run: Run) -> None:
    os.environ["TZ"], os.environ["TAMPERED"] = "Asia/Tokyo", "1"
    del os.environ["PATH"]
    time.tzset()
    locale.setlocale(locale.LC_ALL, "C.UTF-8")


@guilty("context")
def changes_the_context(_job: Job, _run: Run) -> None:
    decimal.getcontext().prec = 2
    variable.set("set")


@guilty("kernel")
def changes_the_process(_job: Job, _run: Run) -> None:
    os.nice(19)
    os.umask(0o777)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30))
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


@guilty("timers")
def sets_timers(_job: Job, _run: Run) -> None:
    signal.signal(signal.SIGPROF, lambda *_: None)
    signal.setitimer(signal.ITIMER_PROF, 0.01, 0.01)
    signal.setitimer(signal.ITIMER_REAL, LOOK_SECONDS / 2)


@guilty("watchdog")
def arms_a_watchdog(_job: Job, _run: Run) -> None:
    kept.append(sink := tempfile.TemporaryFile())  # noqa: SIM115 - for as long as the watchdog lives
    faulthandler.dump_traceback_later(LOOK_SECONDS / 2, exit=True, file=sink)


@guilty("user")
def drops_its_rights(_job: Job, _run: Run) -> None:
    with suppress(PermissionError):  # it has none
        os.setuid(65534)


@guilty("patches")
def replaces_functions(_job: Job, _run: Run) -> None:
    time.sleep = socket.socket = _raise  # type: ignore[assignment, misc]


@guilty("random")
def fixes_the_seed(_job: Job, _run: Run) -> None:
    random.seed(0)


@guilty("modules")
def forgets_modules(_job: Job, _run: Run) -> None:
    sys.modules.clear()


@guilty("loop")
def closes_the_loop(_job: Job, _run: Run) -> None:
    asyncio.get_event_loop().close()


@guilty("bare-thread")
def leaves_a_bare_thread(_job: Job, _run: Run) -> None:
    _thread.start_new_thread(time.sleep, (600,))
    # Until it runs: before that nothing counts it.
    time.sleep(0.05)


@guilty("at-exit")
def hangs_at_exit(_job: Job, _run: Run) -> None:
    atexit.register(time.sleep, 600)


@guilty("core")
def dumps_core(_job: Job, _run: Run) -> None:
    os.chdir(tempfile.gettempdir())
    resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    os.abort()


@guilty("stopped", timeout=TIMEOUT)
def stops_itself(_job: Job, _run: Run) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


@guilty("blocked", timeout=TIMEOUT)
def blocks_all_signals(_job: Job, _run: Run) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    while True:
        pass


@guilty("undying", timeout=TIMEOUT)
def outlives_its_parent(_job: Job, run: Run) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, 0)
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0)
    run.step("tampered")
    while True:
        with suppress(BaseException):  # as some authors' code does
            # Longer than the attempt may take.
            time.sleep(60)


def _raise(*_: object) -> NoReturn:
    raise RuntimeError("tampered")


_STATE: Final[dict[str, Callable[[], Any]]] = {
    "folder": os.getcwd,
    "user": os.geteuid,
    "priority": lambda: os.getpriority(os.PRIO_PROCESS, 0),
    "processors": lambda: os.sched_getaffinity(0),
    "limits": lambda: [resource.getrlimit(number) for number in range(10)],
    "umask": lambda: _umask(),
    "mask": lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ()),
    "handlers": lambda: [
        signal.getsignal(number) for number in sorted(signal.valid_signals() - {signal.SIGTERM})
    ],
    "timers": lambda: [signal.getitimer(which) for which in range(3)],
    "threads": lambda: len([*Path("/proc/self/task").iterdir()]),
    "outputs": lambda: [os.fstat(number).st_ino for number in (1, 2)],
    "environment": lambda: dict(os.environ),
    "time zone": lambda: time.localtime(0).tm_hour,
    "locale": lambda: locale.setlocale(locale.LC_ALL),
    "interpreter": lambda: (
        gc.isenabled(),
        gc.get_threshold(),
        sys.getrecursionlimit(),
        sys.getswitchinterval(),
        [*warnings.filters],
        sys.gettrace(),
        (sys.excepthook, threading.excepthook, sys.unraisablehook),
    ),
    "functions": lambda: (time.sleep, socket.socket),
    "context": lambda: (decimal.getcontext().prec, variable.get()),
}


def _umask() -> int:
    os.umask(umask := os.umask(0o077))
    return umask


_before: Final = {name: look() for name, look in _STATE.items()}


@guilty("look")
def looks(_job: Job, _run: Run) -> list[str]:
    """What is not as it was when this module was imported, by name."""
    # For what was left to go off.
    time.sleep(LOOK_SECONDS)
    return [name for name, look in _STATE.items() if look() != _before[name]]


@guilty("look-async")
async def looks_from_the_loop(_job: Job, _run: Run) -> str:
    await asyncio.sleep(0)
    return variable.get()


pipelines = [each for each in list(globals().values()) if isinstance(each, Pipeline)]
