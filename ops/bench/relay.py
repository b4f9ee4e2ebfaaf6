"""Throughput of one relay from the outbox to a broker, against publishing alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Final, LiteralString

import psycopg

from engine.ids import uuid7
from engine.pubsub.client import Names, names
from engine.pubsub.messages import Message, WakeUp
from engine.settings import load
from ops.bench import brokers, processes
from ops.bench.cpu import spent
from ops.bench.figures import Row, ratio, repeated
from ops.bench.plan import Plan
from ops.bench.server import empty, fill
from ops.harness.postgres import Databases
from ops.waiting import eventually
from relay.publishing.publish_loop import IN_FLIGHT
from relay.publishing.publisher import connected
from relay.publishing.request_size import MAX_ROWS

TITLE = "Rows drained from the outbox to Pub/Sub by one relay (rows/s)"
PRESET: Final = "noop"
SECONDS: Final = 120.0
POLL_SECONDS: Final = 0.05
GOAL: Final = 10_000.0
SHARE: Final = 0.5
"""One of the two goals is enough."""

LEFT: LiteralString = "SELECT EXISTS (SELECT FROM outbox WHERE status = 'ready')"
LAST: LiteralString = """
SELECT count(*), extract(epoch FROM max(published_at))::float8 FROM outbox WHERE status = 'published'
"""
NOW: LiteralString = "SELECT extract(epoch FROM clock_timestamp())::float8"


def run(server: Databases, plan: Plan) -> Iterator[Row]:
    rows = plan.relay_rows
    for name, broker in brokers.found().items():
        with brokers.provisioned(broker) as settings, server.migrated() as url:
            topics = names(load(settings))
            with processes.relay(url, **settings) as child:
                cpu: list[float] = []

                def measured(
                    name: str = name,
                    url: str = url,
                    topics: Names = topics,
                    pid: int = child.pid,
                    cpu: list[float] = cpu,
                ) -> dict[str, float]:
                    with spent(pid, url) as figures:
                        relayed = _relayed(url, rows)
                    cpu.append(figures.process / rows)
                    return {
                        f"relay to {name}": relayed,
                        f"publishing alone, {name}": asyncio.run(_published(topics.jobs, rows)),
                    }

                rates = repeated(plan.repeat, measured, "/s")
        relayed, alone = rates.values()
        yield Row(relayed.name, relayed.samples, relayed.unit, at_least=GOAL)
        yield alone
        yield ratio(f"relay / publishing alone, {name}", relayed, alone, SHARE)
        yield Row(f"CPU a row, relay to {name}", cpu, "µs")


def _relayed(url: str, rows: int) -> float:
    """Rows a second until the last one is marked, by the database's clock. The whole backlog appears at once."""
    empty(url)
    with psycopg.connect(url) as conn:
        fill(conn, PRESET, rows)
        conn.commit()
        conn.autocommit = True
        conn.execute("NOTIFY outrider_ready")
        [(began,)] = conn.execute(NOW).fetchall()
        # Polling costs the relay less than listening.
        if not eventually(lambda: conn.execute(LEFT).fetchone() == (False,), SECONDS, POLL_SECONDS):
            raise TimeoutError(f"{rows} rows were not published in {SECONDS:g} s")
        [(published, ended)] = conn.execute(LAST).fetchall()
    if published != rows:
        raise ValueError(f"{published} of {rows} rows were published")
    return float(rows / (ended - began))


async def _published(topic: str, rows: int) -> float:
    """Publish the same requests as the relay, as many at once, from messages that are made in advance."""
    batches = [_messages(min(MAX_ROWS, rows - start)) for start in range(0, rows, MAX_ROWS)]
    async with connected() as publisher:
        await publisher.publish(topic, batches[0])  # connects
        waiting = iter(batches)

        async def one_after_another() -> None:
            for batch in waiting:
                await publisher.publish(topic, batch)

        began = time.perf_counter()
        await asyncio.gather(*(one_after_another() for _ in range(IN_FLIGHT)))
        return rows / (time.perf_counter() - began)


def _messages(count: int) -> Sequence[Message]:
    now = datetime.now(UTC)
    return [WakeUp(uuid7(), n, 0, "bench", PRESET, 2, now, None).message for n in range(count)]
