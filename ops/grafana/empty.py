"""Metrics whose queries may return nothing although all is well, each with the reason."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

PUBSUB: Final = "only in Pub/Sub mode"
KEYS: Final = "only if tokens are verified with the keys of a URL"

EMPTY: Final[Mapping[str, str]] = {
    "ALERTS": "no alert fires",
    "outrider_breaker_open": PUBSUB,
    "outrider_children": "no attempt runs in a process of its own",
    "outrider_claim_seconds": "only without Pub/Sub, where workers look for due jobs",
    "outrider_events_quarantined_total": PUBSUB,
    "outrider_events_set_back_total": PUBSUB,
    "outrider_fallback_claims_total": PUBSUB,
    "outrider_dead_letters_total": "no job failed for good",
    "outrider_jwks_fetched_timestamp_seconds": KEYS,
    "outrider_messages_total": PUBSUB,
    "outrider_processes": "no supervisor runs",
    "outrider_processes_ended_total": "no supervisor runs, or nothing has ended under one",
    "outrider_processes_silent": "every process under a supervisor shows its metrics",
    "outrider_publish_errors_total": "Pub/Sub refused no request, and was not away",
    "outrider_publish_rows": PUBSUB,
    "outrider_publish_seconds": PUBSUB,
    "outrider_published_messages_total": PUBSUB,
    "outrider_relay_cycled_timestamp_seconds": PUBSUB,
}


def reason(query: str) -> str | None:
    """Why `query` may return nothing. None if it must return something."""
    names = {re.sub("_(bucket|sum|count)$", "", name) for name in re.findall(r"\w+", query)}
    return next((why for name, why in EMPTY.items() if name in names), None)
