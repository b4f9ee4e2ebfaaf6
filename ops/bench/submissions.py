"""Submissions a second over real HTTP: group commit, a transaction a request, and the application without a store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from ops.bench import processes, requests
from ops.bench.cpu import spent
from ops.bench.figures import Row, cpu_rows, ratio, repeated
from ops.bench.plan import Plan
from ops.harness.load import drive
from ops.harness.postgres import Databases

TITLE = "Submissions over HTTP, answered once committed (jobs/s)"
STORES = {"group": "group commit", "single": "a transaction a request", "stub": "no store"}
COMPARED = 64
"""The number of connections at which the goals hold."""


def run(server: Databases, plan: Plan) -> Iterator[Row]:
    with ExitStack() as stack:
        url = stack.enter_context(server.migrated())
        webs = {store: stack.enter_context(processes.web(url, store)) for store in STORES}
        ports = {store: web.port for store, web in webs.items()}
        request = requests.submission("noop")
        for connections in plan.connections:
            yield from _compared(ports, connections, plan, request)
    with server.migrated() as url:
        yield from _cpu(url, plan, request)


def _cpu(url: str, plan: Plan, request: bytes) -> Iterator[Row]:
    """CPU time for each submission, for each checkout in turn."""
    with ExitStack() as stack:
        webs = {
            name: stack.enter_context(processes.web(url, "group", code=code))
            for name, code in plan.code.items()
        }

        def measured() -> dict[str, float]:
            figures: dict[str, float] = {}
            for name, web in webs.items():
                with spent(web.child.pid, url) as cpu:
                    load = drive(web.port, COMPARED, plan.submission_seconds, request)
                figures |= {
                    f"web, {name}": cpu.process / load.answers,
                    f"server, {name}": cpu.server / load.answers,
                }
            return figures

        figures = repeated(plan.repeat, measured, "µs")
    yield from cpu_rows("CPU a submission", figures)


def _compared(ports: dict[str, int], connections: int, plan: Plan, request: bytes) -> Iterator[Row]:
    latency: list[tuple[float, float]] = []

    def measured() -> dict[str, float]:
        loads = {
            store: drive(port, connections, plan.submission_seconds, request) for store, port in ports.items()
        }
        latency.append((loads["group"].p50, loads["group"].p99))
        return {store: load.rate for store, load in loads.items()}

    rates = repeated(plan.repeat, measured, "/s")
    at = f"{connections:>3} connection{'s' if connections > 1 else ' '}"
    for store, name in STORES.items():
        yield Row(f"{at}  {name}", rates[store].samples, "/s")
    goals: tuple[float | None, float | None] = (None, None)
    if connections == COMPARED:
        goals = (2.0, 0.45)
        yield Row(f"{at}  group commit, p50", [p50 for p50, _ in latency], "ms")
        yield Row(f"{at}  group commit, p99", [p99 for _, p99 in latency], "ms")
    yield ratio(f"{at}  group commit / a transaction a request", rates["group"], rates["single"], goals[0])
    yield ratio(f"{at}  group commit / no store", rates["group"], rates["stub"], goals[1])
