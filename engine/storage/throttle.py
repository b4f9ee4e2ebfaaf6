"""Work that must not take more than its share of the time, however long it takes."""

from __future__ import annotations

import time
from typing import Final

COST: Final = 20.0
"""A twentieth of the time: after work of a second comes a pause of 20."""


class Throttle:
    """Says when work may run again: `every` seconds after its end, or after COST times what it took.

    `most` bounds the seconds that count: work that waited for a lock, or in a process that was stopped, took longer
    than it costs.
    """

    def __init__(self, every: float = 0.0, *, most: float) -> None:
        self._every = every
        self._most = most
        self._ended = float("-inf")
        self._cost = 0.0

    @property
    def due(self) -> bool:
        """Whether the work is wanted again and may run."""
        return self.allowed and self._since_end >= self._every

    @property
    def allowed(self) -> bool:
        """Whether the work may run again, though it is not wanted yet."""
        return self._since_end >= COST * self._cost

    def ended(self, began: float) -> None:
        """The work that began at `began`, by the monotonic clock, has ended now."""
        self._ended = time.monotonic()
        self._cost = min(self._ended - began, self._most)

    @property
    def _since_end(self) -> float:
        return time.monotonic() - self._ended
