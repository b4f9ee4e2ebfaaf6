"""A relay whose broker or database fails, refuses or loses: what is reported, and that nothing is lost."""

from __future__ import annotations

import asyncio
import json
import random
from contextlib import AsyncExitStack
from typing import Any, LiteralString
from uuid import UUID

import grpc
import pytest
from psycopg import sql
from structlog.testing import capture_logs

from engine.moves import claim_published, publish
from engine.moves.enqueue import enqueue
from ops.harness.postgres import Databases
from ops.harness.pubsub_fake import Delay, Fail, LoseReply
from ops.waiting import until
from relay.provision.apply import open_clients
from tests.relay.relay_harness import JOBS, RESULTS, RelayHarness, logged, metric
from tests.support.database import fetchone, make_too_slow, new, worker

INVALID = grpc.StatusCode.INVALID_ARGUMENT
SEVER: LiteralString = (
    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
    " WHERE datname = current_database() AND application_name LIKE 'outrider %'"
)


async def test_an_outage_opens_the_breaker_once_and_gives_the_rows_back(relay_harness: RelayHarness) -> None:
    fault = relay_harness.fake.inject(Fail(method="Publish"))
    ids, events = await relay_harness.queue(700), await relay_harness.write_events(*[b"x"] * 20)
    with capture_logs() as lines:
        async with relay_harness.relay() as relay:
            await until(lambda: fault.hits >= 8)
            await until(lambda: relay_harness.has_reserved(0))
            assert metric("breaker_open", topic="jobs", fault="passing") == 1
            await relay.relay.ready()
            relay_harness.fake.lift(fault)
            await relay_harness.all_left()
    assert sorted(relay_harness.jobs_sent()) == sorted(ids)
    assert sorted(relay_harness.sent(RESULTS)) == sorted(events)
    for topic, kind in ((JOBS, "jobs"), (RESULTS, "results")):
        [opened] = [each for each in logged(lines, "breaker.opened") if each["topic"] == topic]
        assert (opened["reason"], opened["fix"]) == ("UNAVAILABLE", None)
        [closed] = [each for each in logged(lines, "breaker.closed") if each["topic"] == topic]
        assert closed["after_seconds"] > 0
        assert metric("breaker_open", topic=kind, fault="passing") == 0


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED])
async def test_after_a_lost_reply_the_same_messages_are_sent_again(
    relay_harness: RelayHarness, code: grpc.StatusCode
) -> None:
    relay_harness.fake.inject(LoseReply(method="Publish", times=4, code=code))
    ids, events = await relay_harness.queue(40), await relay_harness.write_events(*[b"x"] * 40)
    async with relay_harness.relay():
        await relay_harness.all_left()
    wake_ups = relay_harness.sent(JOBS)
    assert set(relay_harness.jobs_sent()) == set(ids)
    assert len(set(wake_ups)) == 40
    assert set(relay_harness.sent(RESULTS)) == set(events)
    assert len(wake_ups) + len(relay_harness.sent(RESULTS)) == 80 + 4 * 40


@pytest.mark.parametrize("bad", [{137}, {0, 1, 250, 499}, set(range(20))])
async def test_poison_is_found_set_aside_and_costs_its_neighbours_nothing(
    relay_harness: RelayHarness, bad: set[int]
) -> None:
    relay_harness.fake.inject(Fail(method="Publish", containing="poison", code=INVALID))
    ids = await relay_harness.write_events(*[b"poison" if n in bad else b"x" for n in range(500)])
    before = metric("events_quarantined_total", topic="results")
    with capture_logs() as lines:
        async with relay_harness.relay():
            await relay_harness.all_left()
    poison = {ids[n] for n in bad}
    assert sorted(relay_harness.sent(RESULTS)) == sorted(set(ids) - poison)
    rows = await (
        await relay_harness.conn.execute("SELECT attributes ->> 'message_id', reason FROM outbox_events")
    ).fetchall()
    assert {name for name, _ in rows} == poison
    assert all("UNAVAILABLE" not in reason and reason for _, reason in rows)
    assert metric("events_quarantined_total", topic="results") - before == len(bad)
    assert {line["message_id"] for line in logged(lines, "event.quarantined")} == poison
    assert logged(lines, "breaker.opened") == []


async def test_an_outage_in_the_midst_of_a_search_for_poison_loses_nothing(
    relay_harness: RelayHarness,
) -> None:
    relay_harness.fake.inject(Fail(method="Publish", containing="poison", code=INVALID))
    relay_harness.fake.inject(Fail(method="Publish", probability=0.4, times=12))
    ids = await relay_harness.write_events(*[b"poison" if n == 77 else b"x" for n in range(200)])
    async with relay_harness.relay():
        await relay_harness.all_left()
    assert sorted(relay_harness.sent(RESULTS)) == sorted(set(ids) - {ids[77]})
    assert await fetchone(relay_harness.conn, "SELECT count(quarantined_at) FROM outbox_events") == (1,)


