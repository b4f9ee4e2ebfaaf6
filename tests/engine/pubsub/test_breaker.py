"""When something may be sent again, and what is news."""

from __future__ import annotations

import random

import pytest

from engine.pubsub import breaker
from engine.pubsub.breaker import FIRST_SECONDS, MAX_SECONDS, PROBE_SECONDS, Breaker
from engine.pubsub.client import Fault
from tests.support.clock import Clock, set_clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return set_clock(monkeypatch, breaker)


@pytest.fixture
def it() -> Breaker:
    return Breaker(random.Random(1))  # noqa: S311


def test_it_is_closed_until_something_fails(clock: Clock, it: Breaker) -> None:  # noqa: ARG001 - it stands still
    assert (it.closed, it.pause, it.open_seconds) == (True, 0.0, 0.0)
    assert it.succeed() is False


def test_each_failed_probe_doubles_the_pause_to_a_bound(clock: Clock, it: Breaker) -> None:
    most = FIRST_SECONDS
    for _ in range(12):
        it.fail(Fault.PASSING)
        assert most / 2 <= it.pause <= most
        clock.now += it.pause
        assert (it.pause, it.closed) == (0.0, False)
        most = min(2 * most, MAX_SECONDS)
    assert most == MAX_SECONDS


def test_two_breakers_do_not_probe_in_step(clock: Clock) -> None:  # noqa: ARG001
    pauses = set()
    for seed in range(10):
        each = Breaker(random.Random(seed))  # noqa: S311
        each.fail(Fault.PASSING)
        pauses.add(each.pause)
    assert len(pauses) == 10


def test_others_that_fail_while_it_is_open_change_nothing(clock: Clock, it: Breaker) -> None:  # noqa: ARG001
    assert it.fail(Fault.PASSING) is True
    pause = it.pause
    assert [it.fail(fault) for fault in Fault] == [False] * len(Fault)
    assert it.pause == pause


def test_only_the_first_failure_and_another_kind_are_news(clock: Clock, it: Breaker) -> None:
    news = []
    for fault in (Fault.PASSING, Fault.PASSING, Fault.MISCONFIGURED, Fault.MISCONFIGURED, Fault.PASSING):
        news.append(it.fail(fault))
        clock.now += it.pause
    assert news == [True, False, True, False, True]


def test_what_people_must_fix_is_probed_at_a_steady_rate(clock: Clock, it: Breaker) -> None:
    for _ in range(5):
        it.fail(Fault.MISCONFIGURED)
        assert it.pause == PROBE_SECONDS
        clock.now += PROBE_SECONDS


def test_a_success_closes_it_and_the_next_failure_starts_from_the_shortest_pause(
    clock: Clock, it: Breaker
) -> None:
    for _ in range(6):
        it.fail(Fault.PASSING)
        clock.now += it.pause
    assert it.open_seconds == pytest.approx(clock.now - 1000.0)
    assert it.succeed() is True
    assert (it.closed, it.open_seconds) == (True, 0.0)
    assert it.fail(Fault.PASSING) is True
    assert it.pause <= FIRST_SECONDS
