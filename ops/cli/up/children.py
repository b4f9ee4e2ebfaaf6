"""The processes under `outrider up`, which the engine's supervisor keeps running, and its PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import structlog

from engine.errors import ConfigurationError, OutriderError
from engine.process.fleet import command
from engine.process.place import Place
from engine.process.restarts import Backoff
from engine.process.run import DONE, FAILED, pause, unless
from ops.cli.addresses import Ports, reachable

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
"""How long a process may take to end after its drain time. The relay waits for its own workers."""

log = structlog.get_logger()


def places(ports: Ports, drain_seconds: float, environ: Mapping[str, str]) -> list[Place]:
    """web, relay and worker, with `environ` beside our own environment. They end at once with this process."""
    return [
        Place(
            role,
            command(role),
            stop_seconds=drain_seconds + KILL_SECONDS,
            environ={**environ, "OUTRIDER_ADMIN_PORT": str(port)},
            admin_host=reachable(ports.admin_host),
            tied=True,
        )
        for role, port in ports.admin.items()
    ]


async def keep_server(server: Server, stop: asyncio.Event) -> int:
    """Start PostgreSQL again when it ends. Returns the exit code. MAX_FAILURES failed starts in a row set `stop`.

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


async def all_ready(places: Sequence[Place]) -> bool:
    """Wait until every process is ready. False if that takes longer than START_SECONDS."""
    with suppress(TimeoutError):
        async with asyncio.timeout(START_SECONDS):
            for place in places:
                # Another process has no event here: only polling sees it become ready.
                while not await _is_ready(place):  # noqa: ASYNC110
                    await asyncio.sleep(POLL_SECONDS)
        return True
    log.error("children.not_ready", after_seconds=START_SECONDS)
    return False


async def _is_ready(place: Place) -> bool:
    try:
        status, _ = await place.fetch("/readyz")
    except OutriderError:  # not listening yet
        return False
    return status == 200
