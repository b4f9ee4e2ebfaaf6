"""Incidents, done for real to a running `outrider up --pubsub`, and the pages that they must bring."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiohttp
from psycopg import AsyncConnection

from ops.cli.context import LOCAL_OWNER
from ops.local.place import choose
from tests.support.commands import Command, living

KILL_SECONDS: Final = 0.1
BLINK_SECONDS: Final = 0.4
"""For so long a slow database does not answer, and then for as long it does."""


class RunningUp:
    """A running `up` with its data under `folder`: where its parts are, and which processes they are."""

    def __init__(self, up: Command, folder: Path) -> None:
        self.address = re.findall(r"address +(\S+)", up.out)[0]
        self.token = up.token
        self.targets = dict(re.findall(r"(\w+) http://(\S+)/metrics", up.out))
        self._up = up
        self._folder = folder
        self._place = choose(folder / "data")

    def pid(self, role: str) -> int:
        return self._up.child(role)

    def emulators(self) -> list[int]:
        return [pid for pid, line in living(self._folder).items() if "pubsub-emulator" in line]

    def postgres(self) -> list[int]:
        """The server and its sessions."""
        server = int((self._place.cluster / "postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
        return [server, *map(int, children)]

    async def connect(self) -> AsyncConnection[tuple[object, ...]]:
        return await AsyncConnection.connect(self._place.url, autocommit=True)


Fault = Callable[[RunningUp], AbstractAsyncContextManager[None]]


class Incident(NamedTuple):
    """A fault that lasts until each of `pages` has fired, but for `seconds` at least; those `after` come when it is
    over.
    """

    name: str
    fault: Fault
    pages: Sequence[str]
    after: Sequence[str] = ()
    seconds: float = 0.0


@contextmanager
def _stopped(pids: Iterable[int]) -> Iterator[None]:
    held = list(pids)
    try:
        for pid in held:
            with suppress(ProcessLookupError):  # a session that has just ended
                os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in held:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@asynccontextmanager
async def process_stopped(up: RunningUp, role: str) -> AsyncIterator[None]:
    with _stopped([up.pid(role)]):
        yield


@asynccontextmanager
async def database_paused(up: RunningUp) -> AsyncIterator[None]:
    with _stopped(up.postgres()):
        yield


@asynccontextmanager
async def database_slow(up: RunningUp) -> AsyncIterator[None]:
    async def blink() -> None:
        while True:
            with _stopped(up.postgres()):
                await asyncio.sleep(BLINK_SECONDS)
            await asyncio.sleep(BLINK_SECONDS)

    async with _meanwhile(blink):
        yield


@asynccontextmanager
async def broker_killed(up: RunningUp) -> AsyncIterator[None]:
    """As often as `up` starts it again."""

    async def kill() -> None:
        while True:
            for pid in up.emulators():
                with suppress(ProcessLookupError):  # `up` was quicker
                    os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(KILL_SECONDS)

    async with _meanwhile(kill):
        yield


@asynccontextmanager
async def outbox_locked(up: RunningUp) -> AsyncIterator[None]:
    """Everybody may read and nobody write: as by a change of the schema that somebody has begun and not ended."""
    async with await up.connect() as conn, conn.transaction():
        await conn.execute("LOCK TABLE outbox IN EXCLUSIVE MODE")
        yield


@asynccontextmanager
async def preset_without_worker(up: RunningUp) -> AsyncIterator[None]:
    """As when a job comes of a preset whose worker is not deployed yet."""
    async with await up.connect() as conn:
        cursor = await conn.execute("SELECT outrider_enqueue(%s, 'nobodys', 'x')::text", [LOCAL_OWNER])
        row = await cursor.fetchone()
    assert row
    try:
        yield
    finally:
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {up.token}"}) as http,
            http.post(f"{up.address}/pipeline/job/{row[0]}/cancel") as answer,
        ):
            assert answer.status == 200, await answer.text()


@asynccontextmanager
async def _meanwhile(work: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    task = asyncio.create_task(work())
    try:
        yield
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.wait([task])


def stopping(role: str) -> Fault:
    return partial(process_stopped, role=role)


INCIDENTS: Final = [
    Incident("database slow", database_slow, ["OutriderSubmitBurnsFast"]),
    # Late by the objective is what starts after 30 s, whatever the pace of the rules.
    Incident(
        "worker stopped",
        stopping("worker"),
        ["OutriderNoWorkers", "OutriderQueueStuck"],
        after=["OutriderStartBurnsFast"],
        seconds=45.0,
    ),
    Incident("preset without worker", preset_without_worker, ["OutriderNoWorkerForPreset"]),
    Incident("broker killed", broker_killed, ["OutriderOutboxStalled", "OutriderOutboxBurnsFast"]),
    Incident("outbox locked", outbox_locked, ["OutriderMaintenanceStopped"]),
    Incident("relay stopped", stopping("relay"), ["OutriderNoRelay"]),
    Incident(
        "database paused",
        database_paused,
        [
            "OutriderDatabaseAway",
            "OutriderRelayStale",
            "OutriderPoolExhausted",
            "OutriderAvailabilityBurnsFast",
        ],
    ),
    Incident("web stopped", stopping("web"), ["OutriderNoWeb"]),
]
"""A budget once burnt stays so for minutes: the incident of an objective is the first that hurts it."""
