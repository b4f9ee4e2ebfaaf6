"""The W3C trace context that travels with a job (https://www.w3.org/TR/trace-context/), as text.

A context's `tracestate` is not kept: the standard lets it be dropped.
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
    """The context in the `traceparent` headers of a request, in version 00; None unless there is one that is valid."""
    match = TRACEPARENT.fullmatch(given[0]) if len(given) == 1 else None
    if match is None:
        return None
    version, ids, flags, rest = match.groups()
    if version == "00":
        return None if rest else given[0]
    return f"00-{ids}-{int(flags, 16) & 1:02x}"  # all that this version knows of a later one


def kept(context: str | None) -> str | None:
    """The context that was kept with a job. SQL may have written any text there; what is no context is None."""
    return None if context is None or not TRACEPARENT.fullmatch(context) else context


def ids(context: str | None, span: Span = OFF) -> dict[str, str]:
    """For a log line: the span and its trace, or the trace of `context` where nothing is exported."""
    if own := span.traceparent:
        return {"trace_id": own[3:35], "span_id": own[36:52]}
    return {"trace_id": context[3:35]} if context else {}
