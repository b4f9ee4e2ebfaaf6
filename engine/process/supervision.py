"""Keeps processes running, and ends them within one drain time."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Final, Protocol

import structlog

from engine.process.ending import EXIT_SECONDS, LAST_WORDS_SECONDS
from engine.process.restarts import Backoff, Ends
from engine.process.run import DONE, FAILED, USAGE
from engine.telemetry.metrics import PROCESSES, PROCESSES_ENDED

KILL_SECONDS: Final = EXIT_SECONDS + LAST_WORDS_SECONDS + 0.5
"""How long a process may take to end after its drain time: what it takes itself, and a little for its last releases."""

log = structlog.get_logger()


class Kept(Protocol):
    """A process that is started again when it ends, such as a Place."""

    @property
    def name(self) -> str: ...

    @property
    def started(self) -> bool:
        """Whether the process has come up since its last start."""

    async def start(self) -> None:
        """Start a process. Raises OSError."""

    async def ended(self) -> int:
        """Wait for the end of a started process and return its exit code."""

    async def stop(self) -> int:
        """End the process, if it lives, within a bound. Returns its exit code, or 0."""


class Supervisor:
    """Keeps all of `kept` running. `listeners` are sockets that they inherit."""

    def __init__(self, kept: Sequence[Kept], listeners: Sequence[socket.socket] = ()) -> None:
        self._kept = kept
        self._listeners = listeners

    async def run(self, stop: asyncio.Event) -> int:
        """Start again what ends, until `stop`; then drain all at once. Returns the exit code.

        Without a stop, the end is a storm of ends of one process (exit code 1), or a wrong configuration that its first
        start finds (2). The sockets are closed here once nothing is started any more: then each process decides how
        long it listens.
        """
        keeping = [asyncio.create_task(_keep(each)) for each in self._kept]
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({stopping, *keeping}, return_when=asyncio.FIRST_COMPLETED)
            failures = [task.result() for task in keeping if task.done()]
        finally:
            for task in (stopping, *keeping):
                task.cancel()
            # What is being started is known, or has ended, before the others are asked to stop.
            await asyncio.wait({stopping, *keeping})
            for listener in self._listeners:
                listener.close()
            codes = await asyncio.gather(*(each.stop() for each in self._kept))
        return max(failures, default=DONE) or next(filter(None, codes), DONE)


async def run_in_turns(turns: Sequence[Sequence[Kept]], stop: asyncio.Event) -> int:
    """Keep all processes running until `stop`, then stop those of one turn after the other. Returns the exit code.

    Sets `stop` when there is no use in another start of one of them.
    """
    stops = [stop, *(asyncio.Event() for _ in turns)]

    async def keep(kept: Sequence[Kept], mine: asyncio.Event, following: asyncio.Event) -> int:
        try:
            return await Supervisor(kept).run(mine)
        finally:
            stop.set()
            following.set()

    async with asyncio.TaskGroup() as group:
        keeping = [
            group.create_task(keep(kept, stops[turn], stops[turn + 1])) for turn, kept in enumerate(turns)
        ]
    return next(filter(None, (task.result() for task in keeping)), DONE)


async def _keep(kept: Kept) -> int:
    """Keep a process running. Returns an exit code when there is no use in another start."""
    backoff, ends, ever_started = Backoff(), Ends(), False
    while True:
        code = await _once(kept, backoff)
        started = kept.started
        ever_started = ever_started or started
        if code == USAGE and not ever_started:
            log.critical("supervisor.gave_up", role=kept.name, exit_code=code)
            return USAGE
        if ends.storm(started=started, steady=backoff.steady):
            log.critical("supervisor.gave_up", role=kept.name, exit_code=code)
            return FAILED
        seconds = round(backoff.next(), 3)
        log.error("child.ended", role=kept.name, exit_code=code, restart_seconds=seconds)
        await asyncio.sleep(seconds)


async def _once(kept: Kept, backoff: Backoff) -> int:
    backoff.started()
    try:
        await kept.start()
    except OSError as error:
        # Out of processes or memory, perhaps: the others go on, and this one is tried again.
        log.warning("child.not_started", role=kept.name, error=str(error))
        return FAILED
    PROCESSES.inc()
    try:
        code = await kept.ended()
    finally:
        PROCESSES.dec()
    PROCESSES_ENDED.inc()
    return code
