"""Messages that the broker does not take, whatever it answers: they block nobody, and stay for an operator."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

import grpc
import pytest
from google.auth import exceptions
from structlog.testing import capture_logs

from engine.pubsub.client import Fault
from engine.pubsub.messages import Message
from engine.tables import events
from ops.harness.pubsub_fake import Fail
from ops.waiting import until
from relay.publishing import outbox_sources
from relay.publishing.answers import Verdict, judge
from relay.publishing.outbox_sources import MAX_FAILURES, Cause, after_failure
from relay.publishing.publisher import PubSubPublisher
from tests.relay.relay_harness import RESULTS, RelayHarness, logged, metric
from tests.support.database import Conn, fetchone

RefreshError: Any = exceptions.RefreshError
TransportError: Any = exceptions.TransportError
Code = grpc.StatusCode
TRANSIENT = (Code.UNAVAILABLE, Code.ABORTED, Code.CANCELLED, Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED)
LASTING = [each for each in Code if each not in (Code.OK, *TRANSIENT)]
REFUSALS = (Code.INVALID_ARGUMENT, Code.OUT_OF_RANGE)
QUARANTINED = "SELECT count(*) FROM outbox_events WHERE quarantined_at IS NOT NULL"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of hundredths of a second."""
    real = after_failure
    monkeypatch.setattr(
        outbox_sources,
        "after_failure",
        lambda *failure: (real(*failure)[0], real(*failure)[1] / (1 if failure[1] is Cause.UNKNOWN else 100)),
    )
    monkeypatch.setattr("engine.pubsub.breaker.PROBE_SECONDS", 0.05)
    monkeypatch.setattr("engine.pubsub.breaker.MAX_SECONDS", 0.1)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("code", LASTING, ids=str)
async def test_a_message_that_fails_alone_while_others_are_taken_is_quarantined_whatever_the_answer(
    relay_harness: RelayHarness, code: grpc.StatusCode
) -> None:
    relay_harness.fake.inject(Fail(method="Publish", containing="poison", code=code))
    ids = await relay_harness.write_events(*[b"poison" if n in (0, 1, 17) else b"x" for n in range(40)])
    async with relay_harness.relay():
        await until(lambda: len(set(relay_harness.sent(RESULTS))) == 37)

        async def quarantined() -> bool:
            ids.extend(await relay_harness.write_events(b"y"))
            return await fetchone(relay_harness.conn, QUARANTINED) == (3,)

        await until(quarantined)
        await until(lambda: ids[-1] in relay_harness.sent(RESULTS))
    assert set(relay_harness.sent(RESULTS)) == set(ids) - {ids[0], ids[1], ids[17]}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("code", TRANSIENT, ids=str)
async def test_a_message_whose_answer_should_pass_is_never_quarantined_and_does_not_stop_the_others(
    relay_harness: RelayHarness, code: grpc.StatusCode
) -> None:

    def has_left(name: str) -> bool:
        return name in relay_harness.sent(RESULTS)

    relay_harness.fake.inject(Fail(method="Publish", containing="poison", code=code))
    ids = await relay_harness.write_events(*[b"poison" if n == 0 else b"x" for n in range(40)])
    async with relay_harness.relay():
        await until(lambda: len(set(relay_harness.sent(RESULTS))) == 39)
        for _ in range(3):
            [more] = await relay_harness.write_events(b"y")
            await until(partial(has_left, more))
    assert ids[0] not in relay_harness.sent(RESULTS)
    assert await fetchone(relay_harness.conn, QUARANTINED) == (0,)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("code", LASTING, ids=str)
async def test_an_answer_that_every_message_gets_quarantines_none_but_where_it_says_so(
    relay_harness: RelayHarness, code: grpc.StatusCode
) -> None:
    fault = relay_harness.fake.inject(Fail(method="Publish", on=RESULTS, code=code))
    ids = await relay_harness.write_events(*[b"x"] * 40)
    async with relay_harness.relay():
        await until(lambda: fault.hits >= 30)
        relay_harness.fake.lift(fault)
        await relay_harness.all_left()
    (quarantined,) = await fetchone(relay_harness.conn, QUARANTINED)
    if code not in REFUSALS:
        assert quarantined == 0
        assert set(relay_harness.sent(RESULTS)) == set(ids)


