"""The W3C trace context that is kept with a job, as text (https://www.w3.org/TR/trace-context/).

`tracestate` is dropped, which the standard allows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from engine.telemetry.spans import OFF, Span

TRACEPARENT: Final = re.compile(
    r"(?!ff)([0-9a-f]{2})-((?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16})-([0-9a-f]{2})(-.*)?"
)


def accept(given: Sequence[str]) -> str | None:
    """The context in a request's `traceparent` headers, as version 00. None unless the only header is valid."""
    match = TRACEPARENT.fullmatch(given[0]) if len(given) == 1 else None
    if match is None:
        return None
    version, ids, flags, rest = match.groups()
    if version == "00":
        return None if rest else given[0]
    # Of a later version, version 00 knows these parts only.
    return f"00-{ids}-{int(flags, 16) & 1:02x}"


def kept(context: str | None) -> str | None:
    """The context that was kept with a job, or None if the text is not one: SQL may have written any text."""
    return None if context is None or not TRACEPARENT.fullmatch(context) else context


def ids(context: str | None, span: Span = OFF) -> dict[str, str]:
    """Fields of a log line: the ids of the span and its trace, or the trace of `context` if no spans are exported."""
    if own := span.traceparent:
        return {"trace_id": own[3:35], "span_id": own[36:52]}
    return {"trace_id": context[3:35]} if context else {}
