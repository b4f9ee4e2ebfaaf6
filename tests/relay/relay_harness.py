"""An outbox, a fake broker with its topics, and relays of this process between them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import UUID

import orjson
from prometheus_client import REGISTRY
from psycopg.types.json import Jsonb

from engine.moves.enqueue import Submission, enqueue_group
from engine.pubsub.messages import Message
from engine.settings import Settings
from engine.tables import events
from engine.tables.events import Topic
from ops.harness.pubsub_fake import FakePubSub
from ops.waiting import WAIT_SECONDS, until
from relay.publishing.publisher import Publisher, connected
from relay.relay import Relay
from tests.support.database import Conn, fetchone, new

JOBS, RESULTS = "pipeline-jobs", "pipeline-results"

WRITE = """
INSERT INTO outbox_events (topic, payload, attributes)
SELECT 'results', payload, attributes FROM unnest(%s::bytea[], %s::jsonb[]) AS x(payload, attributes)
"""


# Locked in the order of ids, as the relay does.
AGE = """
UPDATE outbox SET publish_until = publish_until - interval '10 s'
WHERE job_id = ANY (ARRAY(SELECT job_id FROM outbox WHERE publish_until IS NOT NULL ORDER BY job_id FOR UPDATE));
UPDATE outbox_events SET publish_until = publish_until - interval '10 s'
WHERE id = ANY (ARRAY(SELECT id FROM outbox_events WHERE publish_until IS NOT NULL ORDER BY id FOR UPDATE))
"""


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"outrider_{name}", labels) or 0.0


def logged(lines: Any, event: str) -> list[Any]:
    return [line for line in lines if line["event"] == event]


class Watched:
    """Passes requests on and keeps their sizes. With `hold`, it answers to none before `let_go`."""

    def __init__(self, publisher: Publisher, *, hold: bool = False) -> None:
        self._publisher = publisher
        self._may_go = asyncio.Event()
        self.requests: list[int] = []
        self.began = 0
        self.published = asyncio.Event()
        if not hold:
            self.let_go()

    def let_go(self) -> None:
        self._may_go.set()

    async def publish(self, topic: str, messages: Sequence[Message]) -> None:
        self.began += 1
        await self._publisher.publish(topic, messages)
        self.requests.append(len(messages))
        self.published.set()
        await self._may_go.wait()


class Running:
    """A relay at work. Killed, it neither marks nor releases what it has reserved."""

    def __init__(self, relay: Relay, publisher: Watched) -> None:
        self.relay = relay
        self.publisher = publisher
        self.stop = asyncio.Event()
        self._task = asyncio.create_task(relay.run(self.stop))

    async def stopped(self) -> int:
        self.stop.set()
        async with asyncio.timeout(WAIT_SECONDS):
            return await self._task

    async def kill(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task], timeout=WAIT_SECONDS)


class RelayHarness:
    def __init__(self, url: str, conn: Conn, fake: FakePubSub, settings: Settings) -> None:
        self.url = url
        self.conn = conn
        self.fake = fake
        self.settings = settings

    @asynccontextmanager
    async def relay(self, *, hold: bool = False, url: str | None = None) -> AsyncIterator[Running]:
        async with AsyncExitStack() as stack:
            publisher = Watched(await stack.enter_async_context(connected()), hold=hold)
            running = Running(Relay(self.settings, url or self.url, publisher), publisher)
            running.relay.served(["p"])
            try:
                yield running
            finally:
                publisher.let_go()
                await running.kill()

    async def queue(self, count: int = 1, **asked: object) -> list[UUID]:
        """So many jobs, in one transaction."""
        accepted = await enqueue_group(self.conn, [Submission((new(**asked),)) for _ in range(count)])
        return [job_id for each in accepted if not isinstance(each, Exception) for job_id in each.job_ids]

    async def write_events(self, *payloads: bytes) -> list[str]:
        """Write an event for each payload. Return their message ids."""
        (first,) = await fetchone(self.conn, "SELECT coalesce(max(id), 0) FROM outbox_events")
        ids = [f"event-{first + n}" for n in range(len(payloads))]
        named = [Jsonb({"message_id": name, "job_id": name}) for name in ids]
        await self.conn.execute(WRITE, [list(payloads), named])
        return ids

    async def write(self, topic: Topic, name: str) -> None:
        await events.write(self.conn, topic, Message(b"{}", {"message_id": name}))

    def sent(self, topic: str) -> list[str]:
        """The message ids of what the broker has taken, in this order."""
        return [message.attributes["message_id"] for message in self.fake.published(topic)]

    def jobs_sent(self) -> list[UUID]:
        return [UUID(orjson.loads(message.data)["job_id"]) for message in self.fake.published(JOBS)]

    async def statuses(self) -> dict[str, int]:
        rows = await (
            await self.conn.execute("SELECT status::text, count(*) FROM outbox GROUP BY 1")
        ).fetchall()
        return {str(status): int(count) for status, count in rows}

    async def reserved(self) -> int:
        """How many rows some relay has reserved."""
        (count,) = await fetchone(
            self.conn,
            "SELECT (SELECT count(*) FROM outbox WHERE publish_until > clock_timestamp())"
            " + (SELECT count(*) FROM outbox_events WHERE publish_until > clock_timestamp())",
        )
        return int(count)

    def has_sent(self, event: str) -> bool:
        return event in self.sent(RESULTS)

    async def age(self) -> None:
        """Let every reservation end."""
        await self.conn.execute(AGE)

    async def all_left(self, seconds: float = WAIT_SECONDS) -> None:
        """Wait until no job is ready and no event is due, and nothing is reserved."""

        async def look() -> bool:
            left = (
                "SELECT (SELECT count(*) FROM outbox WHERE status = 'ready') +"
                " (SELECT count(*) FROM outbox_events WHERE quarantined_at IS NULL)"
            )
            return await fetchone(self.conn, left) == (0,)

        await until(look, seconds)

    async def has_reserved(self, rows: int) -> bool:
        return await self.reserved() == rows

    async def aged_out(self) -> bool:
        """Lets every reservation end; whether nothing is left."""
        await self.age()
        left = "SELECT (SELECT count(*) FROM outbox WHERE status = 'ready') + (SELECT count(*) FROM outbox_events)"
        return await fetchone(self.conn, left) == (0,)
