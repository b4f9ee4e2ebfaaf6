"""A relay whose broker or database fails, refuses or loses: what is told of it, and that nothing is lost."""

from __future__ import annotations

import asyncio
import json
import random
from contextlib import AsyncExitStack
from typing import LiteralString
from uuid import UUID

import grpc
import pytest
from psycopg import sql
from structlog.testing import capture_logs

from engine.enqueue import enqueue
from engine.moves import claim_published
from relay.provision import open_clients
from tests.conftest import Databases
from tests.engine.scene import until
from tests.fakes.clients import eventually
from tests.fakes.pubsub import Delay, Fail, LoseReply
from tests.helpers import fetchone, new, worker
from tests.relay.post import JOBS, RESULTS, Post, logged, metric

INVALID = grpc.StatusCode.INVALID_ARGUMENT
SEVER: LiteralString = (
    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
    " WHERE datname = current_database() AND application_name LIKE 'outrider %'"
)


async def test_an_outage_opens_the_breaker_once_and_gives_the_rows_back(post: Post) -> None:
    fault = post.fake.inject(Fail(method="Publish"))
    ids, events = await post.queue(700), await post.tell(*[b"x"] * 20)
    with capture_logs() as lines:
        async with post.relay() as relay:
            await eventually(lambda: fault.hits >= 8)
            await until(lambda: post.has_reserved(0))
            assert metric("breaker_open", topic="jobs", fault="passing") == 1
            await relay.relay.ready()
            post.fake.lift(fault)
            await post.all_left()
    assert sorted(post.jobs_sent()) == sorted(ids)
    assert sorted(post.sent(RESULTS)) == sorted(events)
    for topic, kind in ((JOBS, "jobs"), (RESULTS, "results")):
        [opened] = [each for each in logged(lines, "breaker.opened") if each["topic"] == topic]
        assert (opened["reason"], opened["mend"]) == ("UNAVAILABLE", None)
        [closed] = [each for each in logged(lines, "breaker.closed") if each["topic"] == topic]
        assert closed["after_seconds"] > 0
        assert metric("breaker_open", topic=kind, fault="passing") == 0


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED])
async def test_after_a_lost_reply_the_same_messages_are_sent_again(post: Post, code: grpc.StatusCode) -> None:
    post.fake.inject(LoseReply(method="Publish", times=4, code=code))
    ids, events = await post.queue(40), await post.tell(*[b"x"] * 40)
    async with post.relay():
        await post.all_left()
    wake_ups = post.sent(JOBS)
    assert set(post.jobs_sent()) == set(ids)
    assert len(set(wake_ups)) == 40
    assert set(post.sent(RESULTS)) == set(events)
    assert len(wake_ups) + len(post.sent(RESULTS)) == 80 + 4 * 40


@pytest.mark.parametrize("bad", [{137}, {0, 1, 250, 499}, set(range(20))])
async def test_poison_is_found_set_aside_and_costs_its_neighbours_nothing(post: Post, bad: set[int]) -> None:
    post.fake.inject(Fail(method="Publish", containing="poison", code=INVALID))
    ids = await post.tell(*[b"poison" if n in bad else b"x" for n in range(500)])
    before = metric("events_quarantined_total", topic="results")
    with capture_logs() as lines:
        async with post.relay():
            await post.all_left()
    poison = {ids[n] for n in bad}
    assert sorted(post.sent(RESULTS)) == sorted(set(ids) - poison)
    rows = await (
        await post.conn.execute("SELECT attributes ->> 'message_id', reason FROM outbox_events")
    ).fetchall()
    assert {name for name, _ in rows} == poison
    assert all("UNAVAILABLE" not in reason and reason for _, reason in rows)
    assert metric("events_quarantined_total", topic="results") - before == len(bad)
    assert {line["message_id"] for line in logged(lines, "event.quarantined")} == poison
    assert logged(lines, "breaker.opened") == []


async def test_an_outage_in_the_midst_of_a_search_for_poison_loses_nothing(post: Post) -> None:
    post.fake.inject(Fail(method="Publish", containing="poison", code=INVALID))
    post.fake.inject(Fail(method="Publish", probability=0.4, times=12))
    ids = await post.tell(*[b"poison" if n == 77 else b"x" for n in range(200)])
    async with post.relay():
        await post.all_left()
    assert sorted(post.sent(RESULTS)) == sorted(set(ids) - {ids[77]})
    assert await fetchone(post.conn, "SELECT count(quarantined_at) FROM outbox_events") == (1,)


async def test_a_refused_wake_up_is_marked_all_the_same_and_its_job_runs(post: Post) -> None:
    ids = await post.queue(50)
    post.fake.inject(Fail(method="Publish", containing=str(ids[31]), code=INVALID))
    before = metric("wake_ups_refused_total")
    with capture_logs() as lines:
        async with post.relay():
            await post.all_left()
    assert sorted(post.jobs_sent()) == sorted(set(ids) - {ids[31]})
    assert await post.statuses() == {"published": 50}
    assert metric("wake_ups_refused_total") - before == 1
    [line] = logged(lines, "wake_up.refused")
    assert line["job_id"] == ids[31]
    aged = "UPDATE outbox SET published_at = published_at - interval '11 s' WHERE job_id = %s"
    await post.conn.execute(aged, [ids[31]])
    [attempt] = await claim_published(post.conn, await worker(post.conn), ["p"], 10, age=10)
    assert attempt.job.id == ids[31]


