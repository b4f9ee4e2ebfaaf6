"""CPU time of the calls that clients make most, with a log line for each: submit, read a finished job, submit many."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple
from uuid import UUID

import psycopg

from ops.bench import floor, processes, requests
from ops.bench.cpu import spent
from ops.bench.figures import Row, cpu_rows, repeated
from ops.bench.plan import Plan
from ops.bench.server import fill
from ops.harness.load import drive
from ops.harness.postgres import Databases

TITLE = "Calls over HTTP: CPU time (µs), and jobs a second by batches"
PRESET: Final = "noop"
BATCH: Final = 1000
BATCHED_GOAL: Final = 25_000.0


class Call(NamedTuple):
    """What is sent, on how many connections, the status of its answer, and the web process's CPU time at most."""

    name: str
    request: bytes
    connections: int
    status: int
    goal: float | None = None
    jobs: int = 1


def run(server: Databases, plan: Plan) -> Iterator[Row]:
    with server.migrated() as url, ExitStack() as stack:
        calls = (
            Call("a submission", requests.submission(PRESET), 64, 202, 110.0),
            Call("a read", requests.read(_finished(url)), 64, 200, 120.0),
            Call("a job of a batch", requests.batch(PRESET, BATCH), 4, 202, jobs=BATCH),
        )
        folder = Path(stack.enter_context(TemporaryDirectory()))
        webs = {
            name: stack.enter_context(
                processes.web(url, "group", code=code, log=folder / name, OUTRIDER_LOG_LEVEL="info")
            )
            for name, code in plan.code.items()
        }
        for call in calls:
            yield from _measured(call, webs, url, plan)


def _measured(call: Call, webs: dict[str, processes.Web], url: str, plan: Plan) -> Iterator[Row]:
    rates: list[float] = []
    # Of batches, few are answered in less.
    seconds = max(plan.submission_seconds, 1.0)

    def measured() -> dict[str, float]:
        figures: dict[str, float] = {}
        for name, web in webs.items():
            with spent(web.child.pid, url) as cpu:
                load = drive(web.port, call.connections, seconds, call.request, call.status)
            counted = load.answers * call.jobs
            figures |= {f"web, {name}": cpu.process / counted, f"server, {name}": cpu.server / counted}
            if name == "here":
                rates.append(load.rate * call.jobs)
        return figures

    figures = repeated(plan.repeat, measured, "µs")
    here = figures["web, here"]
    figures["web, here"] = replace(here, at_most=call.goal)
    yield from cpu_rows(call.name, figures)
    if call.jobs > 1:
        yield Row(f"{call.name}, jobs a second", rates, "/s", at_least=BATCHED_GOAL)


def _finished(url: str) -> UUID:
    """The id of a job that has its result."""
    with psycopg.connect(url, autocommit=True) as conn:
        fill(conn, PRESET, 1)
        floor.alternate(url, PRESET)
        [(job_id,)] = conn.execute("SELECT job_id FROM job_results").fetchall()
    return UUID(str(job_id))
