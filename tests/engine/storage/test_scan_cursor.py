"""The cursor of a scan: what it remembers."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from engine.storage import scan_cursor
from engine.storage.scan_cursor import Marks, ScanCursor


class Row(NamedTuple):
    lane: str
    position: int


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
