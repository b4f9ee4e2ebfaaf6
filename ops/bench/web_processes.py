"""Submissions a second of one web process, and of several on one port."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from ops.bench import processes, requests
from ops.bench.cpu import spent
from ops.bench.figures import Row, ratio, repeated
from ops.bench.plan import Plan
from ops.harness.load import drive
from ops.harness.postgres import Databases

TITLE = "Web processes on one port, 64 connections"
CONNECTIONS = 64
COUNTS = (1, 2)


def run(server: Databases, plan: Plan) -> Iterator[Row]:
    request = requests.submission("noop")
    with ExitStack() as stack:
        url = stack.enter_context(server.migrated())
        webs = {count: stack.enter_context(processes.webs(url, count)) for count in COUNTS}

        def rates() -> dict[str, float]:
            figures: dict[str, float] = {}
            for count, web in webs.items():
                with spent(web.child.pid, url) as cpu:
                    load = drive(web.port, CONNECTIONS, plan.submission_seconds, request)
                figures |= {
                    f"submissions, {count}": load.rate,
                    f"CPU of web, {count}": cpu.family / load.answers,
                    f"CPU of the server, {count}": cpu.server / load.answers,
                }
            return figures

        found = repeated(plan.repeat, rates, "")
    for name, row in found.items():
        unit = "/s" if name.startswith("submissions") else "µs"
        yield Row(f"{name} {'process' if name.endswith(' 1') else 'processes'}", row.samples, unit)
    one, several = (found[f"submissions, {count}"] for count in COUNTS)
    yield ratio("submissions, 2 processes / 1", several, one)
