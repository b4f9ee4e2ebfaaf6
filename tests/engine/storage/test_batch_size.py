"""How many rows a statement may change: fewer when it takes too long, more again when it is quick."""

from __future__ import annotations

from contextlib import suppress

import pytest
from psycopg.errors import QueryCanceled

from engine.errors import DatabaseUnavailable
from engine.storage import batch_size
from engine.storage.batch_size import BatchSize
from tests.support.clock import Clock, set_clock

SECONDS = 10.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return set_clock(monkeypatch, batch_size)


def ran(size: BatchSize, clock: Clock, seconds: float, error: Exception | None = None) -> int:
    """The size after a run of so many seconds, which perhaps failed."""
    with suppress(DatabaseUnavailable, QueryCanceled, TypeError), size.run():
        clock.now += seconds
        if error is not None:
            raise error
    return size.current


@pytest.mark.parametrize(
    ("seconds", "error", "after"),
    [
        (10.0, DatabaseUnavailable("severed"), 500),
        (0.1, QueryCanceled("statement timeout"), 500),
        (9.0, None, 1000),
        (0.0, DatabaseUnavailable("connection refused"), 1000),
        (0.0, TypeError("a bug"), 1000),
        (0.0, None, 1000),
    ],
)
def test_a_run_that_timed_out_halves_the_next_one_and_nothing_else_does(
    clock: Clock, seconds: float, error: Exception | None, after: int
) -> None:
    assert ran(BatchSize(1000, SECONDS), clock, seconds, error) == after


def test_it_shrinks_to_a_single_row_and_never_to_none(clock: Clock) -> None:
    size = BatchSize(1000, SECONDS)
    sizes = [ran(size, clock, 10.0, DatabaseUnavailable("severed")) for _ in range(12)]
    assert sizes[:3] == [500, 250, 125]
    assert sizes[-3:] == [1, 1, 1]


def test_it_grows_back_while_runs_are_quick_up_to_where_it_began(clock: Clock) -> None:
    size = BatchSize(1000, SECONDS)
    for _ in range(3):
        ran(size, clock, 10.0, DatabaseUnavailable("severed"))
    assert [ran(size, clock, seconds) for seconds in (0.5, 2.0, 0.5, 0.5, 0.5)] == [250, 250, 500, 1000, 1000]


def test_the_run_is_told_how_many_rows_it_may_change(clock: Clock) -> None:
    size = BatchSize(1000, SECONDS)
    ran(size, clock, 10.0, DatabaseUnavailable("severed"))
    with size.run() as rows:
        assert rows == 500
