"""Judges from repeated looks which workers are dead, by the relay's own monotonic clock. No I/O.

A worker is dead if its row has stood still for a whole lease while this relay looked on without a break. The
database's clock has no say, because it may jump. Nor has a single look: after an outage of the database, or when the
whole host was frozen, every lease is old, and workers that live need a lease's time to renew theirs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from engine.moves.lapse import Sighting

LOOKS_PER_LEASE: Final = 6
BEATS_PER_LEASE: Final = 3
MIN_PERIOD_SECONDS: Final = 0.02
MAX_PERIOD_SECONDS: Final = 10.0
MIN_BREAK_SECONDS: Final = 0.25
"""No break in the looks is shorter: a busy relay may be late by so much."""


class Observed:
    """What the looks have seen so far. `lease_seconds` is the relay's own lease. Times are in seconds."""

    def __init__(self, lease_seconds: float) -> None:
        self._lease_seconds = lease_seconds
        self._known: dict[int, tuple[Sighting, float]] = {}
        """Each worker as it was seen first in its present state, and when that look had ended."""
        self._looked = float("-inf")
        self._begun = float("inf")
        """When the present unbroken looks began."""
        self.late = 0
        """Late looks since the last time when the looks were unbroken for a lease: nobody could be judged meanwhile."""

    @property
    def period(self) -> float:
        """How long to wait for the next look: the shortest lease in sight needs several."""
        leases = [first.lease_seconds for first, _ in self._known.values()]
        shortest = min(self._lease_seconds, *leases) if leases else self._lease_seconds
        return min(max(shortest / LOOKS_PER_LEASE, MIN_PERIOD_SECONDS), MAX_PERIOD_SECONDS)

    def look(self, began: float, ended: float, seen: Iterable[Sighting]) -> list[Sighting]:
        """Note what a look between `began` and `ended` saw, and return the workers that are dead.

        After a late or slow look a worker's time begins anew, because its heartbeats may have been held up, too.
        """
        since_last, self._looked = ended - self._looked, ended
        unbroken = since_last <= max(self._lease_seconds / BEATS_PER_LEASE, MIN_BREAK_SECONDS)
        self._begun = min(self._begun, ended) if unbroken else ended
        self.late = 0 if began - self._begun >= self._lease_seconds else self.late + (not unbroken)
        known, self._known = self._known, {}
        dead = []
        for now in seen:
            first, since = known.get(now.worker_id, (now, ended))
            in_time = since_last <= max(first.lease_seconds / BEATS_PER_LEASE, MIN_BREAK_SECONDS)
            if not in_time or first.expires_at != now.expires_at:
                first, since = now, ended
            self._known[now.worker_id] = first, since
            if began - since >= first.lease_seconds:
                dead.append(now)
        return dead

    def forget(self) -> None:
        """Begin anew, after a look that failed or a new connection."""
        self._known.clear()
        self._begun = float("inf")
        self.late = 0