@pytest.mark.parametrize("code", [each for each in LASTING if each not in REFUSALS], ids=str)
async def test_an_outage_right_after_a_success_opens_the_breaker_and_is_blamed_on_few_messages(
    relay_harness: RelayHarness, monkeypatch: pytest.MonkeyPatch, code: grpc.StatusCode
) -> None:
    """As when a topic is deleted, or a right is taken away."""
    monkeypatch.setattr("engine.pubsub.breaker.PROBE_SECONDS", 0.05)
    monkeypatch.setattr("engine.pubsub.breaker.MAX_SECONDS", 0.1)
    with capture_logs() as lines:
        async with relay_harness.relay():
            ids = await relay_harness.write_events(b"x")
            await until(lambda: relay_harness.sent(RESULTS))
            fault = relay_harness.fake.inject(Fail(method="Publish", on=RESULTS, code=code))
            ids += await relay_harness.write_events(*[b"x"] * 40)
            await until(lambda: logged(lines, "breaker.opened"))
            hits = fault.hits
            await until(lambda: fault.hits >= hits + 20)
            assert len(logged(lines, "event.set_back")) < 10
            relay_harness.fake.lift(fault)
            await relay_harness.all_left()
    assert set(relay_harness.sent(RESULTS)) == set(ids)
    assert logged(lines, "event.quarantined") == []


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("code", [Code.NOT_FOUND, Code.PERMISSION_DENIED, Code.UNAUTHENTICATED], ids=str)
async def test_the_only_message_is_not_quarantined_for_a_fault_of_the_configuration(
    relay_harness: RelayHarness, code: grpc.StatusCode
) -> None:
    with capture_logs() as lines:
        async with relay_harness.relay():
            ids = await relay_harness.write_events(b"x")
            await until(lambda: relay_harness.sent(RESULTS))
            fault = relay_harness.fake.inject(Fail(method="Publish", on=RESULTS, code=code))
            ids += await relay_harness.write_events(b"x")
            await until(lambda: fault.hits >= 2 * MAX_FAILURES)
            relay_harness.fake.lift(fault)
            await relay_harness.all_left()
    assert set(relay_harness.sent(RESULTS)) == set(ids)
    assert len(logged(lines, "breaker.opened")) == 1


async def test_a_row_that_is_larger_than_pubsub_takes_is_quarantined_without_being_read(
    relay_harness: RelayHarness,
) -> None:
    """As an older version may have left it."""
    [huge] = await relay_harness.write_events(b"x" * (events.MAX_BYTES + 1))
    [large, small] = await relay_harness.write_events(b"x" * 9_999_999, b"x")
    with capture_logs() as lines:
        async with relay_harness.relay():
            await relay_harness.all_left()
    assert relay_harness.sent(RESULTS) == [small]
    assert {line["message_id"] for line in logged(lines, "event.quarantined")} == {huge, large}
    (reason,) = await fetchone(relay_harness.conn, "SELECT reason FROM outbox_events ORDER BY id LIMIT 1")
    assert str(events.MAX_BYTES + 1) in reason


class Odd:
    """A publisher that raises what no broker answers, so often, and then works."""

    def __init__(self, publisher: PubSubPublisher, error: BaseException, times: int) -> None:
        self._publisher = publisher
        self._error = error
        self.left = times

    async def publish(self, topic: str, messages: Sequence[Message]) -> None:
        if self.left > 0:
            self.left -= 1
            raise self._error
        await self._publisher.publish(topic, messages)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RefreshError("invalid_grant"), "misconfigured"),
        (RefreshError("try again", retryable=True), "passing"),
        (TransportError("no metadata server"), "misconfigured"),
        (asyncio.CancelledError(), "passing"),
        (grpc.aio.UsageError("channel is closed"), "passing"),
        (asyncio.InvalidStateError("no"), "passing"),
        (OSError(9, "bad file descriptor"), "passing"),
        (RuntimeError("a bug"), "passing"),
    ],
    ids=repr,
)
async def test_no_exception_ends_the_loop_or_spins_it(
    relay_harness: RelayHarness, monkeypatch: pytest.MonkeyPatch, error: BaseException, kind: str
) -> None:
    monkeypatch.setattr("engine.pubsub.breaker.PROBE_SECONDS", 0.1)
    ids, jobs = await relay_harness.write_events(b"a", b"b"), await relay_harness.queue(5)
    with capture_logs() as lines:
        async with relay_harness.relay() as relay:
            odd = Odd(relay.publisher._publisher, error, 9)  # type: ignore[arg-type]
            relay.publisher._publisher = odd
            await until(lambda: odd.left < 4)
            assert 1 in [metric("breaker_open", topic=each, fault=kind) for each in ("results", "jobs")]
            await relay_harness.all_left()
            assert await relay.stopped() == 0
    assert set(relay_harness.sent(RESULTS)) == set(ids)
    assert set(relay_harness.jobs_sent()) == set(jobs)
    assert logged(lines, "breaker.opened")


