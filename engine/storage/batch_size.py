"""How many rows a statement may change, by how long the last ones took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from psycopg.errors import QueryCanceled

QUICK: Final = 0.1
SLOW: Final = 0.5
"""Shares of the deadline. A batch that is doubled after a quick run stays far below the deadline. A failure counts as
a time-out only if it came late."""


class BatchSize:
    """Halved when a run is cut off by its deadline, doubled when one is quick, up to `most` rows.

    A statement that hits its deadline is rolled back: with a fixed size a slow database would do nothing for ever.
    `seconds` is the deadline of one run. A time-out of the server's counts as one, however soon it came.
    """

    def __init__(self, most: int, seconds: float) -> None:
        self.rows = most
        self._most = most
        self._seconds = seconds

    @contextmanager
    def run(self) -> Iterator[int]:
        """Yield the number of rows for this run, and judge its length at its end."""
        began = time.monotonic()
        try:
            yield self.rows
        except QueryCanceled:
            self._halve()
            raise
        except Exception:
            # Any error, because a severed connection fails in many ways; it goes on to the caller. A failure that came
            # sooner than the deadline is of another kind.
            if self._share(began) >= SLOW:
                self._halve()
            raise
        if self._share(began) < QUICK:
            self.rows = min(2 * self.rows, self._most)

    def _share(self, began: float) -> float:
        return (time.monotonic() - began) / self._seconds

    def _halve(self) -> None:
        self.rows = max(1, self.rows // 2)
