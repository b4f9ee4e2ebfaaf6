"""The cost of metrics and of a log file at INFO, against neither. Tracing is off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from ops.bench import processes, requests
from ops.bench.drain import SLOTS, backlog, rate
from ops.bench.figures import Row, ratio, repeated
from ops.bench.plan import Plan
from ops.harness.load import drive
from ops.harness.postgres import Databases

TITLE = "Metrics and a log at INFO in a file, against neither (jobs/s)"
CONNECTIONS: Final = 64
DEFAULT_SLOTS: Final = 10
SHORT_SHARE: Final = 8
"""Jobs of 5 ms in ten slots take longer than no-op jobs in 500 slots, so this many times fewer are measured."""

Observed = dict[str, Any]


def run(server: Databases, plan: Plan) -> Iterator[Row]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="outrider-bench-")))
        url = stack.enter_context(server.migrated())
        stack.enter_context(processes.relay(url))
        how: dict[str, Observed] = {
            "observed": {"log": folder / "log", "OUTRIDER_LOG_LEVEL": "info"},
            "dark": {"dark": True, "OUTRIDER_LOG_LEVEL": "error"},
        }

        def submissions(observed: Observed) -> float:
            with processes.web(url, "group", **observed) as web:
                return drive(web.port, CONNECTIONS, plan.submission_seconds, requests.submission("noop")).rate

        def noop(observed: Observed) -> float:
            return _drained(url, "noop", plan.drain_rows, processes.worker(url, SLOTS, **observed))

        def short(observed: Observed) -> float:
            rows = plan.drain_rows // SHORT_SHARE
            return _drained(url, "short", rows, processes.worker(url, DEFAULT_SLOTS, **observed))

        yield from _compared("submissions", submissions, how, plan, 0.8)
        yield from _compared("no-op jobs", noop, how, plan, 0.8)
        yield from _compared("jobs of 5 ms, 10 at once", short, how, plan, 0.95)


def _compared(
    name: str, measure: Callable[[Observed], float], how: dict[str, Observed], plan: Plan, goal: float
) -> Iterator[Row]:
    rates = repeated(plan.repeat, lambda: {kind: measure(observed) for kind, observed in how.items()}, "/s")
    yield from (Row(f"{name}, {kind}", row.samples, row.unit) for kind, row in rates.items())
    yield ratio(f"{name}, observed / dark", rates["observed"], rates["dark"], goal)


def _drained(url: str, preset: str, rows: int, worker: AbstractContextManager[object]) -> float:
    with backlog(url, rows, preset) as commit, worker:
        commit()
        return rate(url, rows)
