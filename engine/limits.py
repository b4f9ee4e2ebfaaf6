"""The bounds of a job's fields in one table, and the message for a value outside its bounds.

The HTTP models, the library's check (engine/moves/validation.py), the pipelines and the schema's check (the function
outrider_job_fits) follow this table. A test compares the schema with the table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol


class Limit(Protocol):
    """A set of allowed values, asked by `value in limit`. `fault` describes a value outside."""

    def __contains__(self, value: Any, /) -> bool: ...

    @property
    def fault(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from `low` to `high`, both included. `of` names what is counted; empty for a plain number."""

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
    """Texts that match a regular expression as a whole."""

    regex: re.Pattern[str]

    def __contains__(self, text: str) -> bool:
        return self.regex.fullmatch(text) is not None

    @property
    def fault(self) -> str:
        return f"not {self.regex.pattern}"


@dataclass(frozen=True, slots=True)
class Times:
    """Times with a zone, up to `last`. A past time means at once, so a time before `first` counts as `first`."""

    first: datetime
    last: datetime

    def __contains__(self, moment: object) -> bool:
        known = _in_utc(moment) if isinstance(moment, datetime) else None
        return known is not None and known <= self.last

    @property
    def fault(self) -> str:
        return f"not a time with a zone, up to the year {self.last.year}"

    def clamped(self, moment: datetime) -> datetime:
        """`moment`, which is in these times, in UTC and not before `first`.

        PostgreSQL accepts no zone offset beyond 15:59.
        """
        return max(_in_utc(moment) or self.first, self.first)


def _in_utc(moment: datetime) -> datetime | None:
    """`moment` in UTC. None without a zone, or if that is before the year 1 or after the year 9999."""
    try:
        offset = moment.utcoffset()
    except Exception:  # noqa: BLE001 - a zone may be anybody's code; one that fails is none
        return None
    if offset is None:
        return None
    try:
        # Of a subclass's moment, too, this is a plain datetime.
        return (datetime.combine(moment.date(), moment.time()) - offset).replace(tzinfo=UTC)
    except OverflowError:
        return None


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
"""A bound of pipelines, not of jobs."""
MEMORY_MB: Final = Range(64, 1_048_576, "MiB")
"""A bound of pipelines. The interpreter with the engine in it takes about 50."""
