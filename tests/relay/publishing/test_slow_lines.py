"""A slow line is no broker that is away: time by bytes, smaller requests, small messages pass large ones."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import grpc
import pytest
from structlog.testing import capture_logs

from engine.pubsub.client import EMULATOR
from ops.harness.pubsub_fake import Fail
from ops.waiting import until
from relay.publishing.request_size import MAX_BYTES, SMALL_BYTES, RequestSize, allowed_seconds
from tests.relay.relay_harness import RESULTS, RelayHarness, Running, logged
from tests.support.database import fetchone
from tests.support.slow_line import slow_line

MBIT = 1_000_000


@asynccontextmanager
async def over(
    harness: RelayHarness, monkeypatch: pytest.MonkeyPatch, bits_per_second: float
) -> AsyncIterator[Running]:
    async with slow_line(harness.fake.host, bits_per_second) as line:
        monkeypatch.setenv(EMULATOR, line.host)
        async with harness.relay() as running:
            yield running


@pytest.mark.long
@pytest.mark.parametrize(("mbit", "large"), [(8, 10), (1, 3)])
async def test_large_and_small_messages_and_wake_ups_all_leave_over_a_slow_line_and_the_small_ones_first(
    relay_harness: RelayHarness, monkeypatch: pytest.MonkeyPatch, mbit: int, large: int
) -> None:
    began = time.monotonic()
    big = await relay_harness.write_events(*[b"x" * 3_000_000] * large)
    small = await relay_harness.write_events(*[b"x" * 200] * 50)
    jobs = await relay_harness.queue(100)
    times = {}
    with capture_logs() as lines:
        async with over(relay_harness, monkeypatch, mbit * MBIT):
            await until(lambda: len(relay_harness.jobs_sent()) == 100, 120)
            times["wake-ups"] = time.monotonic() - began
            await until(lambda: set(small) <= set(relay_harness.sent(RESULTS)), 120)
            times["small"] = time.monotonic() - began
            small_first = len(set(relay_harness.sent(RESULTS)) & set(big)) < large
            await relay_harness.all_left(240)
            times["all"] = time.monotonic() - began
    print(f"{mbit} Mbit/s: {times}")
    assert small_first
    assert sorted(relay_harness.jobs_sent()) == sorted(jobs)
    assert sorted(relay_harness.sent(RESULTS)) == sorted(big + small)
    assert logged(lines, "breaker.opened") == []


async def test_small_messages_pass_a_large_one_that_is_on_its_way(
    relay_harness: RelayHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the line's buffers hold all of the large one, which takes 24 s."""
    [large] = await relay_harness.write_events(b"x" * 3_000_000)
    async with over(relay_harness, monkeypatch, 1 * MBIT) as relay:
        await until(lambda: relay.publisher.began == 1)
        await asyncio.sleep(0.5)  # the line's own time
        for _ in range(3):
            [small] = await relay_harness.write_events(b"x")
            await until(partial(relay_harness.has_sent, small))
        assert large not in relay_harness.sent(RESULTS)


async def test_a_large_request_that_times_out_opens_no_breaker_and_a_single_one_lets_the_others_pass(
    relay_harness: RelayHarness,
) -> None:
    """The broker never answers for one message, as if its line could not carry it."""
    relay_harness.fake.inject(
        Fail(method="Publish", containing="stuck", code=grpc.StatusCode.DEADLINE_EXCEEDED)
    )
    [stuck] = await relay_harness.write_events(b"stuck" + b"x" * (2 * SMALL_BYTES))
    large = await relay_harness.write_events(*[b"x" * (2 * SMALL_BYTES)] * 5)
    small = await relay_harness.write_events(*[b"x"] * 50)
    held = "SELECT failures, quarantined_at, reason FROM outbox_events"
    with capture_logs() as lines:
        async with relay_harness.relay():
            await until(lambda: len(set(relay_harness.sent(RESULTS))) == 55)
            await until(lambda: len(logged(lines, "event.set_back")) >= 2)
    assert set(relay_harness.sent(RESULTS)) == set(large + small)
    assert logged(lines, "breaker.opened") == []
    failures, quarantined_at, reason = await fetchone(relay_harness.conn, held)
    assert (failures >= 2, quarantined_at) == (True, None)
    assert reason.startswith("DEADLINE_EXCEEDED")
    assert stuck not in relay_harness.sent(RESULTS)
    pauses = [line["pause_seconds"] for line in logged(lines, "event.set_back")]
    assert pauses == sorted(pauses)


async def test_a_small_request_that_times_out_opens_the_breaker(relay_harness: RelayHarness) -> None:
    fault = relay_harness.fake.inject(
        Fail(method="Publish", on=RESULTS, code=grpc.StatusCode.DEADLINE_EXCEEDED)
    )
    events = await relay_harness.write_events(b"x")
    with capture_logs() as lines:
        async with relay_harness.relay():
            await until(lambda: fault.hits >= 3)
            assert len(logged(lines, "breaker.opened")) == 1
            relay_harness.fake.lift(fault)
            await relay_harness.all_left()
    assert set(relay_harness.sent(RESULTS)) == set(events)


async def test_a_stop_waits_for_no_large_request_and_releases_its_rows(
    relay_harness: RelayHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.publishing.publish_loop.STOP_SECONDS", 0.2)
    await relay_harness.write_events(b"x" * 3_000_000)
    async with over(relay_harness, monkeypatch, 0.1 * MBIT) as relay:
        await until(lambda: relay_harness.has_reserved(1))
        async with asyncio.timeout(10):
            assert await relay.stopped() == 0
    assert await relay_harness.reserved() == 0


def test_the_time_of_a_request_grows_with_its_bytes() -> None:
    assert allowed_seconds(0) == 5
    assert allowed_seconds(MAX_BYTES) > MAX_BYTES / (1 * MBIT / 8)


def test_one_large_request_at_a_time_and_small_rows_pass_it() -> None:
    size = RequestSize()
    assert size.room(probing=False, alone=False)[:3] == (MAX_BYTES, 2**31 - 1, 500)
    size.add([3_000_000])
    room = size.room(probing=False, alone=False)
    assert (room.bytes, room.row_bytes, room.ahead) == (MAX_BYTES, SMALL_BYTES, 3_000_000)
    size.add([1000, 1000])
    assert size.room(probing=False, alone=False).bytes == MAX_BYTES - 2000
    size.remove([3_000_000])
    size.remove([1000, 1000])
    assert size.room(probing=True, alone=True) == (SMALL_BYTES, 2**31 - 1, 1, 0)
