"""Pick-up latency on an idle system: from the commit of a job to the first line of its pipeline.

A job comes by HTTP, by the library on a connection of an application, or by the SQL function.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from typing import Any, Final, LiteralString

import psycopg
from psycopg import Connection

from engine import NewJob, enqueue
from ops.bench import processes, requests
from ops.bench.figures import Row, repeated
from ops.bench.plan import Plan
from ops.harness.load import percentile
from ops.harness.ports import HOST
from ops.harness.postgres import Databases

TITLE = "Pick-up on an idle system: web, relay and worker in processes of their own"
PRESET: Final = "clock"
SLOTS: Final = 10
PAUSE_SECONDS: Final = (0.02, 0.05)
WARM: Final = 20
ANSWER_SECONDS: Final = 10.0

COMMITS: LiteralString = """
CREATE TABLE bench_commits AS SELECT * FROM unnest(%s::uuid[], %s::float8[]) AS x(job_id, committed)
"""

# Milliseconds from the commit to the start. The first column takes the time at which whoever enqueued had the commit
# acknowledged, the second PostgreSQL's own commit time, which is before the flush to disk. The pipeline itself reads
# the time of its start.
LATENCIES: LiteralString = """
SELECT 1000 * (r.output::text::float8 - c.committed),
       1000 * (r.output::text::float8 - extract(epoch FROM pg_xact_commit_timestamp(j.xmin))::float8)
FROM bench_commits c JOIN jobs j ON j.id = c.job_id JOIN job_results r ON r.job_id = c.job_id
ORDER BY c.committed
"""


Enqueue = Callable[[Connection[Any]], Any]
"""Enqueues a job of PRESET and returns its id, in a transaction of its own."""


def _by_library(conn: Connection[Any]) -> Any:
    return enqueue(conn, NewJob(user_id="bench", preset=PRESET, content="text")).id


def _by_sql(conn: Connection[Any]) -> Any:
    [row] = conn.execute("SELECT outrider_enqueue('bench', %s, 'text')", [PRESET]).fetchall()
    return row[0]


def run(server: Databases, plan: Plan) -> Iterator[Row]:
    rows = repeated(plan.repeat, lambda: _compared(server, plan.pickups), "ms")
    for way in ("http", "library", "sql"):
        yield Row(f"commit to start, p50, {way}", rows[f"{way} p50"].samples, "ms", at_most=1.5)
        yield Row(f"commit to start, p99, {way}", rows[f"{way} p99"].samples, "ms", at_most=6.0)
    yield Row("with the flush of that commit, p50, http", rows["http flushed p50"].samples, "ms")
    yield Row("with the flush of that commit, p99, http", rows["http flushed p99"].samples, "ms")


def _compared(server: Databases, count: int) -> dict[str, float]:
    figures = {f"http {name}": value for name, value in measured(server, count).items()}
    ways: dict[str, Enqueue] = {"library": _by_library, "sql": _by_sql}
    for way, submit in ways.items():
        figures |= {f"{way} {name}": value for name, value in enqueued(server, count, submit).items()}
    return figures


def measured(server: Databases, count: int, preset: str = PRESET) -> dict[str, float]:
    """Milliseconds until a job of `preset`, which returns the time of its start, runs. It comes by HTTP."""
    with server.migrated() as url:
        with processes.relay(url), processes.worker(url, SLOTS), processes.web(url, "timed") as web:
            _submit(web.port, WARM + count, preset)
        return _figures(url, count)


def enqueued(server: Databases, count: int, submit: Enqueue) -> dict[str, float]:
    """As `measured`, for jobs that an application enqueues on its own connection."""
    with server.migrated() as url:
        with (
            psycopg.connect(url, autocommit=True) as conn,
            processes.relay(url),
            processes.worker(url, SLOTS),
        ):
            ids, commits = [], []
            for _ in range(WARM + count):
                ids.append(submit(conn))
                commits.append(time.time())
                _rest()
            conn.execute(COMMITS, [ids, commits])
        return _figures(url, count)


def _figures(url: str, count: int) -> dict[str, float]:
    with psycopg.connect(url) as conn:
        latencies = conn.execute(LATENCIES).fetchall()
    if len(latencies) < WARM + count:
        raise ValueError(f"only {len(latencies)} of {WARM + count} jobs ended")
    commit, flush = zip(*latencies[WARM:], strict=True)
    return {
        "p50": percentile(commit, 0.5),
        "p99": percentile(commit, 0.99),
        "flushed p50": percentile(flush, 0.5),
        "flushed p99": percentile(flush, 0.99),
    }


def _submit(port: int, count: int, preset: str) -> None:
    """Send one request at a time, at uneven intervals: even ones could fall in step with another period."""
    connection = HTTPConnection(HOST, port, timeout=ANSWER_SECONDS)
    headers, body = requests.headers(), requests.body(preset)
    for _ in range(count):
        connection.request("POST", "/pipeline/run", body, headers)
        response = connection.getresponse()
        answer = response.read()
        if response.status != 202:
            raise ValueError(f"{response.status}: {answer!r}")
        _rest()
    connection.close()


def _rest() -> None:
    # The system must be idle between two jobs. The pause is no secret.
    time.sleep(random.uniform(*PAUSE_SECONDS))  # noqa: S311
