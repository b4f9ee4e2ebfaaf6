"""Keeps N processes of one command running, and ends them within one drain time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import structlog

from engine.errors import OutriderError
from engine.process.ending import EXIT_SECONDS, LAST_WORDS_SECONDS
from engine.process.place import Place
from engine.process.restarts import Backoff, Ends
from engine.process.run import DONE, FAILED, USAGE
from engine.telemetry.metrics import PROCESSES, PROCESSES_ENDED, PROCESSES_SILENT

KILL_SECONDS: Final = EXIT_SECONDS + LAST_WORDS_SECONDS + 0.5
"""How long a process may take to end after its drain time: what it takes itself, and a little for its last releases."""

log = structlog.get_logger()


class Supervisor:
    """Runs `count` processes of `command`, which must call `supervised.follow` first. They end with this process."""

    def __init__(self, role: str, command: Sequence[str], count: int, *, drain_seconds: float) -> None:
        seconds = drain_seconds + KILL_SECONDS
        self.places = [Place(role, number, command, seconds) for number in range(1, count + 1)]

    async def run(self, stop: asyncio.Event) -> int:
        """Start again what ends, until `stop`; then drain all at once. Returns the exit code.

        Without a stop, the end is a storm of ends in one place (exit code 1), or a wrong configuration that the first
        start finds (2).
        """
        keeping = [asyncio.create_task(self._keep(place)) for place in self.places]
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({stopping, *keeping}, return_when=asyncio.FIRST_COMPLETED)
            failures = [task.result() for task in keeping if task.done()]
        finally:
            for task in (stopping, *keeping):
                task.cancel()
            # What is being started is known, or has ended, before the others are asked to stop.
            await asyncio.wait({stopping, *keeping})
            codes = await asyncio.gather(*(place.stop() for place in self.places))
        return max(failures, default=DONE) or next(filter(None, codes), DONE)

    async def ready(self) -> None:
        """Raises OutriderError unless every process is ready."""
        for place in self.places:
            try:
                await _ready(place)
            except OutriderError as error:
                raise OutriderError(f"{place.name}: {error}") from error

    async def pages(self, accept: str) -> dict[str, str]:
        """The metrics of every process that answers, by its number, in the format that `accept` chooses."""
        answers = await asyncio.gather(*(_page(place, accept) for place in self.places))
        pages = {str(place.number): page for place, page in zip(self.places, answers, strict=True) if page}
        PROCESSES_SILENT.set(len(self.places) - len(pages))
        return pages

    async def _keep(self, place: Place) -> int:
        """Keep a process in its place. Returns an exit code when there is no use in another start."""
        backoff, ends, ever_started = Backoff(), Ends(), False
        while True:
            code = await self._once(place, backoff)
            started = place.port is not None
            ever_started = ever_started or started
            if code == USAGE and not ever_started:
                log.critical("supervisor.gave_up", role=place.name, exit_code=code)
                return USAGE
            if ends.storm(started=started, steady=backoff.steady):
                log.critical("supervisor.gave_up", role=place.name, exit_code=code)
                return FAILED
            seconds = round(backoff.next(), 3)
            log.error("child.ended", role=place.name, exit_code=code, restart_seconds=seconds)
            await asyncio.sleep(seconds)

    async def _once(self, place: Place, backoff: Backoff) -> int:
        backoff.started()
        try:
            await place.start()
        except OSError as error:
            # Out of processes or memory, perhaps: the others go on, and this one is tried again.
            log.warning("child.not_started", role=place.name, error=str(error))
            return FAILED
        PROCESSES.inc()
        try:
            code = await place.ended()
        finally:
            PROCESSES.dec()
        PROCESSES_ENDED.inc()
        return code


async def _ready(place: Place) -> None:
    status, answer = await place.fetch("/readyz")
    if status != 200:
        raise OutriderError(answer)


async def _page(place: Place, accept: str) -> str | None:
    try:
        status, page = await place.fetch("/metrics", accept)
    except OutriderError:
        # Counted by the caller: a scrape shows what there is.
        return None
    return page if status == 200 else None
