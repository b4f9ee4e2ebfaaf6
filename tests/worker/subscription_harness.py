"""A worker in pubsub mode, beside a fake to which the test itself publishes: no relay comes between."""

from __future__ import annotations

from collections import Counter
from typing import Any
from uuid import UUID

from google.pubsub_v1.types import PublishRequest, PubsubMessage
from prometheus_client import REGISTRY

from engine.moves import publish
from engine.pipeline import Pipeline
from engine.pubsub.messages import WakeUp
from ops.harness.pubsub_fake import FakePubSub
from ops.harness.pubsub_fake.subscription import Subscription
from ops.waiting import until
from tests.support.database import LANES
from tests.support.transport_harness import TransportHarness
from tests.support.worker_harness import Worker, preset
from worker.stream import ACK_SECONDS
from worker.subscription import PubSubSource

SUB = "pipeline-jobs-sub"


class SubscriptionHarness:
    def __init__(self, system: TransportHarness, fake: FakePubSub) -> None:
        self.system = system
        self.harness = system.harness
        self.conn = system.harness.conn
        self.worker = system.worker
        self.fake = fake

    @property
    def subscription(self) -> Subscription:
        return self.fake.subscription(SUB)

    async def queued(self, count: int = 1, **asked: Any) -> list[WakeUp]:
        """Jobs that are ready, each with the message that tells of it."""
        ids = [await self.harness.enqueue(**asked) for _ in range(count)]
        found = await publish.reserve(self.conn, LANES, limit=count, seconds=0)
        assert {each.job_id for each in found} == set(ids)
        return sorted(found)

    async def published(self, count: int = 1, *, sent: bool = True) -> list[WakeUp]:
        """Jobs that are marked as published; their messages are `sent` or have been lost."""
        wake_ups = await self.queued(count)
        await publish.published(self.conn, wake_ups)
        if sent:
            for each in wake_ups:
                self.send(each.message.data)
        return wake_ups

    async def age(self, column: str, seconds: float, *jobs: WakeUp) -> None:
        """Of these jobs; without any, of all."""
        which = [each.job_id for each in jobs] or None
        statement = f"UPDATE outbox SET {column} = {column} - %s * interval '1 s'"  # noqa: S608
        where = " WHERE %s::uuid[] IS NULL OR job_id = ANY (%s)"
        await self.conn.execute((statement + where).encode(), [seconds, which, which])

    def send(self, data: bytes) -> str:
        """The id that the broker gives to the message."""
        message = PubsubMessage.pb()(data=data)
        request = PublishRequest.pb()(topic=self.system.names.jobs, messages=[message])
        return str(self.fake.broker.publish(request).message_ids[0])

    def redeliver(self) -> None:
        """What was delivered and not settled comes again: its deadline passes, and then its back-off."""
        for seconds in (ACK_SECONDS + 1.0, 10.0):
            self.fake.clock.advance(seconds)

    async def settled(self) -> None:
        """Until every message has been acknowledged."""
        await until(lambda: not self.subscription.outstanding and not self.subscription.backlog)


async def opened(subscription_harness: SubscriptionHarness, streams: int = 1) -> None:
    """Until so many streams were opened, and the last one is there."""
    fake = subscription_harness.fake
    await until(lambda: fake.calls["StreamingPull"] >= streams and fake.streams(SUB) == 1)


def source_of(worker: Worker) -> PubSubSource:
    source = worker.consumer._source
    assert isinstance(source, PubSubSource)
    return source


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"outrider_{name}_total", labels) or 0.0


def messages() -> Counter[str]:
    """What was done with messages, in this process so far."""
    actions = ("claimed", "late", "undecodable", "released")
    return Counter({action: int(counted("messages", action=action)) for action in actions})


def ledger(name: str = "p") -> tuple[Counter[UUID], Pipeline]:
    """How often each job has run, and the pipeline that writes it down."""
    ran: Counter[UUID] = Counter()

    @preset(name)
    async def work(job: Any, _run: Any) -> None:
        ran[job.id] += 1

    return ran, work


def ids(wake_ups: list[WakeUp]) -> list[UUID]:
    return [each.job_id for each in wake_ups]