def test_credentials_that_only_fail_for_now_are_no_fault_of_the_configuration() -> None:
    assert judge(TransportError("refused", retryable=True)).fault is Fault.PASSING
    assert judge(RefreshError("invalid_grant")).fix is not None


@pytest.mark.parametrize(
    ("code", "said", "verdict"),
    [
        (Code.RESOURCE_EXHAUSTED, "Sent message larger than max (12000000 vs. 4194304)", Verdict.REFUSED),
        (Code.RESOURCE_EXHAUSTED, "Received message larger than max (5 vs. 4)", Verdict.REFUSED),
        (Code.INTERNAL, "received message larger than max", Verdict.REFUSED),
        (Code.UNKNOWN, "413 Request Entity Too Large", Verdict.REFUSED),
        (Code.RESOURCE_EXHAUSTED, "Quota exceeded for quota metric 'Regional publisher'", Verdict.PASSING),
        (Code.RESOURCE_EXHAUSTED, "", Verdict.PASSING),
        (
            Code.UNKNOWN,
            "The value for data is too large. You passed 10000001 in the request",
            Verdict.REFUSED,
        ),
        (Code.UNKNOWN, "Request payload size exceeds the limit: 10485760 bytes.", Verdict.REFUSED),
        (Code.UNAVAILABLE, "http: request body too large", Verdict.REFUSED),
        (Code.UNKNOWN, "[Errno 90] Message too long", Verdict.REFUSED),
        (Code.RESOURCE_EXHAUSTED, "Quota exceeded: publish request size limit per minute", Verdict.PASSING),
        (Code.UNAVAILABLE, "upstream sent too big header while reading response header", Verdict.PASSING),
        (Code.UNAVAILABLE, "the operation took too long", Verdict.PASSING),
        (Code.UNAVAILABLE, "the request took too long", Verdict.PASSING),
        (Code.UNAVAILABLE, "400 Request Header Or Cookie Too Large", Verdict.PASSING),
        (Code.RESOURCE_EXHAUSTED, "queue size limit reached", Verdict.PASSING),
        (Code.UNAVAILABLE, "retry delay larger than the deadline", Verdict.PASSING),
        (Code.OUT_OF_RANGE, "", Verdict.REFUSED),
        (Code.DATA_LOSS, "", Verdict.DOUBTFUL),
        (Code.DEADLINE_EXCEEDED, "Deadline Exceeded", Verdict.TOO_SLOW),
    ],
)
def test_a_message_too_large_is_told_from_a_quota_and_an_outage(
    code: grpc.StatusCode, said: str, verdict: Verdict
) -> None:
    nothing = grpc.aio.Metadata()
    assert judge(grpc.aio.AioRpcError(code, nothing, nothing, said)).verdict is verdict


def test_pauses_grow_to_a_bound_and_an_outage_counts_against_nobody() -> None:
    assert [after_failure(n, Cause.GUILTY)[1] for n in range(MAX_FAILURES)] == [1, 2, 4, 8, 16, 32]
    assert after_failure(5000, Cause.TRANSIENT) == (1000, 600)
    assert after_failure(3, Cause.UNKNOWN)[0] == 3


async def test_what_a_relay_decides_after_its_reservation_has_ended_touches_no_row_of_another(
    conn: Conn,
) -> None:
    await events.write(conn, "results", Message(b"{}", {"message_id": "1"}))
    [late] = await events.reserve(conn, "results", low=0, limit=9, max_bytes=1000, seconds=0)
    [mine] = await events.reserve(conn, "results", low=0, limit=9, max_bytes=1000, seconds=60)
    row = "SELECT publish_until, failures, quarantined_at, reason FROM outbox_events"
    await events.release(conn, [late])
    await events.set_back(conn, late, seconds=9, failures=1, reason="late")
    assert not await events.quarantine(conn, late, "late")
    assert await fetchone(conn, row) == (mine.until, 0, None, None)
    await events.set_back(conn, mine, seconds=0, failures=1, reason="slow")
    [again] = await events.reserve(conn, "results", low=0, limit=9, max_bytes=1000, seconds=60)
    assert again.failures == 1
    assert await events.quarantine(conn, again, "odd")
