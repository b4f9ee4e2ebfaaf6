"""A rolling upgrade: `python -m ops.chaos.upgrade BEFORE [--jobs N] [--transport postgres|pubsub]`.

BEFORE is a clone of an older commit with its virtual environment. Its web, relay and worker processes start on their
own schema; this code's migrations are applied under them, and this code's processes join. Clients hand jobs in to both
web processes all the while. Every promised job must be completed, unspent, by workers of both, and the invariants hold.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, LiteralString

import migrations
from engine.pubsub.client import EMULATOR, names
from engine.settings import load
from engine.storage.connections import Connection, connect
from ops.bench import brokers, processes
from ops.bench.processes import HERE, Checkout
from ops.bench.server import bench_server
from ops.chaos.restarts import LEFT, PIPELINES, SLOTS, hand_in, until, verdict
from relay.provision.apply import open_clients, provision

CONNECTIONS: Final = 8
PROJECT: Final = "upgrade"

CLAIMS: LiteralString = """
SELECT (metadata ->> 'worker')::bigint AS worker, count(*) FROM job_state_records
WHERE to_state = 'PROCESSING' GROUP BY 1 ORDER BY 1
"""
RELAYS: LiteralString = "SELECT count(DISTINCT relay) FROM relay_status"


@contextmanager
def _broker(transport: str) -> Iterator[dict[str, str]]:
    """What the processes' environment needs of a broker with its topics; nothing in Postgres mode."""
    if transport == "postgres":
        yield {}
        return
    with brokers.fake() as host:
        settings = {"OUTRIDER_TRANSPORT": "pubsub", "OUTRIDER_PUBSUB_PROJECT": PROJECT}
        os.environ[EMULATOR] = host
        asyncio.run(_provision(settings))
        yield settings | {EMULATOR: host}


async def _provision(settings: dict[str, str]) -> None:
    async with open_clients() as clients:
        async for _ in provision(clients, names(load(settings))):
            pass


@contextmanager
def _processes(url: str, code: Checkout, settings: dict[str, Any]) -> Iterator[int]:
    """A relay, a worker and a web process of a checkout; gives the port of the API."""
    given = {"code": code, **settings}
    with ExitStack() as stack:
        stack.enter_context(processes.relay(url, **given))
        pipelines = {"OUTRIDER_PIPELINES": PIPELINES, "OUTRIDER_DRAIN_SECONDS": "5"}
        stack.enter_context(processes.worker(url, SLOTS, **given, **pipelines))
        yield stack.enter_context(processes.web(url, "group", PIPELINES, **given)).port


def run(url: str, before: Checkout, jobs: int, transport: str) -> list[str]:
    """Upgrade under load on the empty database that `url` names; returns what is wrong."""
    environ = {**os.environ, "OUTRIDER_DATABASE_URL": url}
    migrate = [before.python, "-m", "ops.cli", "migrate", "up"]
    subprocess.run(migrate, cwd=before.folder, env=environ, check=True, stdout=subprocess.DEVNULL)
    with ExitStack() as stack:
        settings = stack.enter_context(_broker(transport))
        older = stack.enter_context(_processes(url, before, settings))
        promised = asyncio.run(hand_in(older, jobs // 4, CONNECTIONS))
        print(f"{len(promised)} jobs handed in before the schema; applied: {', '.join(migrations.up(url))}")
        newer = stack.enter_context(_processes(url, HERE, settings))
        return asyncio.run(_finish(url, (older, newer), promised, jobs))


async def _finish(url: str, ports: Sequence[int], promised: list[str], jobs: int) -> list[str]:
    async with await connect(url, name="chaos") as conn:
        each = (jobs - len(promised)) // len(ports)
        for ids in await asyncio.gather(*(hand_in(port, each, CONNECTIONS) for port in ports)):
            promised += ids
        await until(conn, LEFT, lambda left: left == 0)
        workers = await _rows(conn, CLAIMS)
        [(relays,)] = await _rows(conn, RELAYS)
        print("claims by worker: " + ", ".join(f"{worker}: {count}" for worker, count in workers))
        wrong = await verdict(conn, promised)
    if len(workers) < len(ports):
        wrong.append(f"workers of {len(ports)} versions were there, and {len(workers)} claimed")
    if relays < len(ports):
        wrong.append(f"relays of {len(ports)} versions were there, and {relays} reported")
    return wrong


async def _rows(conn: Connection, statement: LiteralString) -> list[tuple[Any, ...]]:
    return await (await conn.execute(statement)).fetchall()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ops.chaos.upgrade")
    parser.add_argument("before", type=Path, help="a clone of the older commit")
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--transport", choices=["postgres", "pubsub"], default="postgres")
    asked = parser.parse_args(arguments)
    with bench_server() as server:
        name = server.create()
        wrong = run(server.url(name), Checkout.at(asked.before), asked.jobs, asked.transport)
        server.drop(name)
    for line in wrong:
        print(f"WRONG: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
