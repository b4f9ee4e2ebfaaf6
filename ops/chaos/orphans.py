"""Kills what runs jobs by SIGKILL: `python -m ops.chaos.orphans [--transport T] [--jobs N] [--seconds N] [--seed N]`.

Jobs with effects run in processes, below two workers and their supervisor. At random times a child, a nursery, a worker
or the supervisor is killed. Afterwards each job must be completed, its effects written once, and the invariants must
hold. Five seconds after a supervisor's death no process and no connection below it may be left.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal, LiteralString

import psycopg

from engine.queries import invariants
from engine.settings import Transport
from engine.storage.connections import connect
from ops.bench import brokers, processes
from ops.bench.server import bench_server, fill
from ops.chaos.marked import Mark, children_of
from ops.harness.emulator import find
from ops.waiting import eventually

PIPELINES: Final = "ops.chaos.isolation_pipelines"
PRESET: Final = "effects"
MAX_ATTEMPTS: Final = 25
PROCESSES: Final = 2
SLOTS: Final = 4
PAUSE_SECONDS: Final = (0.1, 0.6)
LEFT_SECONDS: Final = 5.0
END_SECONDS: Final = 300.0
LEASE_SECONDS: Final = 2

Victim = Literal["child", "nursery", "worker", "supervisor"]
WEIGHTS: Final[dict[Victim, int]] = {"child": 40, "nursery": 1, "worker": 3, "supervisor": 1}

TABLE: LiteralString = "CREATE TABLE chaos_effect (job_id uuid NOT NULL)"
LEFT: LiteralString = "SELECT count(*) FROM outbox"
ENDS: LiteralString = """
SELECT (SELECT count(*) FROM job_results WHERE state = 'COMPLETED'), (SELECT count(*) FROM job_results),
       (SELECT count(*) FROM chaos_effect), (SELECT count(DISTINCT job_id) FROM chaos_effect),
       (SELECT coalesce(sum(errors), 0) FROM job_results), (SELECT coalesce(sum(crashes), 0) FROM job_results)
"""

Connection = psycopg.Connection[tuple[Any, ...]]


class Killer:
    """Lets one supervisor live after the other. `wrong` says what was wrong, a line each."""

    def __init__(self, url: str, folder: Path, settings: dict[str, str], seed: int) -> None:
        self._url = url
        self._log = folder / "workers.log"
        self._settings = settings
        self._chance = Random(seed)  # noqa: S311 - no secret depends on it
        self.killed: Counter[Victim] = Counter()
        self.wrong: list[str] = []

    def kill_until(self, deadline: float) -> None:
        while time.monotonic() < deadline:
            self.live(deadline)

    def live(self, deadline: float) -> None:
        """Start a supervisor and kill what is below it, until it is itself the next victim."""
        mark = Mark(self._url)
        settings: dict[str, Any] = {**self._settings, **mark.environ}
        with processes.workers(mark.url, SLOTS, PROCESSES, log=self._log, **settings) as supervisor:
            while time.monotonic() < deadline and self._blow(supervisor.pid) != "supervisor":
                time.sleep(self._chance.uniform(*PAUSE_SECONDS))
            if supervisor.poll() is not None:
                self.wrong.append(f"a supervisor ended by itself: {supervisor.returncode}")
            supervisor.kill()
            supervisor.wait()
            self.killed["supervisor"] += 1
        if not eventually(lambda: not (mark.processes() or mark.connections()), LEFT_SECONDS):
            self.wrong.append(f"left: processes {mark.processes()}, {mark.connections()} connections")

    def _blow(self, supervisor: int) -> Victim:
        """Kill one process of a kind that chance has chosen, or leave the supervisor to the caller."""
        [kind] = self._chance.choices([*WEIGHTS], [*WEIGHTS.values()])
        if kind == "supervisor":
            return kind
        workers = children_of(supervisor)
        nurseries = [nursery for worker in workers for nursery in children_of(worker)]
        children = [child for nursery in nurseries for child in children_of(nursery)]
        if those := {"child": children, "nursery": nurseries, "worker": workers}[kind]:
            with suppress(ProcessLookupError):
                os.kill(self._chance.choice(those), signal.SIGKILL)
                self.killed[kind] += 1
        return kind


def run(
    url: str,
    jobs: int,
    seconds: float,
    transport: Transport = "postgres",
    settings: dict[str, str] | None = None,
    seed: int = 1,
) -> list[str]:
    """Run the scenario on the database at `url` and return what is wrong. Blocks."""
    began = time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="outrider-chaos-")))
        conn: Connection = stack.enter_context(psycopg.connect(url, autocommit=True))
        conn.execute(TABLE)
        brokered = stack.enter_context(_broker()) if transport == "pubsub" else {}
        own = {"OUTRIDER_PIPELINES": PIPELINES, "OUTRIDER_LEASE_SECONDS": str(LEASE_SECONDS)}
        settings = {**own, **brokered, **(settings or {})}
        stack.enter_context(processes.relay(url, **settings))
        _fill(conn, jobs, seconds)
        killer = Killer(url, folder, settings, seed)
        killer.kill_until(time.monotonic() + seconds)
        [(left,)] = conn.execute(LEFT).fetchall()
        with processes.workers(url, SLOTS, PROCESSES, **settings):
            drained = eventually(lambda: _drained(conn), END_SECONDS, poll=0.1)
        kills = ", ".join(f"{killer.killed[kind]} x {kind}" for kind in WEIGHTS)
        print(
            f"{transport}: {jobs} jobs in {time.monotonic() - began:.0f} s; killed: {kills}; {left} jobs were left then"
        )
        wrong = killer.wrong + ([] if drained else ["jobs are left"]) + _verdict(conn, jobs)
    return wrong + asyncio.run(_broken(url))


def _broker() -> AbstractContextManager[dict[str, str]]:
    """Google's emulator, or the fake where there is none. Brings the settings of processes that use it."""
    return brokers.provisioned(brokers.emulator if find() else brokers.fake)


def _fill(conn: Connection, jobs: int, seconds: float) -> None:
    """Jobs that are due at even times, as many in each second."""
    now, each = datetime.now(UTC), max(1, round(jobs / seconds))
    for number, first in enumerate(range(0, jobs, each)):
        due = now + timedelta(seconds=number)
        fill(conn, PRESET, min(each, jobs - first), due=due.isoformat())


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
    if crashes:
        wrong.append(f"{crashes} crashes are charged to jobs in processes of their own")
    return wrong if effects == distinct == completed else [*wrong, f"{effects} effects of {distinct} jobs"]


async def _broken(url: str) -> list[str]:
    async with await connect(url, name="chaos") as conn:
        report = await invariants.report(conn, {PRESET: MAX_ATTEMPTS})
    print(f"invariants checked on {report.jobs} jobs: {len(report.findings)} broken")
    return [str(finding) for finding in report.findings]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ops.chaos.orphans")
    parser.add_argument("--transport", choices=["postgres", "pubsub"], default="postgres")
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long processes are killed")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args(arguments)
    with bench_server() as server, server.migrated() as url:
        wrong = run(url, asked.jobs, asked.seconds, asked.transport, seed=asked.seed)
    for line in wrong:
        print(f"WRONG: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
