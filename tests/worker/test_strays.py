"""Messages that are none of ours, of any size: their dead letters leave, and stop no other one."""

from __future__ import annotations

import asyncio
import hashlib
import json

import pytest
from google.pubsub_v1.types import PubsubMessage

from engine.pubsub.client import EMULATOR, names, open_publisher
from engine.settings import load
from ops.waiting import WAIT_SECONDS, until
from relay.provision.apply import open_clients, provision
from relay.publishing.publisher import connected
from relay.relay import Relay
from tests.relay.relay_harness import Running, Watched
from tests.support.database import Conn, fetchone
from tests.support.pubsub_brokers import BrokerAt
from worker.subscription import open_source


@pytest.mark.parametrize("size", [9_000_000, 9_990_000])
async def test_a_stray_message_as_large_as_the_broker_takes_becomes_a_dead_letter_that_leaves(
    database_url: str, conn: Conn, broker: BrokerAt, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setenv(EMULATOR, broker.host)
    settings = load({"OUTRIDER_TRANSPORT": "pubsub", "OUTRIDER_PUBSUB_PROJECT": broker.project})
    topics = names(settings)
    data = b"\xff" * size
    async with open_clients() as clients:
        async for _ in provision(clients, topics):
            pass
    async with open_publisher() as client:
        await client.publish(
            topic=topics.jobs, messages=[PubsubMessage(data=data, attributes={"from": "afar"})]
        )
    async with open_source(settings, database_url, ["p"]) as source:
        receiving = asyncio.create_task(source.run(lambda: None))

        async def buried() -> bool:
            return await fetchone(conn, "SELECT count(*) FROM outbox_events") == (1,)

        await until(buried)
        await source.drain()
        await receiving
        await source.aclose()
    (payload,) = await fetchone(conn, "SELECT payload FROM outbox_events")
    body = json.loads(payload)
    assert (body["raw_bytes"], body["raw_sha256"]) == (size, hashlib.sha256(data).hexdigest())
    assert body["raw_attributes"] == {"from": "afar"}
    async with connected() as publisher:
        watched = Watched(publisher)
        running = Running(Relay(settings, database_url, watched), watched)

        async def left() -> bool:
            return await fetchone(conn, "SELECT count(*) FROM outbox_events") == (0,)

        await until(left, WAIT_SECONDS)
        assert await running.stopped() == 0


@pytest.mark.parametrize("size", [12_000_000, 10_400_000])
async def test_a_dead_letter_of_an_older_version_that_the_broker_does_not_take_is_quarantined_and_others_leave(
    database_url: str, conn: Conn, broker: BrokerAt, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setenv(EMULATOR, broker.host)
    settings = load({"OUTRIDER_TRANSPORT": "pubsub", "OUTRIDER_PUBSUB_PROJECT": broker.project})
    async with open_clients() as clients:
        async for _ in provision(clients, names(settings)):
            pass
    write = (
        "INSERT INTO outbox_events (topic, payload, attributes) VALUES ('dead-letters', %s, '{\"a\": \"b\"}')"
    )
    for payload in (b"x" * size, b"small", b"other"):
        await conn.execute(write, [payload])
    async with connected() as publisher:
        watched = Watched(publisher)
        running = Running(Relay(settings, database_url, watched), watched)

        async def left() -> bool:
            pending = "SELECT count(*) FROM outbox_events WHERE quarantined_at IS NULL"
            return await fetchone(conn, pending) == (0,)

        await until(left, WAIT_SECONDS)
        assert await running.stopped() == 0
    rows = await (await conn.execute("SELECT octet_length(payload), reason FROM outbox_events")).fetchall()
    assert [row[0] for row in rows] in ([size], []), "a broker may take more than Pub/Sub says"
    print(broker.kind, size, [reason for _, reason in rows])
