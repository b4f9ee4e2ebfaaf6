"""Ids increase with time, differ, and tell when they were made."""

from __future__ import annotations

import time
from itertools import pairwise
from uuid import RFC_4122, UUID

import pytest
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from engine import ids
from engine.ids import first_id_of, uuid7


def test_ids_increase_and_are_of_version_7() -> None:
    made = [uuid7() for _ in range(20_000)]
    assert all(before < after for before, after in pairwise(made))
    assert {(each.version, each.variant) for each in made} == {(7, RFC_4122)}


async def test_ids_that_the_database_makes_one_after_the_other_increase(
    conn: AsyncConnection[TupleRow],
) -> None:
    made = []
    before = time.time_ns() // 1_000_000
    for _ in range(300):
        row = await (await conn.execute("SELECT outrider_uuid7()")).fetchone()
        assert row is not None
        made.append(row[0])
    after = time.time_ns() // 1_000_000
    assert all(first < second for first, second in pairwise(made))
    assert {(each.version, each.variant) for each in made} == {(7, RFC_4122)}
    assert all(before <= each.int >> 80 <= after for each in made)


def test_an_id_tells_when_it_was_made_to_the_millisecond() -> None:
    before = time.time_ns() // 1_000_000
    made = uuid7()
    after = time.time_ns() // 1_000_000
    assert before <= made.int >> 80 <= after


def test_ids_increase_though_the_clock_stands_still_or_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    first, now = uuid7(), time.time_ns()
    for moment in (now, now, now - 3_600_000_000_000, 0):
        monkeypatch.setattr(time, "time_ns", lambda moment=moment: moment)
        made = uuid7()
        assert (made > first, made.version, made.variant) == (True, 7, RFC_4122)
        first = made


def test_ids_differ_between_processes_that_make_them_at_one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    tick = ids._last_tick
    made: set[UUID] = set()
    for _ in range(1000):
        monkeypatch.setattr(ids, "_last_tick", tick)
        monkeypatch.setattr(time, "time_ns", lambda: 0)
        made.add(uuid7())
    assert len(made) == 1000
    assert len({each.int >> 62 for each in made}) == 1


def test_the_first_id_of_a_moment_is_below_all_made_then_and_above_all_made_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ids, "_last_tick", 0)
    moment = 1_700_000_000.25
    made = []
    for milliseconds in (1_700_000_000_249, 1_700_000_000_250):
        monkeypatch.setattr(time, "time_ns", lambda now=milliseconds: now * 1_000_000)
        made.append(uuid7())
    assert made[0] < first_id_of(moment) < made[1] < first_id_of(moment + 0.25)
