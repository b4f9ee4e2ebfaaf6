"""One place of a supervisor: the process of ours that runs there now, and the socket to it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from asyncio.subprocess import Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

import aiohttp
import structlog

from engine.errors import OutriderError
from engine.process import ending, supervised
from engine.process.restarts import exit_code

HOST: Final = "127.0.0.1"
ADMIN: Final = {"OUTRIDER_ADMIN_HOST": HOST, "OUTRIDER_ADMIN_PORT": "0"}
"""The admin server of a supervised process listens for its supervisor alone, on any free port."""
ANSWER_SECONDS: Final = 2.0
MAX_PORT_BYTES: Final = 16

log = structlog.get_logger()


class Place:
    """Runs `command`, which must call `supervised.follow` first, one process at a time. All have the same `name`.

    A process inherits `listeners`, and has `environ` beside our own environment. Its admin server listens on
    `admin_host`. Its stop may take `stop_seconds`. A `tied` process ends at once when this process ends; others drain.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        stop_seconds: float,
        listeners: Sequence[socket.socket] = (),
        environ: Mapping[str, str] = ADMIN,
        admin_host: str = HOST,
        tied: bool = False,
    ) -> None:
        self.name = name
        self._inherited = [each.fileno() for each in listeners]
        self._command = (*command, *supervised.arguments(stop_seconds, self._inherited, tied=tied))
        self._environ = environ
        self._admin_host = admin_host
        self._stop_seconds = stop_seconds
        self._process: Process | None = None
        self._port: asyncio.Future[int | None] | None = None

    @property
    def port(self) -> int | None:
        """The admin port of the process, once it has started."""
        port = self._port
        return port.result() if port is not None and port.done() and not port.cancelled() else None

    @property
    def started(self) -> bool:
        return self.port is not None

    @property
    def living(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start a process. Raises OSError.

        It has its own session. Else the terminal's Ctrl-C would reach it in addition to our SIGTERM, and two signals
        mean "at once". No code runs between fork and exec, because threads can break a forked process.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = await asyncio.create_subprocess_exec(
                    *self._command,
                    stdin=theirs.fileno(),
                    start_new_session=True,
                    env=os.environ | self._environ,
                    pass_fds=self._inherited,
                )
        except BaseException:
            ours.close()
            raise
        ending.followers.add(self._process.pid)
        self._port = asyncio.ensure_future(_told(ours))
        self._link = ours

    async def ended(self) -> int:
        """Wait for the end of a started process and return its exit code."""
        assert self._process is not None
        try:
            return exit_code(await self._process.wait())
        finally:
            if not self.living:
                self._forget(self._process)

    async def stop(self) -> int:
        """Send SIGTERM, and SIGKILL after `stop_seconds`. Returns the exit code, or 0 if it had not started."""
        if self._process is None or not self.living:
            return 0
        started = self.started
        with suppress(ProcessLookupError):  # it has ended just now
            self._process.terminate()
        try:
            async with asyncio.timeout(self._stop_seconds):
                code = await self.ended()
        except TimeoutError:
            log.warning("child.killed", role=self.name, after_seconds=self._stop_seconds)
            with suppress(ProcessLookupError):
                self._process.kill()
            code = await self.ended()
        return code if started or code != 128 + signal.SIGTERM else 0

    async def fetch(self, path: str, accept: str = "*/*") -> tuple[int, str]:
        """Status and text of the process's answer. Raises OutriderError if there is none within ANSWER_SECONDS."""
        port = self.port
        if port is None or not self.living:
            raise OutriderError("starting" if self.living else "not running")
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.get(
                    f"http://{self._admin_host}:{port}{path}", headers={"Accept": accept}
                ) as response,
            ):
                return response.status, await response.text()
        except TimeoutError:
            raise OutriderError(f"no answer within {ANSWER_SECONDS:g} s") from None
        except aiohttp.ClientError as error:
            raise OutriderError(f"no answer: {error}") from error

    def _forget(self, process: Process) -> None:
        ending.followers.discard(process.pid)
        if self._port is not None:
            self._port.cancel()
        self._link.close()


async def _told(link: socket.socket) -> int | None:
    """The port that the process tells, or None if it ends before."""
    link.setblocking(False)
    loop = asyncio.get_running_loop()
    said = b""
    with suppress(OSError):  # a process that is killed resets the connection
        while not said.endswith(b"\n") and len(said) < MAX_PORT_BYTES:
            got = await loop.sock_recv(link, MAX_PORT_BYTES)
            if not got:
                break
            said += got
    return int(said) if said.strip().isdigit() and said.endswith(b"\n") else None
