"""A rolling deploy of a pipeline module: `python -m ops.chaos.deploy optional|required [--jobs N]`.

The newer module's metadata model has one more member, optional or required. A web and a worker process of either
version run side by side, and clients hand jobs in to both web processes. With an optional member the older processes
leave once all jobs are handed in. With a required one they stay, because only they can read the older jobs. Every
promised job must be completed, unspent, and the invariants hold.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, LiteralString, NamedTuple

import aiohttp
import orjson

from engine.model import Reason
from engine.storage.connections import Connection, connect
from ops.bench import processes, requests
from ops.bench.server import bench_server
from ops.chaos.restarts import LEFT, until, verdict
from ops.harness.ports import HOST

SLOTS: Final = 10
CONNECTIONS: Final = 8
MODULE: Final = "shop"
PIPELINE: Final = """
from engine import Metadata, pipeline


class Order(Metadata):
    copies: int = 1
    {member}


@pipeline("order", metadata=Order)
async def order(job, run):
    return job.metadata.copies


pipelines = [order]
"""

UNREADABLE: LiteralString = "SELECT count(*) FROM job_state_records WHERE reason = %s"
CLAIMANTS: LiteralString = """
SELECT count(DISTINCT metadata ->> 'worker') FROM job_state_records WHERE to_state = 'PROCESSING'
"""


class Change(NamedTuple):
    """The member that the newer model has, its value in the jobs of newer clients, and whether older code may leave."""

    member: str
    value: dict[str, Any]
    older_leaves: bool


CHANGES: Final = {
    "optional": Change("gift: bool = False", {"gift": True}, older_leaves=True),
    "required": Change("colour: str", {"colour": "red"}, older_leaves=False),
}


class Version(NamedTuple):
    """The processes of one version: the port of the API, and what ends them."""

    port: int
    stack: ExitStack


def start(url: str, folder: Path, member: str) -> Version:
    """A web and a worker process whose module has `member` in its model."""
    folder.mkdir()
    (folder / f"{MODULE}.py").write_text(PIPELINE.format(member=member))
    stack = ExitStack()
    given = {"OUTRIDER_PIPELINES": MODULE, "PYTHONPATH": str(folder), "OUTRIDER_DRAIN_SECONDS": "5"}
    stack.enter_context(processes.worker(url, SLOTS, **given))
    return Version(
        stack.enter_context(processes.web(url, "group", MODULE, PYTHONPATH=str(folder))).port, stack
    )


async def hand_in(port: int, jobs: int, metadata: dict[str, Any]) -> list[str]:
    """Submit jobs over HTTP and return the ids. Raises if a submission is refused."""
    promised: list[str] = []
    remaining = iter(range(jobs))
    headers = requests.headers()

    async def client(session: aiohttp.ClientSession) -> None:
        for number in remaining:
            job = {"preset": "order", "content": "text", "metadata": {"copies": number} | metadata}
            async with session.post("/pipeline/run", data=orjson.dumps(job), headers=headers) as answer:
                answer.raise_for_status()
                promised.append((await answer.json())["job_id"])

    async with aiohttp.ClientSession(f"http://{HOST}:{port}") as session, asyncio.TaskGroup() as group:
        for _ in range(CONNECTIONS):
            group.create_task(client(session))
    return promised


async def run(url: str, folder: Path, change: Change, jobs: int) -> list[str]:
    """Run the scenario on the database at `url` and return what is wrong."""
    began = time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(processes.relay(url))
        older = await asyncio.to_thread(start, url, folder / "older", "")
        stack.callback(older.stack.close)
        newer = await asyncio.to_thread(start, url, folder / "newer", change.member)
        stack.callback(newer.stack.close)
        promised = await asyncio.gather(
            hand_in(older.port, jobs // 2, {}), hand_in(newer.port, jobs - jobs // 2, change.value)
        )
        if change.older_leaves:
            await asyncio.to_thread(older.stack.close)
        async with await connect(url, name="chaos") as conn:
            await until(conn, LEFT, lambda left: left == 0)
            print(f"{jobs} jobs of two versions: {time.monotonic() - began:.1f} s")
            return await verdict(conn, [job for ids in promised for job in ids]) + await _shown(conn)


async def _shown(conn: Connection) -> list[str]:
    """Why the run shows nothing, if it does."""
    [(unreadable,)] = await (await conn.execute(UNREADABLE, [Reason.UNREADABLE])).fetchall()
    [(workers,)] = await (await conn.execute(CLAIMANTS)).fetchall()
    print(f"attempts that found metadata unreadable: {unreadable}; workers: {workers}")
    return [] if unreadable and workers == len(("older", "newer")) else ["the versions have not met"]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ops.chaos.deploy")
    parser.add_argument("change", choices=CHANGES)
    parser.add_argument("--jobs", type=int, default=2000)
    asked = parser.parse_args(arguments)
    with bench_server() as server, server.migrated() as url, TemporaryDirectory() as folder:
        wrong = asyncio.run(run(url, Path(folder), CHANGES[asked.change], asked.jobs))
    for line in wrong:
        print(f"WRONG: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
