"""How much is measured, in a full and in a quick run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ops.bench.processes import HERE, Checkout


@dataclass(frozen=True, slots=True)
class Plan:
    """`repeat` is how often each section is measured, for the medians of its figures. Times are in seconds.

    `against` is another checkout, which some sections measure in turn with this one.
    """

    repeat: int = 3
    against: Checkout | None = None
    submission_seconds: float = 2.0
    connections: tuple[int, ...] = (1, 16, 64, 256)
    drain_rows: int = 120_000
    relay_rows: int = 40_000
    child_rows: int = 10_000
    pickups: int = 300
    small_rows: int = 10_000
    middle_rows: int = 100_000
    large_rows: int = 1_000_000
    held_seconds: float = 60.0
    held_window: float = 10.0
    rival_scale: float = 1.0

    @property
    def code(self) -> dict[str, Checkout]:
        """The checkouts to measure, by their names in tables."""
        return {"here": HERE} if self.against is None else {"here": HERE, "there": self.against}


FULL: Final = Plan()
QUICK: Final = Plan(
    repeat=1,
    submission_seconds=0.4,
    drain_rows=15_000,
    relay_rows=5_000,
    child_rows=3_000,
    pickups=60,
    small_rows=5_000,
    middle_rows=20_000,
    large_rows=50_000,
    held_seconds=6.0,
    held_window=1.5,
    rival_scale=0.1,
)
