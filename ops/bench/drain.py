"""Throughput of no-op jobs with one and two workers, against bare SQL that writes the same rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final, LiteralString

import psycopg

from ops.bench import floor, processes
from ops.bench.cpu import spent
from ops.bench.figures import Row, cpu_rows, ratio, repeated
from ops.bench.plan import Plan
from ops.bench.server import empty, fill
from ops.harness.postgres import Databases
from ops.waiting import eventually

TITLE = "No-op jobs drained, audit rows and results written (jobs/s)"
PRESET: Final = "noop"
SLOTS: Final = 500
POLL_SECONDS: Final = 0.1
DRAIN_SECONDS: Final = 120.0

UNFINISHED: LiteralString = "SELECT EXISTS (SELECT FROM outbox)"
DRAINED: LiteralString = """
SELECT count(*), extract(epoch FROM max(finished_at) - min(started_at))::float8 FROM job_results
"""


def run(server: Databases, plan: Plan) -> Iterator[Row]:
    jobs = plan.drain_rows
    with server.migrated() as url, processes.relay(url):

        def measured() -> dict[str, float]:
            return {
                "1 worker": _by_workers(url, 1, jobs),
                "2 workers": _by_workers(url, 2, jobs),
                "bare SQL, 1 connection": _by_sql(url, floor.alternate, jobs),
                "bare SQL, 2 connections": _by_sql(url, floor.overlap, jobs),
            }

        rates = repeated(plan.repeat, measured, "/s")
    yield from rates.values()
    one, two, alternate, overlap = rates.values()
    yield ratio("1 worker / bare SQL, 1 connection", one, alternate, 0.6)
    yield ratio("1 worker / bare SQL, 2 connections", one, overlap)
    yield ratio("2 workers / 1 worker", two, one)
    with server.migrated() as url, processes.relay(url):
        figures = repeated(plan.repeat, lambda: _cpu(url, plan), "µs")
    yield from cpu_rows("CPU a no-op job", figures)


def _cpu(url: str, plan: Plan) -> dict[str, float]:
    """CPU time for each job, of one worker and of its server, for each checkout in turn."""
    figures: dict[str, float] = {}
    for name, code in plan.code.items():
        with (
            backlog(url, plan.drain_rows) as commit,
            processes.worker(url, SLOTS, code=code) as worker,
            spent(worker.pid, url) as cpu,
        ):
            commit()
            rate(url, plan.drain_rows)
        figures[f"worker, {name}"] = cpu.process / plan.drain_rows
        figures[f"server, {name}"] = cpu.server / plan.drain_rows
    return figures


def _by_workers(url: str, workers: int, rows: int) -> float:
    """The throughput of workers. The whole backlog appears at once, when every worker is ready."""
    with backlog(url, rows) as commit, ExitStack() as stack:
        for _ in range(workers):
            stack.enter_context(processes.worker(url, SLOTS))
        commit()
        return rate(url, rows)


def _by_sql(url: str, drain: Callable[[str, str], None], rows: int) -> float:
    with backlog(url, rows) as commit:
        commit()
        drain(url, PRESET)
        return rate(url, rows)


@contextmanager
def backlog(url: str, rows: int, preset: str = PRESET) -> Iterator[Callable[[], None]]:
    """Insert jobs that are invisible until the yielded function is called."""
    empty(url)
    with psycopg.connect(url) as conn:
        fill(conn, preset, rows)

        def commit() -> None:
            conn.commit()
            conn.autocommit = True
            conn.execute("NOTIFY outrider_ready")

        yield commit


def rate(url: str, rows: int) -> float:
    """Jobs a second from the first start to the last end, by the database's clock."""
    with psycopg.connect(url, autocommit=True) as conn:
        # Polling costs the workers less than listening.
        if not eventually(
            lambda: conn.execute(UNFINISHED).fetchone() == (False,), DRAIN_SECONDS, POLL_SECONDS
        ):
            raise TimeoutError(f"{rows} jobs were not drained in {DRAIN_SECONDS:g} s")
        row = conn.execute(DRAINED).fetchone()
    assert row is not None
    drained, seconds = row
    if drained != rows:
        raise ValueError(f"{drained} results for {rows} jobs")
    return float(drained / seconds)
