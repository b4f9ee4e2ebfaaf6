"""What the operations that take an Idempotency-Key have in common: how they declare it, and how they count its use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from engine.telemetry.metrics import IDEMPOTENCY
from web.operations import Header
from web.wire import idempotency

IDEMPOTENCY_KEY: Final = Header(
    name=idempotency.HEADER,
    description="A repeated request with the same key and body within 24 h gets the first answer. Quoted or bare.",
    schema={"type": "string", "pattern": idempotency.PATTERN},
)
REPLAYED: Final = {"Idempotent-Replayed": "`true` if the answer is that of an earlier request."}


def answered(*, replayed: bool) -> Mapping[str, str]:
    """Count an answer to a request with a key, and return the headers that say whether it is an earlier one's."""
    IDEMPOTENCY.labels("replayed" if replayed else "first").inc()
    return {"Idempotent-Replayed": "true"} if replayed else {}
