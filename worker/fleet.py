"""Several worker processes under one supervisor: `outrider worker --processes`, and the workers of a relay."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import structlog

from engine.process.admin import accepting, admin_server
from engine.process.supervision import Supervisor
from engine.settings import Settings

PACKAGES = Path(__file__).parents[1]
"""The folder that holds our packages."""

log = structlog.get_logger()


def supervised_workers(settings: Settings, count: int) -> Supervisor:
    return Supervisor("worker", command(), count, drain_seconds=settings.drain_seconds)


def command() -> list[str]:
    """The command of one worker.

    -P: a folder `worker` in the current directory must not be imported, unless it is this one.
    """
    safe = [] if Path.cwd() == PACKAGES else ["-P"]
    return [sys.executable, *safe, "-m", "worker"]


async def main(settings: Settings, stop: asyncio.Event, *, processes: int) -> int:
    """Keep `processes` workers running until `stop`. Raises ConfigurationError at start.

    No author's code runs here: the workers load it.
    """
    settings.database()
    workers = supervised_workers(settings, processes)
    checks = {"workers": workers.ready, "accepting": accepting(stop)}
    async with admin_server(settings, "worker", checks, pages=workers.pages, shown_as="supervisor") as port:
        log.info("supervisor.started", role="worker", processes=processes, admin_port=port)
        return await workers.run(stop)
