"""What a worker has room for, which of its threads are stuck, and which claims had no answer: decided without I/O."""

from __future__ import annotations

import threading
from contextlib import suppress
from uuid import UUID, uuid4

import pytest
from structlog.testing import capture_logs

from tests.support.clock import Clock, set_clock
from tests.worker.test_outcome import attempt, made
from worker import slots
from worker.execution import Execution
from worker.slots import Slots, StuckThreads, UnacknowledgedClaims

PATIENCE = 10.0


class Wakes:
    count = 0

    def __call__(self) -> None:
        self.count += 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return set_clock(monkeypatch, slots)


@pytest.fixture
def wakes() -> Wakes:
    return Wakes()


def execution(*, ended: bool = False) -> Execution:
    running = Execution(attempt(), made(), lambda _execution, _outcome: None, threading.Event())
    if ended:
        assert running.end()
    return running


def key(number: int = 1) -> tuple[UUID, int]:
    return uuid4(), number


@pytest.mark.parametrize(
    ("number", "running", "waiting", "room"),
    [
        pytest.param(10, 0, 0, 5, id="idle: half of the slots"),
        pytest.param(10, 4, 0, 5, id="half of the slots, though more are free"),
        pytest.param(10, 6, 0, 4, id="no more than are free"),
        pytest.param(10, 10, 0, 0, id="none is free"),
        pytest.param(1, 0, 0, 1, id="the half of one is one"),
        pytest.param(3, 0, 0, 2, id="the half of three is two"),
        pytest.param(10, 0, 10, 5, id="outcomes that wait take no slot"),
        pytest.param(10, 0, 17, 3, id="but no more is held than twice the slots"),
        pytest.param(10, 8, 11, 1, id="what runs is held too"),
        pytest.param(10, 0, 20, 0, id="twice the slots are held"),
        pytest.param(10, 8, 12, 0, id="twice the slots are held, and two are free"),
        pytest.param(10, 9, 30, 0, id="never less than none"),
    ],
)
def test_there_is_room_for_half_of_the_slots_at_a_time_if_as_many_are_free(
    wakes: Wakes, number: int, running: int, waiting: int, room: int
) -> None:
    has = Slots(number, PATIENCE, wakes)
    for _ in range(waiting):
        returned = execution(ended=True)
        has.take(returned)
        has.vacate(returned)
    for _ in range(running):
        has.take(execution())
    assert has.room == room


def test_a_slot_is_free_once_its_pipeline_has_returned_and_its_attempt_held_until_it_is_written(
    wakes: Wakes,
) -> None:
    has = Slots(1, PATIENCE, wakes)
    running = execution()
    has.take(running)
    assert (has.held, has.occupied, has.room) == ({running.attempt.key: running}, {running}, 0)
    has.vacate(running)
    assert (has.held, has.occupied, has.room) == ({running.attempt.key: running}, set(), 1)
    has.drop(running)
    assert (has.held, has.occupied, has.room) == ({}, set(), 1)


def test_an_outcome_written_before_its_pipeline_returns_frees_no_slot(wakes: Wakes) -> None:
    has = Slots(1, PATIENCE, wakes)
    running = execution()
    has.take(running)
    has.drop(running)
    assert (has.held, has.room) == ({}, 0)
    has.vacate(running)
    assert has.room == 1


@pytest.mark.parametrize("full", [True, False], ids=["full", "not full"])
def test_room_wakes_only_who_took_all_that_there_was(wakes: Wakes, full: bool) -> None:
    has = Slots(2, PATIENCE, wakes)
    running = execution()
    has.take(running)
    has.full = full
    assert wakes.count == 0
    has.vacate(running)
    assert wakes.count == (1 if full else 0)
    has.drop(running)
    assert wakes.count == (2 if full else 0)