async def test_a_missing_topic_stops_itself_alone_until_it_is_mended(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.breaker.PROBE_SECONDS", 0.1)
    topic = f"projects/test/topics/{RESULTS}"
    async with open_clients() as clients:
        await clients.publisher.delete_topic(topic=topic)
        events = await post.tell(b"a", b"b", b"c")
        await post.write("dead-letters", "letter")
        ids = await post.queue(10)
        with capture_logs() as lines:
            async with post.relay():
                await eventually(lambda: len(post.sent("pipeline-dlq")) == 1)
                await eventually(lambda: len(post.sent(JOBS)) == 10)
                refused = metric("publish_errors_total", topic="results", reason="not_found")
                await eventually(
                    lambda: metric("publish_errors_total", topic="results", reason="not_found") > refused + 3
                )
                assert metric("breaker_open", topic="results", fault="misconfigured") == 1
                assert metric("breaker_open", topic="results", fault="passing") == 0
                assert metric("breaker_open", topic="jobs", fault="misconfigured") == 0
                await clients.publisher.create_topic(name=topic)
                await post.all_left()
                await eventually(lambda: metric("breaker_open", topic="results", fault="misconfigured") == 0)
    assert sorted(post.sent(RESULTS)) == events
    assert sorted(post.jobs_sent()) == sorted(ids)
    [opened] = logged(lines, "breaker.opened")
    assert (opened["topic"], opened["reason"]) == (RESULTS, "NOT_FOUND")
    assert "outrider provision" in opened["mend"]
    assert len(logged(lines, "breaker.closed")) == 1


async def test_a_missing_right_is_told_of_as_well(post: Post) -> None:
    denied = post.fake.inject(Fail(method="Publish", on=JOBS, code=grpc.StatusCode.PERMISSION_DENIED))
    await post.queue()
    with capture_logs() as lines:
        async with post.relay():
            await eventually(lambda: denied.hits == 1)
            await until(lambda: post.has_reserved(0))
    [opened] = logged(lines, "breaker.opened")
    assert (opened["reason"], "rights" in opened["mend"]) == ("PERMISSION_DENIED", True)
    assert metric("breaker_open", topic="jobs", fault="misconfigured") == 1


async def test_a_database_that_is_lost_and_found_is_drained_on(post: Post) -> None:
    post.fake.inject(Delay(method="Publish", seconds=0.01))
    ids: list[UUID] = []
    events: list[str] = []
    async with post.relay():
        for _ in range(12):
            ids += await post.queue(300)
            events += await post.tell(*[b"x"] * 100)
            await post.conn.execute(SEVER)
            await post.age()  # of what was published and could not be marked
        await until(lambda: post.aged_out())
    assert set(post.jobs_sent()) == set(ids)
    assert set(post.sent(RESULTS)) == set(events)


async def test_a_database_that_is_away_is_told_of_once_a_topic(post: Post, databases: Databases) -> None:
    (name,) = await fetchone(post.conn, "SELECT current_database()")
    closing = sql.SQL("ALTER DATABASE {} WITH ALLOW_CONNECTIONS {}")
    with capture_logs() as lines:
        async with post.relay():
            ids = await post.queue(10)
            await post.all_left()
            databases._admin.execute(closing.format(sql.Identifier(name), sql.Literal(False)))
            try:
                await post.conn.execute(SEVER)
                await eventually(lambda: len(logged(lines, "outbox.lost")) == 3)
                ids += await post.queue(10)
            finally:
                databases._admin.execute(closing.format(sql.Identifier(name), sql.Literal(True)))
            await post.all_left()
            await eventually(lambda: len(logged(lines, "outbox.found")) == 3)
    assert sorted(post.jobs_sent()) == sorted(ids)
    assert len(logged(lines, "outbox.lost")) == 3


@pytest.mark.parametrize("seed", range(4))
async def test_every_committed_row_is_published_and_nothing_of_a_rolled_back_transaction(
    post: Post, seed: int
) -> None:
    """Whatever fails on the way, and however many relays are killed."""
    rng = random.Random(seed)  # noqa: S311 - the same life for the same seed
    post.fake.inject(Fail(method="Publish", probability=0.15))
    post.fake.inject(LoseReply(method="Publish", probability=0.15))
    wanted: set[str] = set()
    async with AsyncExitStack() as stack:
        relays = [await stack.enter_async_context(post.relay()) for _ in range(2)]
        for turn in range(25):
            rolled_back = rng.random() < 0.4
            async with post.conn.transaction(force_rollback=rolled_back):
                jobs = [await enqueue(post.conn, new()) for _ in range(rng.randint(0, 5))]
                await post.write("results", f"result-{turn}")
            if not rolled_back:
                wanted |= {str(job.id) for job in jobs} | {f"result-{turn}"}
            if rng.random() < 0.2:
                await relays.pop(rng.randrange(2)).kill()
                relays.append(await stack.enter_async_context(post.relay()))
            await asyncio.sleep(rng.random() * 0.02)
        post.fake.heal()
        await until(lambda: post.aged_out())
    told = {json.loads(message.data)["job_id"] for message in post.fake.published(JOBS)}
    assert told | set(post.sent(RESULTS)) == wanted
