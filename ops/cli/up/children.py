"""The processes under `outrider up`: started, kept running, and stopped."""

from __future__ import annotations

import asyncio
import os
import time
from asyncio.subprocess import Process
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import aiohttp
import structlog

from engine.errors import ConfigurationError
from engine.process.run import DONE, FAILED, pause
from ops.harness.process import outrider, start

if TYPE_CHECKING:
    from ops.local.server import Server

START_SECONDS: Final = 60.0
POLL_SECONDS: Final = 0.05
END_POLL_SECONDS: Final = 0.2
MIN_BACKOFF_SECONDS: Final = 0.5
MAX_BACKOFF_SECONDS: Final = 30.0
STEADY_SECONDS: Final = 60.0
"""What has lived so long starts again with the least back-off."""
SERVER_BACKOFF_SECONDS: Final = 4.0
SERVER_STEADY_SECONDS: Final = 10.0
MAX_FAILURES: Final = 5
"""PostgreSQL, without which nothing works, comes back sooner, and so many starts in a row may fail."""
KILL_SECONDS: Final = 10.0
"""What a child gets to end beyond its drain time."""

log = structlog.get_logger()
T = TypeVar("T")


class Child:
    """A process of a `role`, with `environ` beside our own environment; `ready_url` answers 200 once it works.

    It is tied to us by its standard input (see commands/processes.py).
    """

    def __init__(self, role: str, environ: Mapping[str, str], ready_url: str) -> None:
        self.role = role
        self.ready_url = ready_url
        self._environ = os.environ | environ
        self._process: Process | None = None

    async def start(self) -> None:
        self._process = await start(outrider(self.role, "--tied"), self._environ)

    async def ended(self) -> int:
        """Wait for the end of a started child; gives the exit code."""
        return exit_code(await self._process.wait() if self._process else FAILED)

    async def stop(self, seconds: float) -> None:
        """SIGTERM, and SIGKILL when it has not ended within `seconds`."""
        if self._process is None or self._process.returncode is not None:
            return
        self._process.terminate()
        try:
            async with asyncio.timeout(seconds):
                await self._process.wait()
        except TimeoutError:
            log.warning("child.killed", role=self.role, after_seconds=seconds)
            self._process.kill()
            await self._process.wait()


class Kept(Protocol):
    """What `keep` keeps running."""

    @property
    def role(self) -> str: ...

    async def start(self) -> None: ...

    async def ended(self) -> int: ...


class Backoff:
    """How long to wait before what has ended is started again; seconds."""

    def __init__(self, longest: float = MAX_BACKOFF_SECONDS, steady: float = STEADY_SECONDS) -> None:
        self._longest = longest
        self._steady = steady
        self._seconds = MIN_BACKOFF_SECONDS
        self._since = time.monotonic()

    def next(self) -> float:
        """Twice as long each time, up to `longest`; anew for what has lived `steady` seconds."""
        if time.monotonic() - self._since > self._steady:
            self._seconds = MIN_BACKOFF_SECONDS
        seconds, self._seconds = self._seconds, min(self._seconds * 2, self._longest)
        return seconds

    def started(self) -> None:
        self._since = time.monotonic()


async def keep(kept: Kept, stop: asyncio.Event) -> None:
    """Start it again whenever it ends, with back-off, until `stop`; it is not stopped then."""
    backoff = Backoff()
    while (code := await unless(stop, kept.ended())) is not None:
        seconds = backoff.next()
        log.error("child.ended", role=kept.role, exit_code=code, restart_seconds=seconds)
        await pause(stop, seconds)
        if stop.is_set():
            return
        backoff.started()
        await unless(stop, kept.start())


async def keep_server(server: Server, stop: asyncio.Event) -> int:
    """As `keep`, but it gives up after MAX_FAILURES: then it sets `stop`. The exit code.

    A start that is due when `stop` comes still happens, and is waited for: a drain needs the database.
    """
    backoff, failures = Backoff(SERVER_BACKOFF_SECONDS, SERVER_STEADY_SECONDS), 0
    while not stop.is_set() and await unless(stop, _end(server)):
        seconds = backoff.next()
        log.error("postgres.ended", restart_seconds=seconds)
        await pause(stop, seconds)
        backoff.started()
        try:
            await asyncio.to_thread(server.start)
        except ConfigurationError as error:
            failures += 1
            log.warning("postgres.start_failed", failures=failures, error=str(error))
            if failures == MAX_FAILURES:
                log.critical("postgres.given_up", failures=failures, log_file=str(server.log))
                stop.set()
                return FAILED
        else:
            failures = 0
            log.info("postgres.restarted")
    return DONE


async def _end(server: Server) -> bool:
    while not server.ended():  # noqa: ASYNC110 - other processes' locks have no event
        await asyncio.sleep(END_POLL_SECONDS)
    return True


def exit_code(code: int) -> int:
    """As a shell has it: 128 + n for signal n."""
    return 128 - code if code < 0 else code


async def all_ready(children: Sequence[Child]) -> int:
    """Wait until every child is ready: 0. When one ends before, or all of it takes too long: an exit code."""
    ends = {asyncio.create_task(child.ended()): child for child in children}
    ready = asyncio.create_task(_ready([child.ready_url for child in children]))
    try:
        await asyncio.wait({ready, *ends}, timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        for end, child in ends.items():
            if end.done():
                log.error("child.start_failed", role=child.role, exit_code=end.result())
                return end.result() or FAILED
        if not ready.done():
            log.error("children.not_ready", after_seconds=START_SECONDS)
            return FAILED
        return DONE
    finally:
        for task in (ready, *ends):
            task.cancel()


async def unless(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """What `work` gives; or None, and it is cancelled, when `stop` comes first."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        stopping.cancel()


async def _ready(urls: Sequence[str]) -> None:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
        for url in urls:
            while not await _is_ready(session, url):  # noqa: ASYNC110 - another process's event: only polling sees it
                await asyncio.sleep(POLL_SECONDS)


async def _is_ready(session: aiohttp.ClientSession, url: str) -> bool:
    with suppress(aiohttp.ClientError, TimeoutError):  # it does not listen yet
        async with session.get(url) as response:
            return response.status == 200
    return False
