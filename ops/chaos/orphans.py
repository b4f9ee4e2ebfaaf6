"""Kills children and their workers by SIGKILL: `python -m ops.chaos.orphans [--jobs N] [--seconds N]`.

Jobs with effects run in processes. At random times one of those processes is killed, or its worker, which is started
again. Afterwards each job must be completed, its effects written once, and the invariants must hold. Five seconds after
a worker's death no process and no connection of it may be left.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, Final, LiteralString

import psycopg

from engine.queries import invariants
from engine.storage.connections import connect
from ops.bench import processes
from ops.bench.server import bench_server, fill
from ops.chaos.isolation import PIPELINES
from ops.chaos.marked import Mark, children_of
from ops.waiting import eventually

PRESET: Final = "effects"
MAX_ATTEMPTS: Final = 25
SLOTS: Final = 4
KILLS_A_WORKER: Final = 15
"""Children that are killed for each worker that is."""
PAUSE_SECONDS: Final = (0.1, 0.6)
LEFT_SECONDS: Final = 5.0
END_SECONDS: Final = 300.0
LEASE_SECONDS: Final = 2

TABLE: LiteralString = "CREATE TABLE chaos_effect (job_id uuid NOT NULL)"
LEFT: LiteralString = "SELECT count(*) FROM outbox"
ENDS: LiteralString = """
SELECT (SELECT count(*) FROM job_results WHERE state = 'COMPLETED'), (SELECT count(*) FROM job_results),
       (SELECT count(*) FROM chaos_effect), (SELECT count(DISTINCT job_id) FROM chaos_effect),
       (SELECT coalesce(sum(errors), 0) FROM job_results), (SELECT coalesce(sum(crashes), 0) FROM job_results)
"""

Connection = psycopg.Connection[tuple[Any, ...]]


class Killer:
    """Lets one worker live after the other. `wrong` says what was wrong, a line each."""

    def __init__(self, url: str, folder: Path, settings: dict[str, str]) -> None:
        self._url = url
        self._log = folder / "worker.log"
        self._settings = settings
        self._chance = Random(1)  # noqa: S311 - no secret depends on it
        self.children = self.workers = 0
        self.wrong: list[str] = []

    def kill_until(self, deadline: float, conn: Connection) -> None:
        while time.monotonic() < deadline and not _drained(conn):
            self.live(deadline, conn, self._chance.randint(1, 2 * KILLS_A_WORKER))

    def live(self, deadline: float, conn: Connection, kills: int) -> None:
        """Start a worker, kill so many children of it, and the worker at last."""
        mark = Mark(self._url)
        settings: dict[str, Any] = {"OUTRIDER_PIPELINES": PIPELINES, **self._settings, **mark.environ}
        with processes.worker(mark.url, SLOTS, log=self._log, **settings) as worker:
            for _ in range(kills):
                if time.monotonic() > deadline or _drained(conn):
                    break
                time.sleep(self._chance.uniform(*PAUSE_SECONDS))
                self._kill_a_child(worker)
            if worker.poll() is not None:
                self.wrong.append(f"a worker ended by itself: {worker.returncode}")
            worker.kill()
            worker.wait()
            self.workers += 1
        if not eventually(lambda: not (mark.processes() or mark.connections()), LEFT_SECONDS):
            self.wrong.append(f"left: processes {mark.processes()}, {mark.connections()} connections")

    def _kill_a_child(self, worker: subprocess.Popen[bytes]) -> None:
        children = [child for nursery in children_of(worker.pid) for child in children_of(nursery)]
        if children:
            with suppress(ProcessLookupError):
                os.kill(self._chance.choice(children), signal.SIGKILL)
                self.children += 1


def run(url: str, jobs: int, seconds: float, settings: dict[str, str] | None = None) -> list[str]:
    """Run the scenario on the database at `url` and return what is wrong. Blocks."""
    settings = {"OUTRIDER_LEASE_SECONDS": str(LEASE_SECONDS)} | (settings or {})
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="outrider-chaos-")))
        conn: Connection = stack.enter_context(psycopg.connect(url, autocommit=True))
        conn.execute(TABLE)
        fill(conn, PRESET, jobs)
        stack.enter_context(processes.relay(url, **settings))
        killer = Killer(url, folder, settings)
        killer.kill_until(time.monotonic() + seconds, conn)
        with processes.worker(url, SLOTS, OUTRIDER_PIPELINES=PIPELINES, **settings):
            drained = eventually(lambda: _drained(conn), END_SECONDS, poll=0.1)
        print(f"killed: {killer.children} children, {killer.workers} workers")
        wrong = killer.wrong + ([] if drained else ["jobs are left"]) + _verdict(conn, jobs)
    return wrong + asyncio.run(_broken(url))


def _drained(conn: Connection) -> bool:
    return conn.execute(LEFT).fetchone() == (0,)


def _verdict(conn: Connection, jobs: int) -> list[str]:
    row = conn.execute(ENDS).fetchone()
    assert row is not None
    completed, results, effects, distinct, errors, crashes = row
    print(f"{completed} completed, {effects} effects of {distinct} jobs, {errors} errors, {crashes} crashes")
    wrong = (
        []
        if completed == results == jobs
        else [f"{completed} of {jobs} jobs are completed, {results} have ended"]
    )
    return wrong if effects == distinct == completed else [*wrong, f"{effects} effects of {distinct} jobs"]


async def _broken(url: str) -> list[str]:
    async with await connect(url, name="chaos") as conn:
        report = await invariants.report(conn, {PRESET: MAX_ATTEMPTS})
    return [str(finding) for finding in report.findings]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ops.chaos.orphans")
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long processes are killed")
    asked = parser.parse_args(arguments)
    with bench_server() as server, server.migrated() as url:
        wrong = run(url, asked.jobs, asked.seconds)
    for line in wrong:
        print(f"WRONG: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
