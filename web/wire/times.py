"""Times in requests: a date-time of RFC 3339 §5.6, and nothing else that a lenient parser would take for one."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from typing import Annotated, Any, Final

from pydantic import BeforeValidator

DATE_TIME: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:Z|([+-])(\d\d):(\d\d))",
    re.ASCII | re.IGNORECASE,
)
FAULT: Final = "not a date-time of RFC 3339, such as 2030-01-31T12:00:00Z"
LAST_MINUTE: Final = timedelta(hours=23, minutes=59)
DAY: Final = timedelta(days=1)
SECOND: Final = timedelta(seconds=1)


def moment(given: Any) -> datetime:
    """The time that the text `given` writes, with its zone. Raises ValueError.

    Digits of a fraction beyond microseconds are dropped. A leap second counts as the second that follows it; UTC has
    one only in the last minute of a day.
    """
    found = DATE_TIME.fullmatch(given) if isinstance(given, str) else None
    if found is None:
        raise ValueError(FAULT)
    year, month, day, hour, minute, second = map(int, found.groups()[:6])
    fraction = int((found[7] or "")[:6].ljust(6, "0"))
    hours, minutes = int(found[9] or 0), int(found[10] or 0)
    offset = timedelta(hours=hours, minutes=minutes) * (-1 if found[8] == "-" else 1)
    leap = second == 60 and (timedelta(hours=hour, minutes=minute) - offset) % DAY == LAST_MINUTE
    if hours > 23 or minutes > 59:
        raise ValueError(FAULT)
    try:
        found_time = datetime(
            year, month, day, hour, minute, second - leap, fraction, tzinfo=timezone(offset)
        )
        return found_time + leap * SECOND
    except (ValueError, OverflowError):
        raise ValueError(FAULT) from None


Moment = Annotated[datetime, BeforeValidator(moment)]
"""A time in a body or a query."""
