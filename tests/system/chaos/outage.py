"""The broker away while jobs flow: `python -m tests.system.chaos.outage [--seconds S] [--rate N] [--broker KIND]`.

Jobs are handed in over HTTP at a steady rate, before, while and after the broker is gone. The fake keeps its topics;
the emulator is killed, and `outrider provision` makes them anew.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any, Final, LiteralString, NamedTuple

import aiohttp
import orjson
from joserfc import jwt
from joserfc.jwk import OctKey

from engine.storage.connections import Connection, connect
from ops.bench.server import bench_server
from ops.harness.ports import free_port
from ops.waiting import until
from tests.system.chaos.fleet import Fleet, Kind, Process, open_fleet

SLOTS: Final = 50
CALM_SECONDS: Final = 5.0
"""How long jobs flow before the broker goes, and are normal after its return before that is believed."""
LATE_SECONDS: Final = 15.0
NORMAL_SECONDS: Final = 2.0
RETURN_SECONDS: Final = 30.0
END_SECONDS: Final = 60.0
FEW: Final = 20
"""Lines at warning or above that one process may write."""
SECRET: Final = "an HS256 secret that is long enough"

# The 99th percentile, from acceptance to result, of the jobs accepted between two times; what is not finished counts
# as long as it has waited.
LATENCY: LiteralString = """
SELECT count(*), count(r.job_id),
       coalesce(percentile_cont(0.99) WITHIN GROUP (
           ORDER BY extract(epoch FROM coalesce(r.finished_at, clock_timestamp()) - j.created_at)), 0)
