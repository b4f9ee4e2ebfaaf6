"""Work takes a twentieth of the time at most, and comes no more often than it is wanted."""

from __future__ import annotations

import pytest

from engine.storage import throttle
from engine.storage.throttle import COST, Throttle
from tests.support.clock import Clock, set_clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return set_clock(monkeypatch, throttle)


def work(it: Throttle, clock: Clock, seconds: float) -> None:
    began = clock.now
    clock.now += seconds
    it.ended(began)


def said(it: Throttle) -> tuple[bool, bool]:
    return it.allowed, it.due


@pytest.mark.parametrize("every", [0.0, 60.0])
@pytest.mark.parametrize("now", [0.0, 1000.0])
def test_the_first_time_it_is_due_at_once(clock: Clock, every: float, now: float) -> None:
    clock.now = now
    assert said(Throttle(every, most=1.0)) == (True, True)


@pytest.mark.parametrize("seconds", [0.25, 1.0, 3.0])
def test_after_work_comes_a_pause_of_twenty_times_what_it_took(clock: Clock, seconds: float) -> None:
    it = Throttle(most=10.0)
    work(it, clock, seconds)
    assert said(it) == (False, False)
    clock.now += COST * seconds - 0.125
    assert said(it) == (False, False)
    clock.now += 0.125
    assert said(it) == (True, True)


def test_the_pause_is_that_of_the_latest_work_alone(clock: Clock) -> None:
    it = Throttle(most=10.0)
    work(it, clock, 8.0)
    clock.now += 8.0 * COST
    work(it, clock, 0.5)
    clock.now += 0.5 * COST
    assert it.allowed


def test_no_more_counts_of_what_it_took_than_it_can_cost(clock: Clock) -> None:
    it = Throttle(most=2.0)
    work(it, clock, 3600.0)
    clock.now += 2.0 * COST - 0.125
    assert not it.allowed
    clock.now += 0.125
    assert it.allowed


def test_work_that_was_free_is_allowed_at_once_and_due_when_it_is_wanted(clock: Clock) -> None:
    it = Throttle(30.0, most=10.0)
    work(it, clock, 0.0)
    assert said(it) == (True, False)
    clock.now += 29.875
    assert said(it) == (True, False)
    clock.now += 0.125
    assert said(it) == (True, True)


@pytest.mark.parametrize(
    ("every", "seconds", "allowed", "due"),
    [
        pytest.param(30.0, 0.5, 10.0, 30.0, id="wanted later than it is allowed"),
        pytest.param(30.0, 1.5, 30.0, 30.0, id="both at once"),
        pytest.param(30.0, 4.0, 80.0, 80.0, id="wanted earlier than it is allowed"),
    ],
)
def test_work_is_due_when_it_is_both_wanted_and_allowed(
    clock: Clock, every: float, seconds: float, allowed: float, due: float
) -> None:
    it = Throttle(every, most=10.0)
    work(it, clock, seconds)
    ended = clock.now
    for after in (allowed - 0.125, allowed, due - 0.125, due):
        clock.now = ended + after
        assert said(it) == (after >= allowed, after >= due)
