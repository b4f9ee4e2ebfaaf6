"""What a relay does with the rows of the outbox, whatever workers and other relays do meanwhile."""

from __future__ import annotations

import asyncio
import random

import grpc

from engine.moves import PutBack, claim_named, promote, put_back
from tests.engine.scene import until
from tests.fakes.clients import eventually
from tests.fakes.pubsub import Delay, Fail
from tests.helpers import fetchone, worker
from tests.relay.post import JOBS, RESULTS, Post


async def test_jobs_are_marked_and_events_deleted_500_to_a_request(post: Post) -> None:
    ids = await post.queue(1203)
    events = await post.tell(*[b"x"] * 1203)
    async with post.relay() as relay:
        await post.all_left()
    assert sorted(post.jobs_sent()) == sorted(ids)
    assert sorted(post.sent(RESULTS)) == sorted(events)
    assert sorted(relay.publisher.requests) == [203, 203, 500, 500, 500, 500]
    assert await post.statuses() == {"published": 1203}
    assert await fetchone(post.conn, "SELECT count(*) FROM outbox_events") == (0,)
    assert await post.reserved() == 0


async def test_a_request_is_of_8_megabytes_at_the_most(post: Post) -> None:
    await post.tell(*[b"x" * 3_000_000] * 5)
    async with post.relay() as relay:
        await post.all_left()
    assert sorted(relay.publisher.requests) == [1, 2, 2]


async def test_the_urgent_are_handed_over_first_and_the_older_among_equals(post: Post) -> None:
    asked = [random.Random(1).randint(1, 4) for _ in range(60)]  # noqa: S311
    jobs = [(priority, (await post.queue(priority=priority))[0]) for priority in asked]
    async with post.relay():
        await post.all_left()
    assert post.jobs_sent() == [job_id for _, job_id in sorted(jobs, key=lambda job: job[0])]


async def test_no_preset_starves_another_of_its_priority(post: Post) -> None:
    many, few = await post.queue(3000, preset="many"), await post.queue(preset="few")
    async with post.relay():
        await post.all_left()
    sent = post.jobs_sent()
    assert sorted(sent) == sorted(many + few)
    assert sent.index(few[0]) < 2600


async def test_relays_share_the_work_and_send_nothing_twice(post: Post) -> None:
    post.fake.inject(Delay(method="Publish", seconds=0.02))
    ids, events = await post.queue(4000), await post.tell(*[b"x"] * 2000)
    async with post.relay() as one, post.relay() as two, post.relay() as three:
        await post.all_left()
    assert sorted(post.jobs_sent()) == sorted(ids)
    assert sorted(post.sent(RESULTS)) == sorted(events)
    assert all(each.publisher.requests for each in (one, two, three))


async def test_a_claim_before_the_mark_wins_and_a_retry_is_sent_at_once(post: Post) -> None:
    [job_id] = await post.queue()
    me = await worker(post.conn)
    async with post.relay(hold=True) as relay:
        await relay.publisher.published.wait()
        [attempt] = await claim_named(post.conn, me, ["p"], [job_id])
        await put_back(post.conn, me, [PutBack(*attempt.key, "error", 0.0)])
        relay.publisher.let_go()
        assert await relay.stopped() == 0
    assert await post.statuses() == {"waiting": 1}
    assert await promote(post.conn) == 1
    async with asyncio.timeout(2), post.relay():
        await post.all_left()
    assert post.jobs_sent() == [job_id, job_id]
    assert len(set(post.sent(JOBS))) == 2, "another turn is another message"


async def test_what_a_killed_relay_had_reserved_leaves_when_the_reservation_ends(post: Post) -> None:
    ids, events = await post.queue(30), await post.tell(b"a", b"b")
    async with post.relay(hold=True) as dead:
        await until(lambda: post.has_reserved(32))
        await dead.kill()
    sent = [len(post.sent(topic)) for topic in (JOBS, RESULTS)]
    assert await post.reserved() == 32
    async with post.relay() as heir:
        more = await post.queue(5)
        await eventually(lambda: len(post.sent(JOBS)) == sent[0] + 5)
        await until(lambda: post.has_reserved(32))  # until then they are left alone
        await post.age()
        await post.all_left()
        assert sum(heir.publisher.requests) == 37
    assert set(post.jobs_sent()) == {*ids, *more}
    assert set(post.sent(RESULTS)) == set(events)
    assert await post.statuses() == {"published": 35}


async def test_a_stop_finishes_what_is_on_its_way(post: Post) -> None:
    await post.queue(20)
    await post.tell(b"a", b"b")
    async with post.relay(hold=True) as relay:
        await until(lambda: post.has_reserved(22))
        await eventually(lambda: sum(relay.publisher.requests) == 22)
        relay.stop.set()
        relay.publisher.let_go()
        assert await relay.stopped() == 0
    assert await post.statuses() == {"published": 20}
    assert await fetchone(post.conn, "SELECT count(*) FROM outbox_events") == (0,)
    assert await post.reserved() == 0


async def test_a_stop_does_not_wait_for_an_open_breaker(post: Post) -> None:
    fault = post.fake.inject(Fail(method="Publish", code=grpc.StatusCode.NOT_FOUND))
    await post.queue()
    async with post.relay() as relay:
        await eventually(lambda: fault.hits == 1)
        async with asyncio.timeout(2):
            assert await relay.stopped() == 0