async def test_a_refused_wake_up_is_marked_all_the_same_and_its_job_runs(relay_harness: RelayHarness) -> None:
    ids = await relay_harness.queue(50)
    relay_harness.fake.inject(Fail(method="Publish", containing=str(ids[31]), code=INVALID))
    before = metric("wake_ups_refused_total")
    with capture_logs() as lines:
        async with relay_harness.relay():
            await relay_harness.all_left()
    assert sorted(relay_harness.jobs_sent()) == sorted(set(ids) - {ids[31]})
    assert await relay_harness.statuses() == {"published": 50}
    assert metric("wake_ups_refused_total") - before == 1
    [line] = logged(lines, "wake_up.refused")
    assert line["job_id"] == ids[31]
    aged = "UPDATE outbox SET published_at = published_at - interval '11 s' WHERE job_id = %s"
    await relay_harness.conn.execute(aged, [ids[31]])
    [attempt] = await claim_published(relay_harness.conn, await worker(relay_harness.conn), ["p"], 10, age=10)
    assert attempt.job.id == ids[31]


async def test_a_missing_topic_stops_itself_alone_until_it_is_fixed(
    relay_harness: RelayHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.pubsub.breaker.PROBE_SECONDS", 0.1)
    topic = f"projects/test/topics/{RESULTS}"
    async with open_clients() as clients:
        await clients.publisher.delete_topic(topic=topic)
        events = await relay_harness.write_events(b"a", b"b", b"c")
        await relay_harness.write("dead-letters", "letter")
        ids = await relay_harness.queue(10)
        with capture_logs() as lines:
            async with relay_harness.relay():
                await until(lambda: len(relay_harness.sent("pipeline-dlq")) == 1)
                await until(lambda: len(relay_harness.sent(JOBS)) == 10)
                refused = metric("publish_errors_total", topic="results", reason="not_found")
                await until(
                    lambda: metric("publish_errors_total", topic="results", reason="not_found") > refused + 3
                )
                assert metric("breaker_open", topic="results", fault="misconfigured") == 1
                assert metric("breaker_open", topic="results", fault="passing") == 0
                assert metric("breaker_open", topic="jobs", fault="misconfigured") == 0
                await clients.publisher.create_topic(name=topic)
                await relay_harness.all_left()
                await until(lambda: metric("breaker_open", topic="results", fault="misconfigured") == 0)
    assert sorted(relay_harness.sent(RESULTS)) == events
    assert sorted(relay_harness.jobs_sent()) == sorted(ids)
    [opened] = logged(lines, "breaker.opened")
    assert (opened["topic"], opened["reason"]) == (RESULTS, "NOT_FOUND")
    assert "outrider provision" in opened["fix"]
    assert len(logged(lines, "breaker.closed")) == 1


async def test_a_missing_right_is_reported_as_well(relay_harness: RelayHarness) -> None:
    denied = relay_harness.fake.inject(
        Fail(method="Publish", on=JOBS, code=grpc.StatusCode.PERMISSION_DENIED)
    )
    await relay_harness.queue()
    with capture_logs() as lines:
        async with relay_harness.relay():
            await until(lambda: denied.hits == 1)
            await until(lambda: relay_harness.has_reserved(0))
    [opened] = logged(lines, "breaker.opened")
    assert (opened["reason"], "permissions" in opened["fix"]) == ("PERMISSION_DENIED", True)
    assert metric("breaker_open", topic="jobs", fault="misconfigured") == 1


async def test_a_database_that_is_lost_and_found_is_drained_on(relay_harness: RelayHarness) -> None:
    relay_harness.fake.inject(Delay(method="Publish", seconds=0.01))
    ids: list[UUID] = []
    events: list[str] = []
    async with relay_harness.relay():
        for _ in range(12):
            ids += await relay_harness.queue(300)
            events += await relay_harness.write_events(*[b"x"] * 100)
            await relay_harness.conn.execute(SEVER)
            await relay_harness.age()  # of what was published and could not be marked
        await until(lambda: relay_harness.aged_out())
    assert set(relay_harness.jobs_sent()) == set(ids)
    assert set(relay_harness.sent(RESULTS)) == set(events)


async def test_a_database_that_is_away_is_reported_once_a_topic(
    relay_harness: RelayHarness, databases: Databases
) -> None:
    (name,) = await fetchone(relay_harness.conn, "SELECT current_database()")
    closing = sql.SQL("ALTER DATABASE {} WITH ALLOW_CONNECTIONS {}")
    with capture_logs() as lines:
        async with relay_harness.relay():
            ids = await relay_harness.queue(10)
            await relay_harness.all_left()
            databases._admin.execute(closing.format(sql.Identifier(name), sql.Literal(False)))
            try:
                await relay_harness.conn.execute(SEVER)
                await until(lambda: len(logged(lines, "outbox.lost")) == 3)
                ids += await relay_harness.queue(10)
            finally:
                databases._admin.execute(closing.format(sql.Identifier(name), sql.Literal(True)))
            await relay_harness.all_left()
            await until(lambda: len(logged(lines, "outbox.found")) == 3)
    assert sorted(relay_harness.jobs_sent()) == sorted(ids)
    assert len(logged(lines, "outbox.lost")) == 3


@pytest.mark.parametrize("seed", range(4))
async def test_every_committed_row_is_published_and_nothing_of_a_rolled_back_transaction(
    relay_harness: RelayHarness, seed: int
) -> None:
    """Whatever fails on the way, and however many relays are killed."""
    rng = random.Random(seed)  # noqa: S311 - the same life for the same seed
    relay_harness.fake.inject(Fail(method="Publish", probability=0.15))
    relay_harness.fake.inject(LoseReply(method="Publish", probability=0.15))
    wanted: set[str] = set()
    async with AsyncExitStack() as stack:
        relays = [await stack.enter_async_context(relay_harness.relay()) for _ in range(2)]
        for turn in range(25):
            rolled_back = rng.random() < 0.4
            async with relay_harness.conn.transaction(force_rollback=rolled_back):
                jobs = [await enqueue(relay_harness.conn, new()) for _ in range(rng.randint(0, 5))]
                await relay_harness.write("results", f"result-{turn}")
            if not rolled_back:
                wanted |= {str(job.id) for job in jobs} | {f"result-{turn}"}
            if rng.random() < 0.2:
                await relays.pop(rng.randrange(2)).kill()
                relays.append(await stack.enter_async_context(relay_harness.relay()))
            await asyncio.sleep(rng.random() * 0.02)
        relay_harness.fake.heal()
        await until(lambda: relay_harness.aged_out())
    reported = {json.loads(message.data)["job_id"] for message in relay_harness.fake.published(JOBS)}
    assert reported | set(relay_harness.sent(RESULTS)) == wanted


ODD_ATTRIBUTES = ['{"count": 7}', '{"nested": {}}', '{"none": null}', "[]", "7", "null", '"text"']


@pytest.mark.parametrize("odd", ODD_ATTRIBUTES)
async def test_a_row_that_is_no_message_is_quarantined_and_costs_its_neighbours_and_the_other_topics_nothing(
    relay_harness: RelayHarness, odd: str
) -> None:
    ids = await relay_harness.write_events(*[b"x"] * 100)
    spoil = "UPDATE outbox_events SET attributes = %s WHERE attributes ->> 'message_id' = %s RETURNING id"
    (odd_id,) = await fetchone(relay_harness.conn, spoil, odd, ids[31])
    jobs = await relay_harness.queue(10)
    with capture_logs() as lines:
        async with relay_harness.relay() as relay:
            await relay_harness.all_left()
            await relay.relay.ready()
    assert sorted(relay_harness.sent(RESULTS)) == sorted(set(ids) - {ids[31]})
    assert sorted(relay_harness.jobs_sent()) == sorted(jobs)
    [line] = logged(lines, "event.quarantined")
    assert line["event_id"] == odd_id
    assert await fetchone(relay_harness.conn, "SELECT id FROM outbox_events") == (odd_id,)
    assert logged(lines, "loop.failed") == logged(lines, "breaker.opened") == []


async def test_a_fault_that_nobody_expected_stops_no_topic(
    relay_harness: RelayHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, faults = publish.reserve, [TypeError("a bug"), ValueError("another")]

    async def reserve(*args: Any, **options: Any) -> Any:
        if faults:
            raise faults.pop()
        return await real(*args, **options)

    monkeypatch.setattr(publish, "reserve", reserve)
    before = metric("loop_faults_total", loop="publish")
    ids, events = await relay_harness.queue(10), await relay_harness.write_events(b"a")
    async with relay_harness.relay() as relay:
        await relay_harness.all_left()
        assert await relay.stopped() == 0
    assert sorted(relay_harness.jobs_sent()) == sorted(ids)
    assert relay_harness.sent(RESULTS) == events
    assert metric("loop_faults_total", loop="publish") - before == 2


async def test_a_database_too_slow_for_a_whole_request_publishes_smaller_ones(
    relay_harness: RelayHarness,
) -> None:
    ids = await relay_harness.queue(300)
    await make_too_slow(relay_harness.conn, "UPDATE ON outbox", 60)
    async with relay_harness.relay() as relay:
        await relay_harness.all_left()
    assert set(relay_harness.jobs_sent()) == set(ids)
    assert max(relay.publisher.requests) < 300


async def test_a_mark_that_fails_is_tried_again_before_the_rows_could_be_published_twice(
    relay_harness: RelayHarness,
) -> None:
    await relay_harness.conn.execute(
        "CREATE SEQUENCE tries;"
        "CREATE FUNCTION fail_once() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN IF nextval('tries') = 1 THEN RAISE 'once'; END IF; RETURN NULL; END $$;"
        "CREATE TRIGGER fail_once AFTER UPDATE OF published_at ON outbox EXECUTE FUNCTION fail_once()"
    )
    ids = await relay_harness.queue(20)
    with capture_logs() as lines:
        async with relay_harness.relay():
            await relay_harness.all_left()
    assert await fetchone(relay_harness.conn, "SELECT last_value FROM tries") == (2,)
    assert sorted(relay_harness.jobs_sent()) == sorted(ids)
    assert logged(lines, "outbox.not_marked") == []
