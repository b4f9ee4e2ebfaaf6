"""Worker processes over the test's database, maintenance beside them, and what they left on the disk."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from psycopg import AsyncConnection

from engine.pubsub.client import EMULATOR
from engine.storage.connections import Pool, open_pool
from ops.harness.process import ROOT, outrider
from ops.waiting import WAIT_SECONDS, until
from tests.support.database import Conn
from tests.support.json_lines import events
from tests.support.worker_harness import WorkerHarness
from tests.system.acceptance import ledger_pipelines as work

LEASE = 2.0


def children(pid: int) -> list[int]:
    """The living and the unreaped children of a process."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # ended meanwhile
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


class Process:
    """A worker or relay process; its log is a file."""

    def __init__(self, child: asyncio.subprocess.Process, log: Path) -> None:
        self._child = child
        self._log = log

    @property
    def pid(self) -> int:
        return self._child.pid

    def send(self, number: signal.Signals) -> None:
        self._child.send_signal(number)

    def logged(self, event: str) -> int:
        """How many lines of `event` it has written."""
        return sum(each["event"] == event for each in events(self._log))

    async def says(self, event: str, times: int = 1, seconds: float = WAIT_SECONDS) -> None:
        async def look() -> bool:
            assert self._child.returncode is None, self._log.read_text()
            return self.logged(event) >= times

        await until(look, seconds)

    def fields(self, event: str) -> dict[str, Any]:
        """The fields of the last line of `event`."""
        return [each for each in events(self._log) if each["event"] == event][-1]

    def children(self) -> list[int]:
        """The processes that it has started and not reaped."""
        return children(self.pid)

    async def ended(self, seconds: float = WAIT_SECONDS) -> int:
        async with asyncio.timeout(seconds):
            return await self._child.wait()

    async def end(self) -> None:
        if self._child.returncode is None:
            self._child.kill()  # ends a stopped process, too
        await self._child.wait()


class ProcessHarness(WorkerHarness):
    def __init__(self, url: str, conn: Conn, pool: Pool, folder: Path, stack: AsyncExitStack) -> None:
        super().__init__(url, conn, pool, effects=pool)
        self.folder = folder
        self.limits = {each.preset: each.max_attempts for each in work.pipelines}
        self._stack = stack
        self._started = 0

    async def start(
        self,
        role: str = "worker",
        *,
        lease: float = LEASE,
        slots: int = 10,
        drain: float = 20,
        processes: int = 1,
        prefix: Sequence[str] = (),
        registered: int | None = None,
        emulator: str = "",
        **others: object,
    ) -> Process:
        """A worker or relay process, once it holds a lease, or with `processes` that many under a supervisor.

        `prefix`: a command that runs it. `registered`: how many leases to wait for instead.
        """
        self._started += 1
        log = self.folder / f"{role}-{self._started}.log"
        settings = {
            "DATABASE_URL": self.url,
            "PIPELINES": "tests.system.acceptance.ledger_pipelines",
            "ADMIN_PORT": 0,
            "LEASE_SECONDS": lease,
            "WORKER_CONCURRENCY": slots,
            "DRAIN_SECONDS": drain,
        } | others
        command = [sys.executable, "-m", role]
        if processes > 1:
            command = outrider(role, "--processes", str(processes))
        with log.open("wb") as stream:
            child = await asyncio.create_subprocess_exec(
                *prefix,
                *command,
                cwd=ROOT,
                stderr=stream,
                env=os.environ
                | {f"OUTRIDER_{name}": str(value) for name, value in settings.items()}
                | {EMULATOR: emulator},
            )
        process = Process(child, log)
        self._stack.push_async_callback(process.end)
        await process.says("worker.registered", processes if registered is None else registered)
        return process

    async def submit(self, preset: str, count: int = 1) -> list[UUID]:
        return [await self.enqueue(preset, content=str(self.folder)) for _ in range(count)]

    def runs(self) -> list[tuple[str, UUID, int, int]]:
        """(preset, job, attempt, process) of each start, in order."""
        file = self.folder / "runs"
        lines = file.read_text().splitlines() if file.exists() else []
        return [
            (preset, UUID(job), int(attempt), int(pid)) for preset, job, attempt, pid in map(str.split, lines)
        ]

    async def running(self, count: int) -> None:
        """Wait until so many attempts have started."""

        async def look() -> bool:
            return len(self.runs()) >= count

        await until(look)

    def go(self, attempt: int | None = None) -> None:
        (self.folder / ("go" if attempt is None else f"go-{attempt}")).touch()

    async def checked(self) -> None:
        """The invariants hold, no attempt ran twice, and no effects happened twice."""
        assert await self.broken() == []
        runs = [(job_id, attempt) for _, job_id, attempt, _ in self.runs()]
        assert len(runs) == len(set(runs))
        written = [job_id for job_id, _ in await self.ledger()]
        assert len(written) == len(set(written))

    async def ledger(self) -> list[tuple[UUID, int]]:
        """What effects have written: (job, attempt), a row for each."""
        rows = await (await self.conn.execute("SELECT job_id, attempt FROM ledger")).fetchall()
        return [(job_id, attempt) for job_id, attempt in rows]


@asynccontextmanager
async def open_processes(url: str, folder: Path) -> AsyncIterator[ProcessHarness]:
    """Processes over the database at `url`."""
    async with AsyncExitStack() as stack:
        conn = await stack.enter_async_context(await AsyncConnection.connect(url, autocommit=True))
        await conn.execute("CREATE TABLE ledger (job_id uuid NOT NULL, attempt integer NOT NULL)")
        pool = await stack.enter_async_context(open_pool(url, name="test", size=4))
        yield ProcessHarness(url, conn, pool, folder, stack)


@pytest.fixture
async def processes(database_url: str, tmp_path: Path) -> AsyncIterator[ProcessHarness]:
    """Whatever a test does there, the promises hold at its end."""
    async with open_processes(database_url, tmp_path) as processes:
        yield processes
        await processes.checked()
