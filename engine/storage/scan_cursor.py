"""Remembers where the scans of a queue go on, so that dead index entries once passed are not read again."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Hashable, Mapping
from typing import Final, Generic, Protocol, TypeVar

from engine.storage.throttle import Throttle

SWEEP_SECONDS: Final = 2.0
MAX_SWEEP_SECONDS: Final = 0.25
"""The most that a sweep counts for in the throttle. Behind a held snapshot a sweep costs 0.15 s."""
MAX_MARKS: Final = 1000
"""The most lanes remembered. The lanes of a relay come and go with the presets of others' jobs."""


class Placed(Protocol):
    """A row with its place. Positions only grow within a lane, except for rows that are released."""

    @property
    def lane(self) -> Hashable: ...
    @property
    def position(self) -> int: ...


Row = TypeVar("Row", bound=Placed)
Marks = Mapping[Hashable, int]
Scan = Callable[[Marks | None], Awaitable[list[Row]]]


class ScanCursor(Generic[Row]):
    """Remembers for each lane how far the scans have come.

    Rows below that mark (late commits, released rows) are found by a sweep of the whole index. A sweep runs when a scan
    finds nothing, every 2 s while scans find rows, and never for more than 1/20 of the time.
    """

    def __init__(self) -> None:
        self._marks: dict[Hashable, int] = {}
        self._turns: dict[Hashable, int] = {}
        self._sweeps = Throttle(SWEEP_SECONDS, most=MAX_SWEEP_SECONDS)

    async def next(self, scan: Scan[Row]) -> list[Row]:
        """The next rows. `scan(marks)` looks above the mark of each lane; `scan(None)` is a sweep from the start."""
        self._turns.clear()
        if self._sweeps.due:
            return await self._sweep(scan)
        found = self._passed(await scan(self._marks))
        if not found and self._sweeps.allowed:
            return await self._sweep(scan)
        return found

    async def turn(self, scan: Scan[Row]) -> list[Row]:
        """The rows after those of the last turn, and after the last row the first ones again.

        For a search among rows that may fail and stay: `next` would find the first of them each time.
        """
        found = await scan(self._turns) if self._turns else []
        if not found:
            self._turns.clear()
            found = await scan(None)
        for row in found:
            self._turns[row.lane] = max(self._turns.get(row.lane, 0), row.position)
        return found

    async def _sweep(self, scan: Scan[Row]) -> list[Row]:
        began = time.monotonic()
        found = await scan(None)
        self._sweeps.ended(began)
        return self._passed(found)

    def _passed(self, found: list[Row]) -> list[Row]:
        for row in found:
            self._marks[row.lane] = max(self._marks.get(row.lane, 0), row.position)
        # The oldest mark goes first. A lane without a mark is read from its start, once.
        while len(self._marks) > MAX_MARKS:
            del self._marks[next(iter(self._marks))]
        return found