def test_a_pipeline_that_runs_on_after_its_attempt_has_ended_is_stuck_and_logged_once() -> None:
    stuck, left_behind, running = StuckThreads(3, PATIENCE), execution(ended=True), execution()
    with capture_logs() as events:
        stuck.look({left_behind, running})
        stuck.look({left_behind, running})
    assert len(stuck) == 1
    assert [(event["event"], event["job_id"], event["attempt"]) for event in events] == [
        ("attempt.stuck", left_behind.attempt.job.id, left_behind.number)
    ]
    with capture_logs() as events:
        running.end()
        stuck.look({left_behind, running})
    assert [event["job_id"] for event in events] == [running.attempt.job.id]
    stuck.look(set())
    assert len(stuck) == 0


def test_a_worker_is_exhausted_when_every_slot_was_stuck_for_longer_than_it_has_patience(
    clock: Clock,
) -> None:
    stuck, occupied = StuckThreads(2, PATIENCE), {execution(ended=True), execution(ended=True)}
    assert not stuck.exhausted
    stuck.look(occupied)
    clock.now += PATIENCE
    stuck.look(occupied)  # looking again begins nothing anew
    assert not stuck.exhausted
    clock.now += 0.5
    assert stuck.exhausted


def test_a_worker_with_one_slot_that_is_not_stuck_is_never_exhausted(clock: Clock) -> None:
    stuck, occupied = StuckThreads(3, PATIENCE), {execution(ended=True), execution(ended=True), execution()}
    for _ in range(5):
        stuck.look(occupied)
        clock.now += PATIENCE
        assert not stuck.exhausted


def test_one_slot_that_is_freed_begins_the_patience_anew(clock: Clock) -> None:
    first, second, third = (execution(ended=True) for _ in range(3))
    stuck = StuckThreads(2, PATIENCE)
    stuck.look({first, second})
    clock.now += PATIENCE + 1
    assert stuck.exhausted
    stuck.look({first})
    assert not stuck.exhausted
    stuck.look({first, third})
    clock.now += PATIENCE
    assert not stuck.exhausted
    clock.now += 1
    assert stuck.exhausted


def test_an_attempt_that_nobody_holds_is_lost_at_the_second_beat() -> None:
    claims, first, second = UnacknowledgedClaims(), key(), key()
    assert claims.lost({first}) == set()
    assert claims.lost({first, second}) == {first}
    assert claims.lost({second}) == {second}


def test_an_attempt_is_not_lost_while_the_claim_runs_that_may_bring_it() -> None:
    claims, mine = UnacknowledgedClaims(), key()
    with claims.claiming():
        pass
    with claims.claiming():
        for _ in range(3):
            assert claims.lost({mine}) == set()
    assert claims.lost({mine}) == {mine}


def test_a_claim_that_began_after_an_attempt_was_seen_does_not_keep_it() -> None:
    claims, mine = UnacknowledgedClaims(), key()
    with claims.claiming():
        assert claims.lost({mine}) == set()
    with claims.claiming():
        assert claims.lost({mine}) == {mine}


def test_a_claim_that_fails_has_ended_too() -> None:
    claims, mine = UnacknowledgedClaims(), key()
    with suppress(ConnectionError), claims.claiming():
        assert claims.lost({mine}) == set()
        raise ConnectionError
    assert claims.lost({mine}) == {mine}


def test_an_attempt_that_a_beat_does_not_show_is_forgotten() -> None:
    claims, mine = UnacknowledgedClaims(), key()
    assert claims.lost({mine}) == set()
    assert claims.lost(set()) == set()
    assert claims.lost({mine}) == set()
    assert claims.lost({mine}) == {mine}


def test_an_attempt_whose_release_failed_is_found_anew_two_beats_later() -> None:
    claims, mine = UnacknowledgedClaims(), key()
    assert [claims.lost({mine}) for _ in range(4)] == [set(), {mine}, set(), {mine}]


def test_the_next_attempt_of_a_job_is_another_one() -> None:
    claims, (job_id, number) = UnacknowledgedClaims(), key()
    assert claims.lost({(job_id, number)}) == set()
    assert claims.lost({(job_id, number + 1)}) == set()
