"""Results as a stranger reads them: `python -m tests.system.acceptance.results [--jobs 2000] [--broker emulator]`.

Jobs go in over HTTP and run in processes of their own; Google's own high-level subscriber reads what is announced.
A tenth of the jobs fail for good, and are redriven once their cause is fixed.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import aiohttp
import grpc
import orjson
from google.cloud.pubsub_v1 import SubscriberClient
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from engine.settings import load
from ops.bench.server import bench_server
from ops.cli.context import sign
from ops.harness.ports import free_port
from ops.waiting import until
from tests.system.chaos.fleet import PROJECT, Fleet, Kind, open_fleet

SECRET: Final = "this secret signs the tokens of one test"
BATCH: Final = 100
FAILING: Final = 10
"""One job of so many."""
SECONDS: Final = 180.0
QUIET_SECONDS: Final = 3.0
TOPICS: Final = ("pipeline-results", "pipeline-dlq")


class Subscriber:
    """Everything that Google's subscriber was given: message id → how often, and the body."""

    def __init__(self) -> None:
        self.seen: dict[str, Counter[str]] = {topic: Counter() for topic in TOPICS}
        self.bodies: dict[str, dict[str, dict[str, Any]]] = {topic: {} for topic in TOPICS}
        self._lock = threading.Lock()

    def note(self, topic: str, message: Any) -> None:
        """Called from the client's own threads."""
        name = message.attributes["message_id"]
        with self._lock:
            self.seen[topic][name] += 1
            self.bodies[topic][name] = orjson.loads(message.data)
        message.ack()

    def jobs(self, topic: str, status: str | None = None) -> Counter[str]:
        """How many messages, each counted once, there are for each job."""
        with self._lock:
            bodies = list(self.bodies[topic].values())
        return Counter(body["job_id"] for body in bodies if status is None or body["status"] == status)


@contextmanager
def reading(host: str, subscriber: Subscriber) -> Iterator[None]:
    """Google's high-level client subscribes to results and dead letters, until the block ends."""
    with grpc.insecure_channel(host) as channel:
        client = SubscriberClient(transport=SubscriberGrpcTransport(channel=channel))
        pulls = [
            client.subscribe(
                f"projects/{PROJECT}/subscriptions/{topic}-sub",
                callback=lambda message, topic=topic: subscriber.note(topic, message),
            )
            for topic in TOPICS
        ]
        try:
            yield
        finally:
            for pull in pulls:
                pull.cancel()
                pull.result(timeout=30)


class Api:
    """The web process, as a client sees it."""

    def __init__(self, session: aiohttp.ClientSession, address: str) -> None:
        self._session = session
        self._address = address

    async def submit(self, jobs: Sequence[Mapping[str, str]]) -> list[str]:
        accepted: list[str] = []
        for first in range(0, len(jobs), BATCH):
            body = {"jobs": jobs[first : first + BATCH]}
            async with self._session.post(f"{self._address}/pipeline/batch", json=body) as answer:
                assert answer.status == 202, await answer.text()
                accepted += (await answer.json())["job_ids"]
        return accepted

    async def statuses(self, ids: Sequence[str]) -> Counter[str]:
        found: Counter[str] = Counter()
        for job_id in ids:
            async with self._session.get(f"{self._address}/pipeline/job/{job_id}") as answer:
                found[(await answer.json())["status"]] += 1
        return found


@asynccontextmanager
async def open_api(fleet: Fleet) -> AsyncIterator[Api]:
    port = free_port()
    await fleet.start("web", HTTP_PORT=port, JWT_SECRET=SECRET)
    token = sign(load({"OUTRIDER_JWT_SECRET": SECRET}), SECRET, sub="ann", seconds=600)
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session:
        yield Api(session, f"http://127.0.0.1:{port}")


async def publish_and_read(url: str, kind: Kind, jobs: int) -> str:
    """Run it; gives the result in one line. Raises AssertionError where a promise is broken."""
    subscriber = Subscriber()
    began = time.monotonic()
    with TemporaryDirectory() as name:
        folder = Path(name)
        async with (
            open_fleet(
                url, kind, PIPELINES="tests.system.acceptance.ledger_pipelines", WORKER_CONCURRENCY=50
            ) as (
                fleet,
                broker,
            ),
            open_api(fleet) as api,
        ):
            await fleet.start("relay")
            await fleet.start("worker")
            with reading(broker.host, subscriber):
                failing = jobs // FAILING
                content = {"content": str(folder)}
                (folder / "go-1").touch()
                good = await api.submit([{"preset": "plain", **content}] * (jobs - failing))
                assert await _all(subscriber, good, "completed")
                (folder / "go-1").unlink()
                bad = await api.submit([{"preset": "refused", **content}] * failing)
                assert await _all(subscriber, bad, "failed")
                await until(lambda: _true(len(subscriber.jobs("pipeline-dlq")) == failing), SECONDS)
                (folder / "go").touch()
                await fleet.command("dead-letters", "redrive")
                assert await _all(subscriber, bad, "completed")
                assert await api.statuses([*good, *bad]) == {"completed": jobs}
                await asyncio.sleep(QUIET_SECONDS)  # whatever comes too often would come by then
    results, letters = subscriber.jobs("pipeline-results"), subscriber.jobs("pipeline-dlq")
    assert results == Counter(good) + Counter(bad) + Counter(bad), (
        "a result was announced more or less than once"
    )
    assert letters == Counter(bad), "a dead letter was announced more or less than once"
    again = sum(seen.total() - len(seen) for seen in subscriber.seen.values())
    return (
        f"{jobs} jobs over HTTP, all completed, {len(bad)} of them after a redrive: {results.total()} results, "
        f"{letters.total()} dead letters, {again} sent again under the same id; {time.monotonic() - began:.1f} s"
    )


async def _all(subscriber: Subscriber, ids: Sequence[str], status: str) -> bool:
    """Wait until each of these jobs has been announced with `status`."""
    return await until(lambda: _true(set(ids) <= subscriber.jobs("pipeline-results", status).keys()), SECONDS)


async def _true(value: bool) -> bool:
    return value


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.system.acceptance.results")
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--broker", choices=["fake", "emulator"], default="emulator")
    asked = parser.parse_args()
    with bench_server() as server, server.migrated() as url:
        print(asyncio.run(publish_and_read(url, asked.broker, asked.jobs)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
