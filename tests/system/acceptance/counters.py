"""The counters of all processes, each with what the database says of the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

Labels = tuple[str, ...]
Sums = Counter[Labels]

OUTCOMES = """
SELECT j.preset, CASE WHEN a.reason LIKE 'lapsed%' THEN 'lost'
                      WHEN a.to_state = 'COMPLETED' THEN 'completed'
                      WHEN a.to_state = 'CANCELLED' THEN 'cancelled'
                      WHEN a.metadata -> 'error' ->> 'type' = 'TimeoutError' THEN 'timeout'
                      WHEN a.to_state = 'FAILED' THEN 'failed'
                      WHEN a.reason = 'error' THEN 'retry'
                      WHEN a.reason = 'snoozed' THEN 'snoozed'
                      WHEN a.reason = 'unreadable to its worker' THEN 'unreadable'
                      ELSE 'released' END AS outcome, count(*)
FROM job_state_records a JOIN jobs j ON j.id = a.job_id
WHERE a.from_state = 'PROCESSING'
GROUP BY 1, 2
"""
FAILURES = """
SELECT j.preset, CASE WHEN a.reason = 'lapsed' THEN 'lapsed'
                      WHEN a.metadata -> 'error' ->> 'type' = 'TimeoutError' THEN 'timeout'
                      ELSE 'failed' END, count(*)
FROM job_state_records a JOIN jobs j ON j.id = a.job_id
WHERE a.to_state = 'FAILED'
GROUP BY 1, 2
"""
RECORDS = "FROM job_state_records a JOIN jobs j ON j.id = a.job_id WHERE"
COUNTED: Mapping[str, tuple[Labels, str]] = {
    "outrider_jobs_enqueued_total": (("preset",), "SELECT preset, count(*) FROM jobs GROUP BY 1"),
    "outrider_attempts_total": (("preset", "outcome"), OUTCOMES),
    "outrider_jobs_finished_total": (
        ("preset", "state"),
        f"SELECT j.preset, a.to_state::text, count(*) {RECORDS}"
        " a.to_state IN ('COMPLETED', 'FAILED', 'CANCELLED') GROUP BY 1, 2",
    ),
    "outrider_dead_letters_total": (("preset", "reason"), FAILURES),
    "outrider_jobs_redriven_total": (
        ("preset",),
        f"SELECT j.preset, count(*) {RECORDS} a.reason = 'redriven' GROUP BY 1",
    ),
    "outrider_job_wait_seconds_count": (
        ("preset",),
        f"SELECT j.preset, count(*) {RECORDS} a.reason = 'claimed' GROUP BY 1",
    ),
    "outrider_job_seconds_count": (
        ("preset",),
        "SELECT preset, count(*) FROM job_results r JOIN jobs j ON j.id = r.job_id WHERE state = 'COMPLETED'"
        " GROUP BY 1",
    ),
}
"""Each counter, its labels, and the database's word for it."""
SHOWN: Mapping[str, tuple[Labels, str]] = {
    "outrider_outbox_rows": (
        ("preset", "status"),
        "SELECT preset, status::text, count(*) FROM outbox GROUP BY 1, 2",
    ),
    "outrider_workers_alive": (
        ("preset",),
        "SELECT preset, count(*) FROM workers, unnest(presets) preset WHERE expires_at > now() GROUP BY 1",
    ),
}


class Sum(NamedTuple):
    """What the processes say together, and the database."""

    name: str
    told: Sums
    true: Sums

    @property
    def equal(self) -> bool:
        return +self.told == +self.true

    @property
    def exceeds(self) -> bool:
        return bool(self.told - self.true)