FROM jobs j LEFT JOIN job_results r ON r.job_id = j.id
WHERE j.created_at >= to_timestamp(%s) AND j.created_at < to_timestamp(%s)
"""
LEFT: LiteralString = "SELECT (SELECT count(*) FROM outbox) + (SELECT count(*) FROM outbox_events)"


class Span(NamedTuple):
    jobs: int
    finished: int
    p99: float


class Clients:
    """Hand in jobs at a rate, whatever becomes of the ones before."""

    def __init__(self, port: int, rate: float) -> None:
        self._address = f"http://127.0.0.1:{port}"
        self._rate = rate
        self.accepted = 0
        self.refused: list[str] = []

    async def flow(self) -> None:
        token = jwt.encode(
            {"alg": "HS256"}, {"sub": "ann", "exp": int(time.time()) + 3600}, OctKey.import_key(SECRET)
        )
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        body = orjson.dumps({"preset": "moment", "content": "text"})
        began, sent = time.monotonic(), 0
        async with (
            aiohttp.ClientSession(self._address, timeout=aiohttp.ClientTimeout(total=30)) as session,
            asyncio.TaskGroup() as group,
        ):
            while True:
                while sent < (time.monotonic() - began) * self._rate:
                    group.create_task(self._post(session, body, headers))
                    sent += 1
                await asyncio.sleep(1 / self._rate)  # the pace that clients keep

    async def _post(self, session: aiohttp.ClientSession, body: bytes, headers: dict[str, str]) -> None:
        try:
            async with session.post("/pipeline/run", data=body, headers=headers) as answer:
                if answer.status == 202:
                    self.accepted += 1
                else:
                    self.refused.append(f"{answer.status} {await answer.text()}")
        except (aiohttp.ClientError, TimeoutError) as error:
            self.refused.append(repr(error))


class View:
    """What can be seen of it: latencies in the database, and what the worker counts."""

    def __init__(self, conn: Connection, worker: Process, calm: float) -> None:
        self._conn = conn
        self._worker = worker
        self._calm = calm

    async def between(self, begin: float, end: float) -> Span:
        [row] = await (await self._conn.execute(LATENCY, [begin, end])).fetchall()
        return Span(*row)

    async def taken(self) -> tuple[float, float]:
        """How many jobs came by messages, and how many by the fallback."""
        metrics = await self._worker.metrics()
        return metrics["outrider_messages_total"], metrics.get("outrider_fallback_claims_total", 0.0)

    async def normal_after(self, back: float) -> float:
        """Wait until all jobs of some seconds have come by messages, and in time; gives when those began."""
        while time.time() - back < END_SECONDS:
            begin, (messages, fallbacks) = time.time(), await self.taken()
            while time.time() < begin + self._calm:
                await asyncio.sleep(0.5)
                if (await self.taken())[1] > fallbacks:
                    break
            else:
                span = await self.between(begin, time.time())
                more, _ = await self.taken()
                if span.p99 < NORMAL_SECONDS and more - messages >= span.finished > 0:
                    return begin - back
        return END_SECONDS


@asynccontextmanager
async def _flowing(clients: Clients) -> AsyncIterator[None]:
    flow = asyncio.create_task(clients.flow())
    try:
        yield
    finally:
        flow.cancel()
        await asyncio.gather(flow, return_exceptions=True)


async def run(url: str, seconds: float, rate: float, kind: Kind, *, calm: float = CALM_SECONDS) -> list[str]:
    """Play the scene on the database that `url` names; returns what is wrong."""
    port = free_port()
    settings: dict[str, Any] = {
        "PIPELINES": "tests.system.chaos.pipelines",
        "WORKER_CONCURRENCY": SLOTS,
        "JWT_SECRET": SECRET,
    }
    async with (
        await connect(url, name="chaos") as conn,
        open_fleet(url, kind, **settings) as (fleet, broker),
    ):
        await fleet.start("web", HTTP_PORT=port)
        await fleet.start("relay")
        view = View(conn, await fleet.start("worker"), calm)
        clients = Clients(port, rate)
        async with _flowing(clients):
            times = [time.time()]
            await asyncio.sleep(calm)
            times.append(time.time())
            await broker.stop()
            await asyncio.sleep(seconds)
            await broker.start()
            if kind == "emulator":
                await fleet.provision()
            times.append(time.time())
            normal = await view.normal_after(times[-1])
        times.append(time.time())
        await until(lambda: _nothing_left(conn), END_SECONDS)
        spans = [await view.between(*pair) for pair in pairwise(times)]
        return verdict(clients, spans, normal, await view.taken(), fleet)


async def _nothing_left(conn: Connection) -> bool:
    [(left,)] = await (await conn.execute(LEFT)).fetchall()
    return bool(left == 0)


def verdict(
    clients: Clients, spans: Sequence[Span], normal: float, taken: tuple[float, float], fleet: Fleet
) -> list[str]:
    """What is wrong, a line each; prints what was found."""
    told = ", ".join(
        f"{when} {span.p99:.2f} s" for when, span in zip(("before", "away", "after"), spans, strict=True)
    )
    print(f"{clients.accepted} jobs accepted, {len(clients.refused)} refused; p99 {told}")
    print(f"normal {normal:.1f} s after the return; {taken[0]:.0f} messages, {taken[1]:.0f} fallback claims")
    for process in fleet.processes:
        print(f"{process.name}: {dict(process.loud())}")
    checks: list[tuple[str, Callable[[], bool]]] = [
        (f"POSTs failed: {clients.refused[:3]}", lambda: not clients.refused),
        ("jobs are missing", lambda: all(span.jobs == span.finished for span in spans)),
        ("jobs finished late", lambda: all(span.p99 <= LATE_SECONDS for span in spans)),
        ("nothing came by the fallback", lambda: taken[1] > 0),
        ("it was not normal again in time", lambda: normal <= RETURN_SECONDS),
        ("the log is a flood", lambda: all(each.loud().total() <= FEW for each in fleet.processes)),
    ]
    return [wrong for wrong, right in checks if not right()]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.system.chaos.outage")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the broker is away")
    parser.add_argument("--rate", type=float, default=200.0, help="jobs a second")
    parser.add_argument("--broker", choices=["fake", "emulator"], default="fake")
    asked = parser.parse_args(arguments)
    with bench_server() as server, server.migrated() as url:
        wrong = asyncio.run(run(url, asked.seconds, asked.rate, asked.broker))
    for line in wrong:
        print(f"WRONG: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
