"""Pick-up latency on an idle system: from the commit of a submission to the first line of its pipeline."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPConnection
from typing import Final, LiteralString

import psycopg

from ops.bench import processes, requests
from ops.bench.figures import Row, percentile, repeated
from ops.bench.plan import Plan
from ops.bench.server import Server, empty

TITLE = "Pick-up on an idle system: web, relay and worker in processes of their own"
PRESET: Final = "clock"
SLOTS: Final = 10
PAUSE_SECONDS: Final = (0.02, 0.05)
WARM: Final = 20
SETTLE_SECONDS: Final = 10.0

# The commit's time is taken before its flush to disk, so this latency contains that flush. The start is the clock
# that the pipeline itself read.
LATENCIES: LiteralString = """
SELECT 1000 * (r.output::text::float8 - extract(epoch FROM pg_xact_commit_timestamp(j.xmin))::float8)
FROM jobs j JOIN job_results r ON r.job_id = j.id
ORDER BY j.created_at
"""


def run(server: Server, plan: Plan) -> Iterator[Row]:
    with ExitStack() as stack:
        url = stack.enter_context(server.database())
        stack.enter_context(processes.relay(url))
        stack.enter_context(processes.worker(url, SLOTS))
        port = stack.enter_context(processes.web(url, "group"))
        rows = repeated(plan.repeat, lambda: _measured(url, port, plan.pickups), "ms")
    yield Row("commit to start, p50", rows["p50"].samples, "ms", at_most=3.0)
    yield Row("commit to start, p99", rows["p99"].samples, "ms", at_most=15.0)


def _measured(url: str, port: int, count: int) -> dict[str, float]:
    with psycopg.connect(url, autocommit=True) as conn:
        empty(conn)
        _submit(port, WARM + count)
        deadline = time.monotonic() + SETTLE_SECONDS
        while len(latencies := [float(row[0]) for row in conn.execute(LATENCIES)]) < WARM + count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"only {len(latencies)} of {WARM + count} jobs ended")
            time.sleep(0.05)
    steady = latencies[WARM:]
    return {"p50": percentile(steady, 0.5), "p99": percentile(steady, 0.99)}


def _submit(port: int, count: int) -> None:
    """One request at a time, at uneven intervals: an even one could fall in step with something else's period."""
    connection = HTTPConnection(processes.HOST, port, timeout=SETTLE_SECONDS)
    headers, body = requests.headers(), requests.body(PRESET)
    for _ in range(count):
        connection.request("POST", "/pipeline/run", body, headers)
        response = connection.getresponse()
        answer = response.read()
        if response.status != 202:
            raise ValueError(f"{response.status}: {answer!r}")
        time.sleep(random.uniform(*PAUSE_SECONDS))  # noqa: S311
    connection.close()
