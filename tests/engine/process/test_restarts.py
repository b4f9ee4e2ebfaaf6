"""When a process that ended is started again: later each time, and not for ever."""

from __future__ import annotations

from engine.process.restarts import MAX_ENDS, MAX_FAILED_STARTS, Backoff, Ends, exit_code


def test_the_bound_of_the_wait_doubles_up_to_the_longest() -> None:
    bounds = [0.5, 1, 2, 4, 8, 16, 30, 30]
    drawn = zip(*(_waits(len(bounds)) for _ in range(200)), strict=True)
    for bound, waits in zip(bounds, drawn, strict=True):
        assert 0 <= min(waits) < bound / 4
        assert bound / 2 < max(waits) <= bound


def test_a_steady_run_begins_anew() -> None:
    backoff = Backoff(steady=0)
    assert max(backoff.next() for _ in range(50)) <= 0.5


def test_starts_that_fail_in_a_row_are_a_storm() -> None:
    ends = Ends()
    found = [ends.storm(started=False, steady=False) for _ in range(MAX_FAILED_STARTS)]
    assert found == [False] * (MAX_FAILED_STARTS - 1) + [True]


def test_short_runs_in_a_row_are_a_storm_later() -> None:
    ends = Ends()
    found = [ends.storm(started=True, steady=False) for _ in range(MAX_ENDS)]
    assert found == [False] * (MAX_ENDS - 1) + [True]


def test_ends_after_steady_runs_are_no_storm() -> None:
    ends = Ends()
    assert not any(ends.storm(started=True, steady=True) for _ in range(MAX_ENDS * 3))


def test_a_start_that_succeeds_ends_the_count_of_failed_ones() -> None:
    ends = Ends()
    rounds = [ends.storm(started=n % 3 == 2, steady=n % 6 == 5) for n in range(60)]
    assert not any(rounds)


def test_an_exit_code_by_a_signal_is_as_a_shell_reports_it() -> None:
    assert [exit_code(code) for code in (0, 3, -15)] == [0, 3, 143]


def _waits(count: int) -> list[float]:
    backoff = Backoff()
    return [backoff.next() for _ in range(count)]
