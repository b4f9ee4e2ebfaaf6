"""Scans go on where the last one ended, and a sweep finds what lies below, for a twentieth of the time at most."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from engine.storage import scan_cursor, throttle
from engine.storage.scan_cursor import MAX_SWEEP_SECONDS, SWEEP_SECONDS, Marks, ScanCursor
from engine.storage.throttle import COST
from tests.support.clock import Clock, set_clock

SWEEP = None


class Row(NamedTuple):
    lane: str
    position: int


class Queue:
    """Rows to be scanned. `asked` is the marks of each scan since it was last read; a sweep has none."""

    def __init__(self, clock: Clock) -> None:
        self.cursor: ScanCursor[Row] = ScanCursor()
        self.rows: list[Row] = []
        self.sweep_seconds = 0.0
        self._clock = clock
        self._asked: list[Marks | None] = []

    async def take(self, *rows: Row) -> list[Row]:
        """Add rows, and take what the cursor finds."""
        self.rows.extend(rows)
        found = await self.cursor.next(self._scan)
        self.rows = [row for row in self.rows if row not in found]
        return found

    async def _scan(self, marks: Marks | None) -> list[Row]:
        self._asked.append(None if marks is None else dict(marks))
        if marks is None:
            self._clock.now += self.sweep_seconds
        return [row for row in self.rows if marks is None or row.position > marks.get(row.lane, 0)]

    @property
    def asked(self) -> list[Marks | None]:
        asked, self._asked = self._asked, []
        return asked


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = set_clock(monkeypatch, throttle)
    monkeypatch.setattr(scan_cursor, "time", clock)
    return clock


@pytest.fixture
def queue(clock: Clock) -> Queue:
    return Queue(clock)


async def test_after_the_first_sweep_each_lane_is_scanned_above_its_own_mark(queue: Queue) -> None:
    assert len(await queue.take(Row("a", 7), Row("b", 3), Row("a", 5))) == 3
    assert queue.asked == [SWEEP]
    assert await queue.take(Row("b", 4)) == [Row("b", 4)]
    assert queue.asked == [{"a": 7, "b": 3}]


async def test_a_row_that_was_released_does_not_lower_the_mark(queue: Queue, clock: Clock) -> None:
    await queue.take(Row("a", 7))
    clock.now += SWEEP_SECONDS
    assert await queue.take(Row("a", 2)) == [Row("a", 2)]
    await queue.take(Row("a", 8))
    assert queue.asked == [SWEEP, SWEEP, {"a": 7}]


async def test_a_scan_that_finds_nothing_is_followed_by_a_sweep_at_once(queue: Queue) -> None:
    await queue.take(Row("a", 7))
    assert await queue.take(Row("a", 2)) == [Row("a", 2)]
    assert queue.asked == [SWEEP, {"a": 7}, SWEEP]


async def test_while_scans_find_rows_a_sweep_runs_every_two_seconds(queue: Queue, clock: Clock) -> None:
    await queue.take()
    clock.now += SWEEP_SECONDS - 0.125
    await queue.take(Row("a", 1))
    assert queue.asked == [SWEEP, {}]
    clock.now += 0.125
    await queue.take(Row("a", 2))
    assert queue.asked == [SWEEP]


@pytest.mark.parametrize(
    "seconds", [0.125, MAX_SWEEP_SECONDS, 3600.0], ids=["quick", "slow", "held by a lock"]
)
async def test_a_sweep_puts_the_next_one_off_for_what_it_can_have_cost(
    queue: Queue, clock: Clock, seconds: float
) -> None:
    queue.sweep_seconds = seconds
    await queue.take()
    clock.now += COST * min(seconds, MAX_SWEEP_SECONDS) - 0.125
    await queue.take()
    assert queue.asked == [SWEEP, {}]
    clock.now += 0.125
    await queue.take()
    assert queue.asked == [SWEEP]


async def test_lanes_that_come_and_go_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_cursor, "MAX_MARKS", 3)
    cursor: ScanCursor[Row] = ScanCursor()
    asked: list[Marks | None] = []

    def finds(*rows: Row) -> scan_cursor.Scan[Row]:
        async def scan(marks: Marks | None) -> list[Row]:
            asked.append(None if marks is None else dict(marks))
            return list(rows)

        return scan

    for n in range(10):
        await cursor.next(finds(Row(f"lane {n}", n)))
    await cursor.next(finds(Row("lane 9", 11), Row("lane 9", 10)))
    await cursor.next(finds(Row("lane 9", 12)))
    assert asked[-1] == {"lane 7": 7, "lane 8": 8, "lane 9": 11}


async def test_turns_come_to_each_row_that_stays_and_begin_again_after_the_last(queue: Queue) -> None:
    queue.rows = [Row("a", 1), Row("b", 2), Row("a", 3)]

    async def first(marks: Marks | None) -> list[Row]:
        found = [row for row in queue.rows if row.position > (marks or {}).get(row.lane, 0)]
        return found[:1]

    assert [(await queue.cursor.turn(first))[0].position for _ in range(7)] == [1, 2, 3, 1, 2, 3, 1]
    await queue.cursor.next(first)
    assert await queue.cursor.turn(first) == [Row("a", 1)]
