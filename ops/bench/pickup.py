"""Pick-up latency on an idle system: from the commit of a submission to the first line of its pipeline."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Final, LiteralString

import psycopg

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

# Milliseconds from the commit to the start. The first column takes the time at which web had the commit acknowledged,
# the second PostgreSQL's own commit time, which is before the flush to disk. The pipeline itself reads the start time.
LATENCIES: LiteralString = """
SELECT 1000 * (r.output::text::float8 - c.committed),
       1000 * (r.output::text::float8 - extract(epoch FROM pg_xact_commit_timestamp(j.xmin))::float8)
FROM bench_commits c JOIN jobs j ON j.id = c.job_id JOIN job_results r ON r.job_id = c.job_id
ORDER BY c.committed
"""


def run(server: Databases, plan: Plan) -> Iterator[Row]:
    rows = repeated(plan.repeat, lambda: measured(server, plan.pickups), "ms")
    yield Row("commit to start, p50", rows["p50"].samples, "ms", at_most=3.0)
    yield Row("commit to start, p99", rows["p99"].samples, "ms", at_most=15.0)
    yield Row("with the flush of that commit, p50", rows["flushed p50"].samples, "ms")
    yield Row("with the flush of that commit, p99", rows["flushed p99"].samples, "ms")


def measured(server: Databases, count: int, preset: str = PRESET) -> dict[str, float]:
    """Milliseconds until a job of `preset`, which returns the time of its start, runs."""
    with server.migrated() as url:
        with processes.relay(url), processes.worker(url, SLOTS), processes.web(url, "timed") as web:
            _submit(web.port, WARM + count, preset)
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
        # The system must be idle between two jobs. The pause is no secret.
        time.sleep(random.uniform(*PAUSE_SECONDS))  # noqa: S311
    connection.close()
