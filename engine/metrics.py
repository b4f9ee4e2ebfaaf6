"""Every metric of the project, on prometheus-client's default registry. Labels come from closed sets.

`preset` and `topic` are closed by configuration; no label ever holds a job, an owner or an error's text. A counter is
raised once what it counts has committed, so that the sums over all processes never exceed the database's counts.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from typing import Final

import prometheus_client
from prometheus_client import Counter, Gauge, Info
from prometheus_client.samples import Sample

FOLDED: Final = 500
EXEMPLAR_SECONDS: Final = 1.0


class Histogram(prometheus_client.Histogram):
    """Sorts what was observed into its buckets many at a time: 0.2 µs each, where one by one they take 1.2 to 3."""

    def _metric_init(self) -> None:
        super()._metric_init()
        self._loose: list[float] = []
        self._exemplar_due = 0.0

    def observe(self, amount: float, exemplar: Mapping[str, str] | None = None) -> None:
        if exemplar is not None:
            super().observe(amount, dict(exemplar))
            return
        self._loose.append(amount)
        if len(self._loose) >= FOLDED:
            self._fold()

    def traced(self, amount: float, traceparent: str | None) -> None:
        """As `observe`; with a traceparent its trace is an exemplar: 4 µs, and therefore one a second."""
        if traceparent is not None and (now := time.monotonic()) >= self._exemplar_due:
            self._exemplar_due = now + EXEMPLAR_SECONDS
            self.observe(amount, {"trace_id": traceparent[3:35]})
        else:
            self.observe(amount)

    def _fold(self) -> None:
        loose, self._loose = sorted(self._loose), []
        self._sum.inc(sum(loose))
        below = 0
        for bound, bucket in zip(self._upper_bounds, self._buckets, strict=True):
            upto = bisect_right(loose, bound, below)
            if upto > below:
                bucket.inc(upto - below)
            below = upto

    def _child_samples(self) -> Iterable[Sample]:
        self._fold()
        return super()._child_samples()


class Moment(Gauge):
    """A time, in seconds since 1970. Not shown before it is known: 0 would say that it is long ago."""

    def _child_samples(self) -> Iterable[Sample]:
        return super()._child_samples() if self._value.get() else ()


class Figures:
    """A gauge whose labels come from the database: a figure that is no longer there is 0 from then on."""

    def __init__(self, gauge: Gauge) -> None:
        self._gauge = gauge
        self._shown: set[tuple[str, ...]] = set()

    def show(self, figures: Mapping[tuple[str, ...], float]) -> None:
        for labels in self._shown - figures.keys():
            self._gauge.labels(*labels).set(0)
        for labels, figure in figures.items():
            self._gauge.labels(*labels).set(figure)
        self._shown |= figures.keys()


SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 3600)
ROWS = (1, 2, 5, 10, 25, 50, 100, 250, 500)

# HTTP: web.
HTTP_SECONDS = Histogram(
    "outrider_http_request_seconds",
    "Requests by route and status",
    ["route", "method", "status"],
    buckets=SECONDS,
)
HTTP_IN_FLIGHT = Gauge("outrider_http_requests_in_flight", "Requests being answered")
SSE_CONNECTIONS = Gauge("outrider_sse_connections", "Open event streams")
AUTH_FAILURES = Counter("outrider_auth_failures", "Refused tokens", ["reason"])
IDEMPOTENCY = Counter("outrider_idempotency_keys", "Submissions with a key, by what came of it", ["outcome"])
JWKS_FETCHED_AT = Moment(
    "outrider_jwks_fetched_timestamp_seconds",
    "When the issuer's keys were last fetched, or the process began; absent where a secret verifies the tokens",
)

# Jobs: whoever makes the move.
JOBS_ENQUEUED = Counter("outrider_jobs_enqueued", "Jobs accepted over HTTP", ["preset"])
JOBS_FINISHED = Counter("outrider_jobs_finished", "Results written, by state", ["preset", "state"])
JOBS_REDRIVEN = Counter("outrider_jobs_redriven", "Results taken back, to run the job again", ["preset"])
DEAD_LETTERS = Counter(
    "outrider_dead_letters",
    "Jobs that failed for good, by reason: failed, timeout, lapsed",
    ["preset", "reason"],
)
ATTEMPTS = Counter(
    "outrider_attempts",
    "Attempts ended, by outcome: completed, retry, failed, timeout, cancelled, snoozed, released, or lost to a lapse",
    ["preset", "outcome"],
)
OUTCOMES_DROPPED = Counter(
    "outrider_outcomes_dropped",
    "Outcomes that found their attempt taken back, and were not written",
    ["preset"],
)
WAIT_SECONDS = Histogram(
    "outrider_job_wait_seconds", "From due to the attempt's start", ["preset"], buckets=SECONDS
)
RUN_SECONDS = Histogram("outrider_attempt_run_seconds", "An attempt's run", ["preset"], buckets=SECONDS)
JOB_SECONDS = Histogram("outrider_job_seconds", "From accepted to completed", ["preset"], buckets=SECONDS)
STAGE_SECONDS = Histogram(
    "outrider_job_stage_seconds",
    "A job's way: publish (ready to published), claim (ready or published to claimed), run, record (ended to written)",
    ["stage"],
    buckets=SECONDS,
)
BATCH_ROWS = Histogram("outrider_batch_rows", "Items written together", ["batch"], buckets=ROWS)
BATCH_SECONDS = Histogram("outrider_batch_write_seconds", "One group's write", ["batch"], buckets=SECONDS)

# Workers.
WORKER_SLOTS = Gauge("outrider_worker_slots", "Attempts this process can run at once")
WORKER_BUSY = Gauge("outrider_worker_busy_slots", "Attempts this process runs now")
HEARTBEATS = Counter("outrider_heartbeats", "Beats of the worker's lease", ["outcome"])
LEASES_LOST = Counter("outrider_leases_lost", "Leases that this worker found gone")
CLAIM_SECONDS = Histogram("outrider_claim_seconds", "One claim", ["scan"], buckets=SECONDS)
MESSAGES = Counter("outrider_messages", "Messages that were received, by what was done with them", ["action"])
STREAM_STALLS = Counter(
    "outrider_stream_stalls", "Streams that brought nothing while published jobs grew old"
)
FALLBACK_CLAIMS = Counter(
    "outrider_fallback_claims", "Jobs claimed because no message had come for them", ["status"]
)

# The relay.
PUBLISH_SECONDS = Histogram("outrider_publish_seconds", "One publish request", ["topic"], buckets=SECONDS)
PUBLISH_ROWS = Histogram("outrider_publish_rows", "Messages of one publish request", ["topic"], buckets=ROWS)
PUBLISHED_ROWS = Counter("outrider_published_messages", "Messages that the broker has taken", ["topic"])
PUBLISH_ERRORS = Counter(
    "outrider_publish_errors", "Publish requests that failed, by reason", ["topic", "reason"]
)
BREAKER_OPEN = Gauge(
    "outrider_breaker_open",
    "1 while nothing goes to this topic; misconfigured: people must mend it",
    ["topic", "fault"],
)
RELAY_CYCLED_AT = Moment(
    "outrider_relay_cycled_timestamp_seconds",
    "When the relay last looked for rows, or its breaker was open",
    ["topic"],
)
WAKE_UPS_REFUSED = Counter("outrider_wake_ups_refused", "Wake-ups that the broker will never take")
EVENTS_REFUSED = Counter(
    "outrider_events_quarantined", "Events that the broker will never take, set aside", ["topic"]
)

# Maintenance: the relay's, and the one sampler's view of the database. Every relay shows the same figures.
MAINTENANCE_ROWS = Counter("outrider_maintenance_rows", "Rows moved or removed by maintenance", ["chore"])
MAINTENANCE_ERRORS = Counter(
    "outrider_maintenance_errors", "Chores that failed and will run again", ["chore"]
)
LAPSES = Counter("outrider_leases_lapsed", "Attempts taken from workers that were gone", ["preset"])
OUTBOX_ROWS = Gauge(
    "outrider_outbox_rows",
    "Unfinished jobs at the last sample; of each status, and ready ones of each priority, 50 000 are counted",
    ["preset", "status"],
)
OUTBOX_OLDEST = Moment(
    "outrider_outbox_oldest_due_timestamp_seconds", "When the oldest due row became due; now when none is"
)
EVENTS_ROWS = Gauge(
    "outrider_outbox_events", "Events at the last sample: pending, or quarantined", ["topic", "state"]
)
EVENTS_OLDEST = Moment(
    "outrider_outbox_events_oldest_timestamp_seconds",
    "When the oldest pending event was written; now when none is",
    ["topic"],
)
WORKERS_ALIVE = Gauge("outrider_workers_alive", "Workers with a lease, by preset", ["preset"])
SLOTS_ALIVE = Gauge("outrider_slots_alive", "The slots of workers with a lease, by preset", ["preset"])
SAMPLED_AT = Moment("outrider_sampled_timestamp_seconds", "When the sampler last looked")
XMIN_AGE_SECONDS = Gauge(
    "outrider_database_oldest_transaction_seconds",
    "The age of the oldest open transaction, which holds vacuum back",
)
DEAD_TUPLES = Gauge("outrider_database_dead_tuples", "Dead rows of a hot table", ["table"])
TABLE_BYTES = Gauge("outrider_database_table_bytes", "A table with its indexes", ["table"])

# Every process.
STATEMENT_SECONDS = Histogram(
    "outrider_database_statement_seconds", "A statement, by name", ["statement"], buckets=SECONDS
)
POOL_CONNECTIONS = Gauge(
    "outrider_database_pool_connections",
    "Connections of a pool that are open, or idle, and those who wait for one",
    ["pool", "state"],
)
LOOP_LAG_SECONDS = Histogram(
    "outrider_event_loop_lag_seconds", "How late the event loop runs a timer", buckets=SECONDS
)
BUILD = Info("outrider_build", "What runs: version, role, transport")
CONFIG = Info("outrider_config", "The settings that should be alike in a fleet")
