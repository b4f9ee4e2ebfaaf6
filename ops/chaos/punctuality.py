"""A relay's maintenance while its workers suffer: `python -m ops.chaos.punctuality [--jobs N] [--seconds N] [kind …]`.

A relay without Pub/Sub runs a worker with the guilty pipelines, as tasks, in threads and in processes. Delayed jobs of
another preset, which a free worker runs, are due at even times meanwhile. The relay promotes them: 99 of 100 must
start within 1.5 s of their time. Prints a table.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, LiteralString, NamedTuple

import psycopg

from engine.queries import invariants
from engine.storage.connections import connect
from ops.bench import processes
from ops.bench.server import bench_server, empty, fill
from ops.chaos import blocking_pipelines
from ops.chaos.isolation_kinds import KINDS, MODULES
from ops.waiting import eventually

INSIDE: Final = tuple(each.preset for each in blocking_pipelines.pipelines)
APART: Final = tuple(kind.preset for kind in KINDS)
QUIET: Final = "nothing"
TIMED: Final = "noop"
"""A preset of the free worker alone."""
GUILTY: Final = 20
SLOTS: Final = 10
AHEAD_SECONDS: Final = 2.0
END_SECONDS: Final = 60.0
LATE_SECONDS: Final = 1.5

DONE: LiteralString = "SELECT count(*) FROM job_results r JOIN jobs j ON j.id = r.job_id WHERE j.preset = %s"
LATENESS: LiteralString = """
SELECT percentile_disc(ARRAY[0.5, 0.99, 1.0])
       WITHIN GROUP (ORDER BY extract(epoch FROM r.started_at - r.run_at)::float8)
FROM job_results r JOIN jobs j ON j.id = r.job_id WHERE j.preset = %s
"""

Connection = psycopg.Connection[tuple[Any, ...]]


class Row(NamedTuple):
    """Seconds from when a job was due to its start. `ended`: how many of the guilty jobs have ended."""

    kind: str
    median: float
    p99: float
    longest: float
    ended: int

    def __str__(self) -> str:
        return (
            f"{self.kind:<16} {self.median:>6.2f} s {self.p99:>6.2f} s {self.longest:>6.2f} s {self.ended:>6}"
        )


def run(url: str, jobs: int, seconds: float, kinds: Sequence[str] = (QUIET, *INSIDE, *APART)) -> list[str]:
    """Run the scenario on the database at `url` and return what is wrong. Blocks."""
    print(f"{'kind':<16} {'median':>8} {'p99':>8} {'longest':>8}  ended")
    wrong = []
    with (
        TemporaryDirectory(prefix="outrider-chaos-") as folder,
        psycopg.connect(url, autocommit=True) as conn,
        processes.worker(url, SLOTS),
    ):
        log = Path(folder) / "relay.log"
        for kind in kinds:
            # What some of them do to the worker outlasts them.
            with _relay(url, log):
                row = _round(conn, kind, jobs, seconds)
            print(row, flush=True)
            if row.p99 > LATE_SECONDS:
                wrong.append(f"{kind}: 99 of 100 jobs started within {row.p99:.2f} s")
            wrong += asyncio.run(_broken(url))
            empty(url)
    return wrong


@contextmanager
def _relay(url: str, log: Path) -> Iterator[None]:
    """A relay with one worker, which is killed at the end: nothing need be left of it."""
    settings = {
        "OUTRIDER_PIPELINES": f"{MODULES},{blocking_pipelines.__name__}",
        "OUTRIDER_RELAY_WORKERS": "1",
        "OUTRIDER_WORKER_CONCURRENCY": str(SLOTS),
    }
    with processes.relay(url, log=log, **settings) as relay:
        yield
        relay.kill()


def _round(conn: Connection, kind: str, jobs: int, seconds: float) -> Row:
    """Delayed jobs beside guilty ones, which come before and among them."""
    began = datetime.now(UTC) + timedelta(seconds=AHEAD_SECONDS)
    for number in range(jobs):
        fill(conn, TIMED, 1, due=(began + timedelta(seconds=number * seconds / jobs)).isoformat())
    if kind != QUIET:
        fill(conn, kind, 1)
        for _ in range(GUILTY - 1):
            time.sleep(seconds / GUILTY)
            fill(conn, kind, 1)
    if not eventually(lambda: _done(conn, TIMED) == jobs, seconds + END_SECONDS, poll=0.2):
        raise TimeoutError(f"{kind}: {_done(conn, TIMED)} of {jobs} delayed jobs have ended")
    [((median, p99, longest),)] = conn.execute(LATENESS, [TIMED]).fetchall()
    return Row(kind, median, p99, longest, _done(conn, kind))


def _done(conn: Connection, preset: str) -> int:
    [(count,)] = conn.execute(DONE, [preset]).fetchall()
    return int(count)


async def _broken(url: str) -> list[str]:
    async with await connect(url, name="chaos") as conn:
        report = await invariants.report(conn, {})
    return [str(finding) for finding in report.findings]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ops.chaos.punctuality")
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=10.0, help="over how long the jobs are due")
    parser.add_argument("kinds", nargs="*", help="default: all")
    asked = parser.parse_args(arguments)
    with bench_server() as server, server.migrated() as url:
        wrong = run(url, asked.jobs, asked.seconds, asked.kinds or (QUIET, *INSIDE, *APART))
    for line in wrong:
        print(f"WRONG: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
