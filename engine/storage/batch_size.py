"""How many rows a statement may change, or bytes a request may hold, by how long the last ones took."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from psycopg.errors import QueryCanceled

QUICK: Final = 0.1
SLOW: Final = 0.5
"""Shares of the deadline. A batch that is doubled after a quick run stays far below the deadline. A failure counts as
a time-out only if it came late."""


class BatchSize:
    """Halved when a run is cut off by its deadline, doubled when one is quick, from `least` up to `most`.

    A statement that hits its deadline is rolled back: with a fixed size a slow database would do nothing for ever.
    `seconds` is the deadline of one run, or how long a run should take at most: a run that took many times as long
    divides the size by as much. `cut_off` tells the time-outs of the other side, which count however soon they came:
    it may know a deadline of its own.
    """

    def __init__(
        self,
        most: int,
        seconds: float,
        least: int = 1,
        cut_off: Callable[[Exception], bool] = lambda error: isinstance(error, QueryCanceled),
    ) -> None:
        self.current = most
        self._most = most
        self._least = least
        self._seconds = seconds
        self._cut_off = cut_off

    @contextmanager
    def run(self, used: int | None = None) -> Iterator[int]:
        """Yield the size for this run, and judge its length at its end. `used` is how much of it the run has, if known.

        A small run says nothing of larger ones by being quick.
        """
        began = time.monotonic()
        used = self.current if used is None else used
        try:
            yield self.current
        except Exception as error:
            # Any error, because a severed connection fails in many ways; it goes on to the caller. A failure that came
            # sooner than the deadline is of another kind.
            if self._cut_off(error) or self._share(began) >= SLOW:
                self._shrink(used, self._share(began))
            raise
        share = self._share(began)
        if share > 1:
            self._shrink(used, share)
        elif share < QUICK and 2 * used >= self.current:
            self.current = min(2 * self.current, self._most)

    def _share(self, began: float) -> float:
        return (time.monotonic() - began) / self._seconds

    def _shrink(self, used: int, share: float) -> None:
        self.current = max(self._least, min(self.current, used) // max(2, math.ceil(share)))
