"""The start and the end of each process: settings, logs, signals, exit code."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable

import structlog

from engine.errors import ConfigurationError, DatabaseUnavailable, SchemaMismatch
from engine.settings import Settings, load
from engine.telemetry import logs, tracing

Main = Callable[[Settings, asyncio.Event], Awaitable[int]]

DONE, FAILED, USAGE, UNHEALTHY = 0, 1, 2, 3
"""Exit codes of every command."""

EXIT_SECONDS = 5.0
"""How long the tasks and threads that `main` did not end may take to end."""


def run(role: str, main: Main, settings: Settings | None = None) -> int:
    """Run `main(settings, stop)` to its end and return the exit code.

    The first SIGTERM or SIGINT sets `stop`; a second one ends the process at once.
    """
    left = threading.Event()
    try:
        settings = settings or load()
        logs.configure(settings, role)
        with tracing.exporting(role):
            _calm_the_collector()
            return asyncio.run(_bounded(main, settings, left))
    except ConfigurationError as error:
        for problem in error.problems:
            print(f"outrider {role}: {problem}", file=sys.stderr)
        return USAGE
    except (DatabaseUnavailable, SchemaMismatch) as error:
        print(f"outrider {role}: {error}", file=sys.stderr)
        return FAILED
    finally:
        left.set()


def process_name() -> str:
    """The name of this process in the fleet, as in the rows of workers and relays."""
    return f"{socket.gethostname()}:{os.getpid()}"


def _calm_the_collector() -> None:
    """Collect cyclic garbage less often.

    Thousands of live attempts and requests make each pass long, and they hold no cycles: at the default threshold
    the search for cycles took a fifth of a worker's time.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


async def _bounded(main: Main, settings: Settings, left: threading.Event) -> int:
    """Run `main`, and bound the time between its end and `left`.

    asyncio.run waits without limit for tasks that swallow their cancellation and for the threads of
    `asyncio.to_thread`. Both may belong to a pipeline.
    """
    code = FAILED
    try:
        code = await _signalled(main, settings)
    finally:
        threading.Thread(target=_leave, args=(left, code), daemon=True).start()
    return code


def _leave(left: threading.Event, code: int) -> None:
    if left.wait(EXIT_SECONDS):
        return
    try:
        structlog.get_logger().warning("process.abandoned", seconds=EXIT_SECONDS)
    finally:
        os._exit(code)


async def _signalled(main: Main, settings: Settings) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def asked(number: signal.Signals) -> None:
        log = structlog.get_logger()
        if stop.is_set():
            log.warning("process.aborted", signal=number.name)
            os._exit(128 + number)
        log.info("process.stopping", signal=number.name)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked, number)
    return await main(settings, stop)


async def pause(stop: asyncio.Event, seconds: float) -> None:
    """Sleep for `seconds`, or until `stop` is set."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        # `stop` was not set: the pause is over.
        pass
