"""Who is dead is judged by what was seen, look by look, and by no clock but the relay's own."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from engine.moves.lapse import Sighting
from relay.maintenance.observed import MAX_PERIOD_SECONDS, MIN_PERIOD_SECONDS, Observed

LEASE = 6.0
START = datetime(2026, 1, 1, tzinfo=UTC)


def seen(beat: float, *, worker: int = 1, lease: float = LEASE) -> Sighting:
    """The worker with the row that its heartbeat at `beat` left, by the database's clock."""
    return Sighting(worker, START + timedelta(seconds=beat + lease), lease)


def died_at(looks: Sequence[tuple[float, float]]) -> float | None:
    """The time of the look that finds the worker dead. Each look is (time, the beat that it sees)."""
    observed = Observed(LEASE)
    for at, beat in looks:
        if observed.look(at, at, [seen(beat)]):
            return at
    return None


def test_a_worker_is_dead_once_its_row_has_stood_still_for_a_lease() -> None:
    assert died_at([(at, 0) for at in range(20)]) == LEASE


def test_a_worker_that_beats_lives() -> None:
    assert died_at([(at, at // 2) for at in range(100)]) is None


@pytest.mark.parametrize("step", [60, -540], ids=["a minute ahead", "nine minutes back"])
def test_a_jump_of_the_databases_clock_neither_kills_a_worker_nor_saves_it(step: float) -> None:
    jumped = [(at, at + (step if at > 10 else 0)) for at in range(100)]
    assert died_at(jumped) is None
    still = [(at, min(at, 10) + (step if at >= 10 else 0)) for at in range(100)]
    assert died_at(still) == 10 + LEASE


@pytest.mark.parametrize("gap", [5, 9, 60])
def test_a_late_look_begins_a_workers_time_anew(gap: float) -> None:
    before = [(float(at), 0.0) for at in range(6)]
    after = [(5 + gap + at, 0.0) for at in range(10)]
    assert died_at(before + after) == 5 + gap + LEASE


def test_a_slow_look_is_a_late_one() -> None:
    observed = Observed(LEASE)
    for at in range(6):
        assert not observed.look(at, at, [seen(0)])
    assert not observed.look(6, 13, [seen(0)])
    for at in range(14, 19):
        assert not observed.look(at, at, [seen(0)])
    assert observed.look(19, 19, [seen(0)])


def test_a_look_that_failed_begins_every_workers_time_anew() -> None:
    observed = Observed(LEASE)
    for at in range(6):
        observed.look(at, at, [seen(0)])
    observed.forget()
    assert next(at for at in range(6, 20) if observed.look(at, at, [seen(0)])) == 6 + LEASE


def test_each_worker_is_judged_by_its_own_lease() -> None:
    observed = Observed(LEASE)
    dead: dict[int, float] = {}
    for step in range(100):
        at = step / 4
        rows = [seen(0, worker=1), seen(0, worker=2, lease=2), seen(0, worker=3, lease=20)]
        for each in observed.look(at, at, rows):
            dead.setdefault(each.worker_id, at)
    assert dead == {1: LEASE, 2: 2.0, 3: 20.0}


def test_a_late_look_is_late_for_short_leases_only() -> None:
    observed = Observed(30)
    dead = [
        [each.worker_id for each in observed.look(at, at, [seen(0, lease=30), seen(0, worker=2, lease=6)])]
        for at in range(0, 40, 5)
    ]
    assert dead == [[], [], [], [], [], [], [1], [1]]


def test_a_worker_without_a_row_waits_a_lease_too() -> None:
    observed = Observed(LEASE)
    gone = Sighting(1, None, LEASE)
    for at in range(3):
        observed.look(at, at, [seen(0)])
    assert next(at for at in range(3, 20) if observed.look(at, at, [gone])) == 3 + LEASE


def test_a_worker_that_was_not_seen_between_begins_anew() -> None:
    observed = Observed(LEASE)
    for at in range(4):
        observed.look(at, at, [seen(0)])
    observed.look(4, 4, [])
    assert next(at for at in range(5, 20) if observed.look(at, at, [seen(0)])) == 5 + LEASE


def test_the_shortest_lease_in_sight_sets_the_pace() -> None:
    observed = Observed(30)
    assert observed.period == 5
    observed.look(0, 0, [seen(0, lease=60), seen(0, worker=2, lease=1)])
    assert observed.period == pytest.approx(1 / 6)
    observed.look(1, 1, [seen(0, lease=60)])
    assert observed.period == 5
    assert Observed(3600).period == MAX_PERIOD_SECONDS
    assert Observed(0.01).period == MIN_PERIOD_SECONDS


def test_late_looks_are_counted_until_others_fill_a_lease() -> None:
    observed = Observed(LEASE)
    for n in range(1, 30):
        observed.look(n * 10.0, n * 10.0, [])
        observed.look(n * 10.0 + 1, n * 10.0 + 1, [])
        assert observed.late == n
    for at in range(int(LEASE) + 1):
        observed.look(300.0 + at, 300.0 + at, [])
    assert observed.late == 0
