"""Restarts workers under load: `python -m ops.chaos.restarts [--jobs N] [--connections N] [--restarts N] [--drain N]`.

Clients submit jobs over HTTP and keep the ids. While jobs run, both workers are stopped by SIGTERM and started again.
Afterwards every accepted job must be completed without an error or a crash, and the invariants must hold.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any, Final, LiteralString

import aiohttp

from engine.queries import invariants
from engine.storage.connections import Connection, connect
from ops.bench import processes, requests
from ops.bench.server import bench_server
from ops.harness.ports import HOST

PIPELINES: Final = "ops.chaos.pipelines"
PRESET: Final = "pause"
SLOTS: Final = 50
WORKERS: Final = 2
MAX_ATTEMPTS: Final = 5
POLL_SECONDS: Final = 0.1
END_SECONDS: Final = 300.0

LEFT: LiteralString = "SELECT count(*) FROM outbox"
FINISHED: LiteralString = "SELECT count(*) FROM job_results"
ENDS: LiteralString = """
SELECT state::text, errors, crashes, attempt > 1, count(*) FROM job_results
WHERE job_id = ANY (%s::uuid[]) GROUP BY 1, 2, 3, 4
"""


class Workers:
    """Worker processes that can be stopped and started again."""

    def __init__(self, url: str, drain_seconds: float) -> None:
        self._url = url
        self._settings = {"OUTRIDER_PIPELINES": PIPELINES, "OUTRIDER_DRAIN_SECONDS": f"{drain_seconds:g}"}
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        for _ in range(WORKERS):
            worker = processes.worker(self._url, SLOTS, **self._settings)
            await asyncio.to_thread(worker.__enter__)
            self._stack.push_async_callback(asyncio.to_thread, worker.__exit__, None, None, None)

    async def stop(self) -> None:
        """Send SIGTERM to one worker after the other, and wait for the end of each."""
        await self._stack.aclose()
        self._stack = AsyncExitStack()


async def hand_in(port: int, jobs: int, connections: int) -> list[str]:
    """Submit jobs over HTTP and return the ids. Raises if a submission is refused."""
    promised: list[str] = []
    remaining = iter(range(jobs))
    sent, headers = requests.body(PRESET), requests.headers()

    async def client(session: aiohttp.ClientSession) -> None:
        for _ in remaining:
            async with session.post("/pipeline/run", data=sent, headers=headers) as answer:
                answer.raise_for_status()
                promised.append((await answer.json())["job_id"])

    connector = aiohttp.TCPConnector(limit=connections)
    address = f"http://{HOST}:{port}"
    async with aiohttp.ClientSession(address, connector=connector) as session, asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(client(session))
    return promised


async def restart_while_running(conn: Connection, workers: Workers, jobs: int, restarts: int) -> None:
    """Restart the workers at even shares of the finished jobs."""
    for turn in range(1, restarts + 1):
        await until(conn, FINISHED, lambda done, share=jobs * turn // (restarts + 1): done >= share)
        await workers.stop()
        await workers.start()


async def verdict(conn: Connection, promised: Sequence[str]) -> list[str]:
    """Print the results, and return what is wrong, one line each."""
    rows = await (await conn.execute(ENDS, [list(promised)])).fetchall()
    ends = Counter({(state, errors, crashes): 0 for state, errors, crashes, _, _ in rows})
    for state, errors, crashes, again, jobs in rows:
        ends[state, errors, crashes] += jobs
        print(f"{jobs} {state}, errors {errors}, crashes {crashes}{', after a release' if again else ''}")
    wrong = [f"{jobs} jobs {end}" for end, jobs in ends.items() if end != ("COMPLETED", 0, 0)]
    if ends.total() != len(promised):
        wrong.append(f"{len(promised) - ends.total()} of {len(promised)} accepted jobs have no result")
    report = await invariants.report(conn, {PRESET: MAX_ATTEMPTS})
    print(f"invariants checked on {report.jobs} jobs: {len(report.findings)} broken")
    return wrong + [f"{finding.invariant.name}: {finding.offenders}" for finding in report.findings]


async def run(url: str, jobs: int, connections: int, restarts: int, drain_seconds: float) -> list[str]:
    """Run the scenario on the database at `url` and return what is wrong."""
    began = time.monotonic()
    async with AsyncExitStack() as stack:
        conn = await stack.enter_async_context(await connect(url, name="chaos"))
        stack.enter_context(processes.relay(url))
        port = stack.enter_context(processes.web(url, "group", PIPELINES)).port
        workers = Workers(url, drain_seconds)
        stack.push_async_callback(workers.stop)
        await workers.start()
        async with asyncio.timeout(END_SECONDS), asyncio.TaskGroup() as group:
            handing_in = group.create_task(hand_in(port, jobs, connections))
            group.create_task(restart_while_running(conn, workers, jobs, restarts))
        await until(conn, LEFT, lambda left: left == 0)
        print(
            f"{jobs} jobs, {connections} connections, {restarts} restarts: {time.monotonic() - began:.1f} s"
        )
        return await verdict(conn, handing_in.result())


async def until(conn: Connection, statement: LiteralString, enough: Any) -> None:
    """Wait for a figure that is `enough`. Raises TimeoutError."""
    deadline = time.monotonic() + END_SECONDS
    while True:
        row = await (await conn.execute(statement)).fetchone()
        if row is not None and enough(row[0]):
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"{statement}: still {row}")
        await asyncio.sleep(POLL_SECONDS)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ops.chaos.restarts")
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--restarts", type=int, default=2)
    parser.add_argument(
        "--drain", type=float, default=2.0, help="seconds that running jobs have to finish; 0 releases them"
    )
    asked = parser.parse_args(arguments)
    with bench_server() as server, server.migrated() as url:
        wrong = asyncio.run(run(url, asked.jobs, asked.connections, asked.restarts, asked.drain))
    for line in wrong:
        print(f"WRONG: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
