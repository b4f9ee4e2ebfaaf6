"""Where the scans of a queue go on: dead index entries that they have passed are not read again."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Hashable, Mapping
from typing import Final, Generic, Protocol, TypeVar

SWEEP_SECONDS: Final = 2.0
SWEEP_COST: Final = 20.0
"""An unbounded scan may take a twentieth of the time: behind a held snapshot one costs 0.15 s."""
MAX_SWEEP_SECONDS: Final = 0.25
"""What a sweep is taken to cost at most: one that waited for a lock, or for a process that was stopped, took longer."""


class Placed(Protocol):
    """A row with its place: positions only grow within a lane, but for rows that are given back."""

    @property
    def lane(self) -> Hashable: ...
    @property
    def position(self) -> int: ...


Row = TypeVar("Row", bound=Placed)
Marks = Mapping[Hashable, int]
Scan = Callable[[Marks | None], Awaitable[list[Row]]]


class Cursor(Generic[Row]):
    """Remembers, lane by lane, how far the scans have come.

    Rows below that mark (late commits, rows given back) are found by a sweep of the whole index: when a scan comes
    back empty, every 2 s while scans do not, and never for more than 1/20 of the time.
    """

    def __init__(self) -> None:
        self._marks: dict[Hashable, int] = {}
        self._swept = float("-inf")
        self._cost = 0.0

    async def next(self, scan: Scan[Row]) -> list[Row]:
        """The next rows. `scan(marks)` looks above the mark of each lane; None is a sweep, from the start."""
        if self._since_sweep() >= max(SWEEP_SECONDS, SWEEP_COST * self._cost):
            return await self._sweep(scan)
        found = self._passed(await scan(self._marks))
        if not found and self._since_sweep() >= SWEEP_COST * self._cost:
            return await self._sweep(scan)
        return found

    async def _sweep(self, scan: Scan[Row]) -> list[Row]:
        began = time.monotonic()
        found = await scan(None)
        self._swept = time.monotonic()
        self._cost = min(self._swept - began, MAX_SWEEP_SECONDS)
        return self._passed(found)

    def _passed(self, found: list[Row]) -> list[Row]:
        for row in found:
            self._marks[row.lane] = max(self._marks.get(row.lane, 0), row.position)
        return found

    def _since_sweep(self) -> float:
        return time.monotonic() - self._swept
