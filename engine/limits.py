"""What a job may be: one table of bounds, and the words for a value that is outside.

HTTP's models, the library's check (engine/moves/validation.py), pipelines and the schema's CHECK constraints have
their bounds and their words from here. A test holds the constraints to it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol


class Limit(Protocol):
    """`value in limit`; and what is wrong with a value that is not."""

    def __contains__(self, value: Any, /) -> bool: ...

    @property
    def fault(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Range:
    """Both bounds are allowed. `of` says what is counted: bytes, characters, nothing for a plain number."""

    low: int
    high: int
    of: str = ""

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    @property
    def fault(self) -> str:
        return f"not {self.low} to {self.high} {self.of}".rstrip()


@dataclass(frozen=True, slots=True)
class Pattern:
    """A regular expression that the whole text must match."""

    regex: re.Pattern[str]

    def __contains__(self, text: str) -> bool:
        return self.regex.fullmatch(text) is not None

    @property
    def fault(self) -> str:
        return f"not {self.regex.pattern}"


@dataclass(frozen=True, slots=True)
class Times:
    """Times with a zone up to `last`. A time that has passed means at once: one before `first` counts as `first`."""

    first: datetime
    last: datetime

    def __contains__(self, moment: datetime) -> bool:
        return moment.tzinfo is not None and moment <= self.last

    @property
    def fault(self) -> str:
        return f"not a time with a zone, up to the year {self.last.year}"

    def clamped(self, moment: datetime) -> datetime:
        """In UTC, for PostgreSQL knows no zone beyond 15:59."""
        return max(moment, self.first).astimezone(UTC)


USER_ID: Final = Range(1, 255, "characters")
PRESET: Final = Pattern(re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}"))
CONTENT: Final = Range(1, 256 * 1024, "bytes as UTF-8")
METADATA: Final = Range(0, 256 * 1024, "bytes as JSON")
PRIORITY: Final = Range(1, 4)
MAX_ATTEMPTS: Final = Range(1, 25)
TIMEOUT_SECONDS: Final = Range(1, 86_400)
DELAY_SECONDS: Final = Range(0, 31_536_000)
RUN_AT: Final = Times(datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC))
BACKOFF_SECONDS: Final = Range(0, 600)
"""Of a pipeline, not of a job."""
