"""N processes of one role behind one admin port: `--processes` of the commands, and the workers of a relay."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from engine.errors import OutriderError
from engine.process.admin import Checks, accepting, admin_server
from engine.process.place import Place
from engine.process.supervision import KILL_SECONDS, Supervisor
from engine.settings import Settings
from engine.telemetry.metrics import PROCESSES_SILENT

PACKAGES: Final = Path(__file__).parents[2]
"""The folder that holds our packages."""
MAX_REASON: Final = 300
"""In characters: what a readiness check says of one process."""

log = structlog.get_logger()


def command(role: str) -> list[str]:
    """The command of one process.

    -P: a folder `worker` in the current directory must not be imported, unless it is this one.
    """
    safe = [] if Path.cwd() == PACKAGES else ["-P"]
    return [sys.executable, *safe, "-m", role]


class Fleet:
    """`count` processes of a role, in places that are numbered from 1 on. They inherit `listeners`."""

    def __init__(
        self, role: str, count: int, *, drain_seconds: float, listeners: Sequence[socket.socket] = ()
    ) -> None:
        self._places = {
            number: Place(
                f"{role} {number}",
                command(role),
                stop_seconds=drain_seconds + KILL_SECONDS,
                listeners=listeners,
            )
            for number in range(1, count + 1)
        }
        self._supervisor = Supervisor(list(self._places.values()), listeners)

    async def run(self, stop: asyncio.Event) -> int:
        """As Supervisor.run."""
        return await self._supervisor.run(stop)

    @property
    def checks(self) -> Checks:
        """A readiness check for each process, by its name."""
        return {place.name: partial(_ready, place) for place in self._places.values()}

    async def pages(self, accept: str) -> dict[str, str]:
        """The metrics of every process that answers, by its number, in the format that `accept` chooses."""
        answers = await asyncio.gather(*(_page(place, accept) for place in self._places.values()))
        pages = {str(number): page for number, page in zip(self._places, answers, strict=True) if page}
        PROCESSES_SILENT.set(len(self._places) - len(pages))
        return pages


async def main(
    settings: Settings,
    stop: asyncio.Event,
    *,
    role: str,
    processes: int,
    listeners: Sequence[socket.socket] = (),
) -> int:
    """Keep so many `processes` of a role running until `stop`. Raises ConfigurationError at start.

    No author's code runs here: the processes load it.
    """
    settings.database()
    fleet = Fleet(role, processes, drain_seconds=settings.drain_seconds, listeners=listeners)
    checks = {**fleet.checks, "accepting": accepting(stop)}
    async with admin_server(settings, role, checks, pages=fleet.pages, shown_as="supervisor") as port:
        log.info("supervisor.started", role=role, processes=processes, admin_port=port)
        return await fleet.run(stop)


async def _ready(place: Place) -> None:
    """Raises OutriderError, with the checks that fail, unless the process is ready."""
    status, answer = await place.fetch("/readyz")
    if status != 200:
        raise OutriderError(reason(answer))


def reason(answer: str) -> str:
    """Which checks fail, and why, by the answer of an admin server; at most MAX_REASON characters."""
    try:
        checks = json.loads(answer)["checks"].items()
    except (ValueError, LookupError, TypeError, AttributeError):  # not the answer of an admin server of ours
        return answer[:MAX_REASON]
    return "; ".join(f"{name}: {said}" for name, said in checks if said != "ok")[:MAX_REASON]


async def _page(place: Place, accept: str) -> str | None:
    try:
        status, page = await place.fetch("/metrics", accept)
    except OutriderError:
        # Counted by the caller: a scrape shows what there is.
        return None
    return page if status == 200 else None
