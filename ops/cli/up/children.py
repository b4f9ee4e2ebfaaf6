"""Starts, restarts and stops the processes under `outrider up`."""

from __future__ import annotations

import asyncio
import os
from asyncio.subprocess import Process
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import aiohttp
import structlog

from engine.errors import ConfigurationError
from engine.process.restarts import Backoff, exit_code
from engine.process.run import DONE, FAILED, pause
from ops.harness.process import outrider, start

if TYPE_CHECKING:
    from ops.local.server import Server

START_SECONDS: Final = 60.0
POLL_SECONDS: Final = 0.05
END_POLL_SECONDS: Final = 0.2
SERVER_BACKOFF_SECONDS: Final = 4.0
SERVER_STEADY_SECONDS: Final = 10.0
MAX_FAILURES: Final = 5
"""PostgreSQL restarts sooner, because nothing works without it. `up` ends after this many failed starts in a row."""
KILL_SECONDS: Final = 10.0
"""How long a child may take to end after its drain time."""

log = structlog.get_logger()
T = TypeVar("T")


class Child:
    """A process of a `role`, with `environ` added to our own environment. `ready_url` answers 200 once it is ready.

    The child ends with this process, which holds the child's standard input (see commands/processes.py).
    """

    def __init__(self, role: str, environ: Mapping[str, str], ready_url: str) -> None:
        self.role = role
        self.ready_url = ready_url
        self._environ = os.environ | environ
        self._process: Process | None = None

    async def start(self) -> None:
        self._process = await start(outrider(self.role, "--tied"), self._environ)

    async def ended(self) -> int:
        """Wait for the end of a started child and return its exit code."""
        return exit_code(await self._process.wait() if self._process else FAILED)

    async def stop(self, seconds: float) -> None:
        """Send SIGTERM, and SIGKILL if the child has not ended within `seconds`."""
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
    """A process that `keep` starts again."""

    @property
    def role(self) -> str: ...

    async def start(self) -> None: ...

    async def ended(self) -> int: ...


async def keep(kept: Kept, stop: asyncio.Event) -> None:
    """Start the process again whenever it ends, with back-off, until `stop`. `stop` does not end the process."""
    backoff = Backoff()
    while (code := await unless(stop, kept.ended())) is not None:
        seconds = backoff.next()
        log.error("child.ended", role=kept.role, exit_code=code, restart_seconds=seconds)
        await pause(stop, seconds)
        if stop.is_set():
            return
        backoff.started()
        try:
            await unless(stop, kept.start())
        except OSError as error:
            # Out of processes or memory, perhaps. The others go on; this one has ended still, so it is tried again.
            log.warning("child.not_started", role=kept.role, error=str(error))


async def keep_server(server: Server, stop: asyncio.Event) -> int:
    """As `keep`, but sets `stop` after MAX_FAILURES failed starts in a row. Returns the exit code.

    A start that is due when `stop` comes still happens and is awaited, because a drain needs the database.
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
    # Locks of other processes have no event.
    while not server.ended():  # noqa: ASYNC110
        await asyncio.sleep(END_POLL_SECONDS)
    return True


async def all_ready(children: Sequence[Child]) -> int:
    """Wait until every child is ready and return 0. If a child ends first or time runs out, return an exit code."""
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
    """The result of `work`. If `stop` comes first, `work` is cancelled and the result is None."""
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
            # Another process has no event here: only polling sees it become ready.
            while not await _is_ready(session, url):  # noqa: ASYNC110
                await asyncio.sleep(POLL_SECONDS)


async def _is_ready(session: aiohttp.ClientSession, url: str) -> bool:
    with suppress(aiohttp.ClientError, TimeoutError):  # not listening yet
        async with session.get(url) as response:
            return response.status == 200
    return False
