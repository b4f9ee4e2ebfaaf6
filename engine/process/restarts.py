"""When a process that ended is started again, and when not any more."""

from __future__ import annotations

import random
import time
from typing import Final

MIN_BACKOFF_SECONDS: Final = 0.5
MAX_BACKOFF_SECONDS: Final = 30.0
STEADY_SECONDS: Final = 60.0
"""A process that has run this long starts again with the shortest back-off."""
MAX_FAILED_STARTS: Final = 6
"""Ends in a row before the process had started. With the back-off they take 8 s on average, and the starts."""
MAX_ENDS: Final = 12
"""Ends in a row of which none came after a steady run."""


class Backoff:
    """How many seconds to wait before an ended process is started again: exponential, with full jitter."""

    def __init__(self, longest: float = MAX_BACKOFF_SECONDS, steady: float = STEADY_SECONDS) -> None:
        self._longest = longest
        self._steady = steady
        self._seconds = MIN_BACKOFF_SECONDS
        self._since = time.monotonic()

    @property
    def steady(self) -> bool:
        """Whether the process has run for `steady` seconds since its last start."""
        return time.monotonic() - self._since > self._steady

    def next(self) -> float:
        """Each bound is twice the last, up to `longest`. After a steady run they begin anew."""
        if self.steady:
            self._seconds = MIN_BACKOFF_SECONDS
        seconds, self._seconds = self._seconds, min(self._seconds * 2, self._longest)
        # Not for secrets: processes that ended together shall not start together.
        return random.uniform(0, seconds)  # noqa: S311

    def started(self) -> None:
        self._since = time.monotonic()


class Ends:
    """Counts the ends of a process, and tells a storm from a mishap."""

    def __init__(self) -> None:
        self._failed_starts = 0
        self._in_a_row = 0

    def storm(self, *, started: bool, steady: bool) -> bool:
        """Note an end; whether the process is not to be started again. `started`: it had opened its admin port."""
        self._failed_starts = 0 if started else self._failed_starts + 1
        self._in_a_row = 0 if steady else self._in_a_row + 1
        return self._failed_starts >= MAX_FAILED_STARTS or self._in_a_row >= MAX_ENDS


def exit_code(code: int) -> int:
    """The exit code as a shell reports it: 128 + n for signal n."""
    return 128 - code if code < 0 else code
