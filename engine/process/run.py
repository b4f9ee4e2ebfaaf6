"""The start and the end of each process: settings, logs, signals, exit code."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, NoReturn, TypeVar

import structlog

from engine.errors import ConfigurationError, OutriderError
from engine.process import descriptors, fork, init
from engine.process.ending import LAST_WORDS_SECONDS, Ending, leave
from engine.process.loop_watch import LoopWatch
from engine.settings import Settings, load
from engine.telemetry import logs, tracing

Main = Callable[[Settings, asyncio.Event], Awaitable[int]]

DONE, FAILED, USAGE, UNHEALTHY = 0, 1, 2, 3
"""Exit codes of every command."""

T = TypeVar("T")


def run(role: str, main: Main, settings: Settings | None = None) -> NoReturn:
    """Run `main(settings, stop)` to its end, and end this process with its exit code.

    The first SIGTERM or SIGINT sets `stop`; a second one ends the process at once. A terminal that closes sets `stop`
    too, by SIGHUP, which never ends the process at once. What `main` leaves behind, as threads, children and exit
    handlers, ends within EXIT_SECONDS.
    """
    init.leave_process_1()
    ending = Ending()
    try:
        settings = settings or load()
        logs.configure(settings, role)
        descriptors.raise_limit()
        with tracing.exporting(role):
            code = asyncio.run(_ended(role, main, settings, ending))
    except BaseException as error:  # noqa: BLE001 - whatever it is, this process ends
        fork.end_if_child(error)
        code = _report(role, error)
    ending.finish(code)


def process_name() -> str:
    """The name of this process in the fleet, as in the rows of workers and relays."""
    return f"{socket.gethostname()}:{os.getpid()}"


def calm_the_collector(*, fully: bool = False) -> None:
    """Spare the search for cyclic garbage what exists now, such as modules. Call it once all is loaded.

    That is worth a fifth of a worker's time. `fully` also makes the search rare, and is only for processes that run
    no jobs: our own code leaves no cycles. An author's code may, and if each job left a megabyte in a cycle, a rare
    search would keep gigabytes. The thresholds that authors expect cost a no-op job less than can be measured.
    """
    gc.freeze()
    if fully:
        gc.set_threshold(50_000, 20, 20)


def _report(role: str, error: BaseException) -> int:
    """Say why the process ends, and return its exit code."""
    match error:
        case ConfigurationError(problems=problems):
            code = USAGE
        case OutriderError():
            problems, code = (str(error),), FAILED
        case SystemExit(code=int(code)):
            return code
        case _:
            traceback.print_exception(error)
            return FAILED
    for problem in problems:
        print(f"outrider {role}: {problem}", file=sys.stderr)
    return code


async def _ended(role: str, main: Main, settings: Settings, ending: Ending) -> int:
    """The exit code of `main`. asyncio.run then waits without limit for stubborn tasks and for threads."""
    try:
        code = await _signalled(main, settings)
    except BaseException as error:  # noqa: BLE001 - whatever it is, this process ends
        fork.end_if_child(error)
        code = _report(role, error)
    ending.begin(code)
    return code


async def _signalled(main: Main, settings: Settings) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    asked: list[int] = []

    def begin(name: str) -> None:
        structlog.get_logger().info("process.stopping", signal=name)
        stop.set()

    def heed(number: int) -> None:
        if not asked:
            asked.append(number)
            with suppress(RuntimeError):  # the loop has closed, so the process ends already
                loop.call_soon_threadsafe(begin, signal.Signals(number).name)
        elif (
            number != signal.SIGHUP
        ):  # a shell repeats the terminal's SIGHUP: a second one does not mean "at once"
            _abort(signal.Signals(number))

    fork.protect(loop, _heed_signals(heed))
    watch = LoopWatch()
    try:
        return await main(settings, stop)
    finally:
        watch.stop()


def _heed_signals(heed: Callable[[int], None]) -> tuple[socket.socket, socket.socket]:
    """Call `heed` in a thread of its own for each signal that asks the process to stop. Returns the sockets of that.

    A handler runs in the main thread, on the event loop or between two steps of Python. An author's code may block
    both, and a second signal must end that, too.
    """
    numbers = [signal.SIGTERM, signal.SIGINT]
    # Under nohup the process outlives its terminal.
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def read() -> None:
        while came := reader.recv(1):
            if came[0] in numbers:
                heed(came[0])

    threading.Thread(target=read, name="signals", daemon=True).start()
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    for number in numbers:
        signal.signal(number, _heeded)
    return reader, writer


def _heeded(_number: int, _frame: object) -> None:
    """A signal needs a handler to be written to the wake-up descriptor."""


def _abort(number: signal.Signals) -> None:
    """End this process now, even if nobody reads the log."""
    threading.Timer(LAST_WORDS_SECONDS, leave, [128 + number]).start()
    structlog.get_logger().warning("process.aborted", signal=number.name)
    leave(128 + number)


async def pause(stop: asyncio.Event, seconds: float) -> None:
    """Sleep for `seconds`, or until `stop` is set."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        # `stop` was not set: the pause is over.
        pass


async def unless(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`. If `stop` comes first, `work` is cancelled and the result is None."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        stopping.cancel()
