"""Authors' children, pools, threads and ORM beside the engine: `python -m ops.chaos.neighbours [--jobs N] [--drain N]`.

While the jobs run, workers are stopped by SIGTERM at random and started again. No worker may end by itself, each must
end within its drain time and five seconds, and five seconds later no connection of it may be left. All jobs complete.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any, Final, LiteralString
from urllib.parse import quote, urlencode

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from ops.bench import processes
from ops.bench.server import bench_server, fill
from ops.waiting import eventually

PIPELINES: Final = "ops.chaos.neighbour_pipelines"
ORDINARY: Final = ("process", "pool", "threads", "command", "orm")
LONG: Final = ("long_pool", "long_threads")
LONG_SHARE: Final = 50
"""One job of so many is a long one, of each kind."""
TABLE: LiteralString = (
    "CREATE TABLE chaos_entry (id bigint GENERATED ALWAYS AS IDENTITY, content text NOT NULL)"
)
WORKERS: Final = 2
SLOTS: Final = 10
LIFE_SECONDS: Final = (2.0, 6.0)
EXIT_SECONDS: Final = 5.0
END_SECONDS: Final = 600.0

LEFT: LiteralString = "SELECT count(*) FROM outbox"
CONNECTED: LiteralString = "SELECT count(*) FROM pg_stat_activity WHERE usename = %s"
ENDS: LiteralString = "SELECT state::text, errors, crashes, count(*) FROM job_results GROUP BY 1, 2, 3"

Connection = psycopg.Connection[tuple[Any, ...]]


class Lives:
    """Workers that live for a few seconds each, one after the other. `wrong` says what was wrong, a line each."""

    def __init__(self, url: str, folder: Path, drain_seconds: float) -> None:
        self._url = url
        self._folder = folder
        self._drain = drain_seconds
        self.done = Event()
        self.wrong: list[str] = []
        self.exits: list[float] = []

    def live(self, number: int) -> None:
        chance = Random(number)  # noqa: S311 - no secret depends on it
        life = 0
        with psycopg.connect(self._url, autocommit=True) as conn:
            while not self.done.is_set():
                life += 1
                self._one(conn, f"worker_{number}_{life}", chance)

    def _one(self, conn: Connection, name: str, chance: Random) -> None:
        log = self._folder / f"{name}.log"
        own = {"OUTRIDER_PIPELINES": PIPELINES, "OUTRIDER_DRAIN_SECONDS": f"{self._drain:g}", "log": log}
        # A role of its own tells the connections of this worker from all others, those of its pipelines included.
        conn.execute(sql.SQL("CREATE ROLE {} SUPERUSER LOGIN").format(sql.Identifier(name)))
        with processes.worker(_as_role(self._url, name), SLOTS, **own) as child:
            self.done.wait(chance.uniform(*LIFE_SECONDS))
            if child.poll() is not None:
                self.wrong.append(f"{name} ended by itself: {child.returncode}, {log.read_text()[-2000:]}")
                return
            self._end(child, name)
        if not eventually(lambda: conn.execute(CONNECTED, [name]).fetchone() == (0,), EXIT_SECONDS):
            self.wrong.append(f"{name} has ended, and a connection is left")

    def _end(self, child: subprocess.Popen[bytes], name: str) -> None:
        asked = time.monotonic()
        child.terminate()
        try:
            code = child.wait(self._drain + EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.wrong.append(f"{name} has not ended {EXIT_SECONDS:g} s after its drain time")
            return
        self.exits.append(time.monotonic() - asked)
        if code:
            self.wrong.append(f"{name} ended with {code}")


def run(url: str, jobs: int, drain_seconds: float) -> list[str]:
    """Run the scenario on the database at `url` and return what is wrong. Blocks."""
    began = time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="outrider-chaos-")))
        conn: Connection = stack.enter_context(psycopg.connect(url, autocommit=True))
        stack.enter_context(processes.relay(url))
        conn.execute(TABLE)
        _fill(conn, jobs)
        lives = Lives(url, folder, drain_seconds)
        with ThreadPoolExecutor(WORKERS) as executor:
            living = [executor.submit(lives.live, number) for number in range(WORKERS)]
            drained = eventually(
                lambda: conn.execute(LEFT).fetchone() == (0,) or any(each.done() for each in living),
                END_SECONDS,
                poll=0.1,
            )
            lives.done.set()
        for each in living:
            each.result()
        longest = max(lives.exits, default=0.0)
        print(
            f"{jobs} jobs in {time.monotonic() - began:.0f} s, {len(lives.exits)} exits, the longest {longest:.1f} s"
        )
        return lives.wrong + _verdict(conn, jobs) + ([] if drained else ["jobs are left"])


def _fill(conn: Connection, jobs: int) -> None:
    long = jobs // LONG_SHARE
    ordinary = jobs - long * len(LONG)
    share = ordinary // len(ORDINARY)
    counts = dict.fromkeys(ORDINARY, share) | dict.fromkeys(LONG, long)
    counts[ORDINARY[0]] += ordinary - share * len(ORDINARY)
    for preset, rows in counts.items():
        fill(conn, preset, rows)


def _verdict(conn: Connection, jobs: int) -> list[str]:
    ends = {tuple(end): count for *end, count in conn.execute(ENDS)}
    print(
        ", ".join(
            f"{count} {state}, errors {errors}, crashes {crashes}"
            for (state, errors, crashes), count in ends.items()
        )
    )
    return [] if ends == {("COMPLETED", 0, 0): jobs} else [f"{jobs} jobs ended so: {ends}"]


def _as_role(url: str, role: str) -> str:
    options = {name: value for name, value in conninfo_to_dict(url).items() if value is not None}
    name = options.pop("dbname")
    return f"postgresql:///{name}?{urlencode(options | {'user': role}, quote_via=quote)}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ops.chaos.neighbours")
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--drain", type=float, default=3.0, help="seconds that running jobs have to finish")
    asked = parser.parse_args(arguments)
    with bench_server() as server, server.migrated() as url:
        wrong = run(url, asked.jobs, asked.drain)
    for line in wrong:
        print(f"WRONG: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
