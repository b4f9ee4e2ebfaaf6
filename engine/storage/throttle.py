"""Limits repeated work to a share of the time, however long one run takes."""

from __future__ import annotations

import time
from typing import Final

COST: Final = 20.0
"""A twentieth of the time: after one second of work comes a pause of 20 seconds."""


class Throttle:
    """Decides when work may run again: `every` seconds after its end, but not before COST times its duration.

    `most` bounds the duration that counts, in seconds. Work that waited for a lock, or in a process that was stopped,
    took longer than it costs.
    """

    def __init__(self, every: float = 0.0, *, most: float) -> None:
        self._every = every
        self._most = most
        self._ended = float("-inf")
        self._cost = 0.0

    @property
    def due(self) -> bool:
        """Whether `every` seconds have passed, and the work may run again."""
        return self.due_every(self._every)

    def due_every(self, seconds: float) -> bool:
        """As `due`, with `seconds` instead of `every`."""
        return self.allowed and self._since_end >= seconds

    @property
    def allowed(self) -> bool:
        """Whether the work may run again, even before `every` seconds have passed."""
        return self._since_end >= COST * self._cost

    def ended(self, began: float) -> None:
        """Note that the work begun at `began` (monotonic clock) has ended now."""
        self._ended = time.monotonic()
        self._cost = min(self._ended - began, self._most)

    @property
    def _since_end(self) -> float:
        return time.monotonic() - self._ended
