"""What a relay does with the rows of the outbox, whatever workers and other relays do meanwhile."""

from __future__ import annotations

import asyncio
import random

import grpc

from engine.model import Reason
from engine.moves import Release, claim_named, promote, release
from ops.harness.pubsub_fake import Delay, Fail
from ops.waiting import until
from tests.relay.relay_harness import JOBS, RESULTS, RelayHarness
from tests.support.database import fetchone, worker


async def test_jobs_are_marked_and_events_deleted_500_to_a_request(relay_harness: RelayHarness) -> None:
    ids = await relay_harness.queue(1203)
    events = await relay_harness.write_events(*[b"x"] * 1203)
    async with relay_harness.relay() as relay:
        await relay_harness.all_left()
    assert sorted(relay_harness.jobs_sent()) == sorted(ids)
    assert sorted(relay_harness.sent(RESULTS)) == sorted(events)
    assert sorted(relay.publisher.requests) == [203, 203, 500, 500, 500, 500]
    assert await relay_harness.statuses() == {"published": 1203}
    assert await fetchone(relay_harness.conn, "SELECT count(*) FROM outbox_events") == (0,)
    assert await relay_harness.reserved() == 0


async def test_a_request_is_of_8_megabytes_at_the_most(relay_harness: RelayHarness) -> None:
    await relay_harness.write_events(*[b"x" * 3_000_000] * 5)
    async with relay_harness.relay() as relay:
        await relay_harness.all_left()
    assert sorted(relay.publisher.requests) == [1, 2, 2]


async def test_the_urgent_are_handed_over_first_and_the_older_among_equals(
    relay_harness: RelayHarness,
) -> None:
    asked = [random.Random(1).randint(1, 4) for _ in range(60)]  # noqa: S311
    jobs = [(priority, (await relay_harness.queue(priority=priority))[0]) for priority in asked]
    async with relay_harness.relay():
        await relay_harness.all_left()
    assert relay_harness.jobs_sent() == [job_id for _, job_id in sorted(jobs, key=lambda job: job[0])]


async def test_no_preset_starves_another_of_its_priority(relay_harness: RelayHarness) -> None:
    many, few = await relay_harness.queue(3000, preset="many"), await relay_harness.queue(preset="few")
    async with relay_harness.relay():
        await relay_harness.all_left()
    sent = relay_harness.jobs_sent()
    assert sorted(sent) == sorted(many + few)
    assert sent.index(few[0]) < 2600


async def test_relays_share_the_work_and_send_nothing_twice(relay_harness: RelayHarness) -> None:
    relay_harness.fake.inject(Delay(method="Publish", seconds=0.02))
    ids, events = await relay_harness.queue(4000), await relay_harness.write_events(*[b"x"] * 2000)
    async with relay_harness.relay() as one, relay_harness.relay() as two, relay_harness.relay() as three:
        await relay_harness.all_left()
    assert sorted(relay_harness.jobs_sent()) == sorted(ids)
    assert sorted(relay_harness.sent(RESULTS)) == sorted(events)
    assert all(each.publisher.requests for each in (one, two, three))


async def test_a_claim_before_the_mark_wins_and_a_retry_is_sent_at_once(relay_harness: RelayHarness) -> None:
    [job_id] = await relay_harness.queue()
    me = await worker(relay_harness.conn)
    async with relay_harness.relay(hold=True) as relay:
        await relay.publisher.published.wait()
        [attempt] = await claim_named(relay_harness.conn, me, ["p"], [job_id])
        await release(relay_harness.conn, me, [Release(*attempt.key, Reason.ERROR, 0.0)])
        relay.publisher.let_go()
        assert await relay.stopped() == 0
    assert await relay_harness.statuses() == {"waiting": 1}
    assert await promote(relay_harness.conn) == 1
    async with asyncio.timeout(2), relay_harness.relay():
        await relay_harness.all_left()
    assert relay_harness.jobs_sent() == [job_id, job_id]
    assert len(set(relay_harness.sent(JOBS))) == 2, "another turn is another message"


async def test_what_a_killed_relay_had_reserved_leaves_when_the_reservation_ends(
    relay_harness: RelayHarness,
) -> None:
    ids, events = await relay_harness.queue(30), await relay_harness.write_events(b"a", b"b")
    async with relay_harness.relay(hold=True) as dead:
        await until(lambda: relay_harness.has_reserved(32))
        # A request that is still on its way would arrive after the count of what was sent.
        await until(lambda: sum(dead.publisher.requests) == 32)
        await dead.kill()
    sent = [len(relay_harness.sent(topic)) for topic in (JOBS, RESULTS)]
    assert await relay_harness.reserved() == 32
    async with relay_harness.relay() as heir:
        more = await relay_harness.queue(5)
        await until(lambda: len(relay_harness.sent(JOBS)) == sent[0] + 5)
        await until(lambda: relay_harness.has_reserved(32))  # until then they are left alone
        await relay_harness.age()
        await relay_harness.all_left()
        assert sum(heir.publisher.requests) == 37
    assert set(relay_harness.jobs_sent()) == {*ids, *more}
    assert set(relay_harness.sent(RESULTS)) == set(events)
    assert await relay_harness.statuses() == {"published": 35}


async def test_a_stop_finishes_what_is_on_its_way(relay_harness: RelayHarness) -> None:
    await relay_harness.queue(20)
    await relay_harness.write_events(b"a", b"b")
    async with relay_harness.relay(hold=True) as relay:
        await until(lambda: relay_harness.has_reserved(22))
        await until(lambda: sum(relay.publisher.requests) == 22)
        relay.stop.set()
        relay.publisher.let_go()
        assert await relay.stopped() == 0
    assert await relay_harness.statuses() == {"published": 20}
    assert await fetchone(relay_harness.conn, "SELECT count(*) FROM outbox_events") == (0,)
    assert await relay_harness.reserved() == 0


async def test_a_stop_does_not_wait_for_an_open_breaker(relay_harness: RelayHarness) -> None:
    fault = relay_harness.fake.inject(Fail(method="Publish", code=grpc.StatusCode.NOT_FOUND))
    await relay_harness.queue()
    async with relay_harness.relay() as relay:
        await until(lambda: fault.hits == 1)
        async with asyncio.timeout(2):
            assert await relay.stopped() == 0
