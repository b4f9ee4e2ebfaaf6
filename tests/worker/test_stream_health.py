"""A stream is judged by what it could have delivered, and messages are looked for where they may have been lost."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import grpc
import pytest

from engine.errors import BrokerUnavailable
from engine.model import Attempt, Job
from engine.pubsub import breaker
from engine.pubsub.client import Fault
from tests.support.clock import Clock, set_clock
from worker import stream_health
from worker.stream import StreamLost
from worker.stream_health import ASTRAY_SECONDS, LOST_SECONDS, MAX_STALLS, SILENT_SECONDS, StreamHealth

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LOST = StreamLost(Fault.PASSING, grpc.StatusCode.UNAVAILABLE, "too many pings")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = set_clock(monkeypatch, stream_health)
    monkeypatch.setattr(breaker, "time", clock)
    return clock


@pytest.fixture
def health(clock: Clock) -> StreamHealth:
    health = StreamHealth("projects/p/subscriptions/s")
    health.opened()
    clock.now += 60.0
    return health


def waited(seconds: float) -> list[Attempt]:
    """A job that was published so long before its claim."""
    job = Job(uuid4(), "ann", "p", "text", {}, 2, NOW, None)
    times: Any = (NOW, NOW, NOW - timedelta(seconds=seconds))
    return [Attempt(job, 1, 1, 0, 0, None, None, 1, *times)]


def test_a_stream_that_is_silent_while_a_job_waits_has_stalled_once(health: StreamHealth) -> None:
    assert not health.stalled()
    health.missed(waited(SILENT_SECONDS))
    assert health.stalled()
    assert not health.stalled()
    assert health.astray


def test_a_job_taken_early_is_counted_from_its_publication(health: StreamHealth, clock: Clock) -> None:
    health.missed(waited(1))
    assert not health.stalled()
    clock.now += SILENT_SECONDS - 1
    assert health.stalled()


def test_a_stream_is_not_judged_by_what_was_published_before_it_was_opened(
    health: StreamHealth, clock: Clock
) -> None:
    health.opened()
    clock.now += 5.0
    health.missed(waited(6.0))
    clock.now += SILENT_SECONDS
    assert not health.stalled()


@pytest.mark.parametrize("sign", ["heard", "listened"])
def test_a_stream_that_speaks_or_was_not_read_has_not_stalled(
    health: StreamHealth, clock: Clock, sign: str
) -> None:
    health.missed(waited(1.0))
    clock.now += SILENT_SECONDS - 2
    getattr(health, sign)()
    clock.now += 2.0
    assert not health.stalled()
    health.missed(waited(20.0))
    assert not health.stalled(), "it could be read for two seconds only"


def test_each_stall_in_a_row_doubles_the_patience_until_a_stream_speaks(
    health: StreamHealth, clock: Clock
) -> None:
    for patience in (1, 2, 4):
        health.opened()
        clock.now += 0.5
        health.missed(waited(0.25))
        clock.now += SILENT_SECONDS * patience - 0.5
        assert not health.stalled()
        clock.now += 0.25
        assert health.stalled()
    with pytest.raises(BrokerUnavailable, match=f"{MAX_STALLS} Pub/Sub streams"):
        health.check()
    health.heard()
    health.check()


def test_messages_may_be_astray_from_a_loss_until_two_minutes_after_the_next_stream(
    health: StreamHealth, clock: Clock
) -> None:
    assert not health.astray
    health.lost(LOST, quiet=False)
    clock.now += 10 * ASTRAY_SECONDS
    assert health.astray, "no stream has been found"
    health.established()
    clock.now += ASTRAY_SECONDS - 1
    assert health.astray
    clock.now += 1
    assert not health.astray


def test_a_worker_is_not_ready_when_its_stream_stays_away(health: StreamHealth, clock: Clock) -> None:
    health.lost(LOST, quiet=False)
    clock.now += LOST_SECONDS
    health.check()
    clock.now += 0.1
    with pytest.raises(BrokerUnavailable, match="no Pub/Sub stream for 30 s"):
        health.check()
