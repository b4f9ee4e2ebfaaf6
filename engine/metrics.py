"""Every metric of the project, on prometheus-client's default registry. Labels come from closed sets."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 3600)

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

JOBS_ENQUEUED = Counter("outrider_jobs_enqueued", "Jobs accepted over HTTP", ["preset"])
ATTEMPTS = Counter("outrider_attempts", "Attempts ended, by outcome", ["preset", "outcome"])
JOBS_FINISHED = Counter("outrider_jobs_finished", "Results written by workers, by state", ["preset", "state"])
WAIT_SECONDS = Histogram(
    "outrider_job_wait_seconds", "From due to the attempt's start", ["preset"], buckets=SECONDS
)
RUN_SECONDS = Histogram("outrider_attempt_run_seconds", "An attempt's run", ["preset"], buckets=SECONDS)

BATCH_ROWS = Histogram(
    "outrider_batch_rows", "Items written together", ["batch"], buckets=(1, 2, 5, 10, 25, 50, 100, 250, 500)
)
BATCH_SECONDS = Histogram("outrider_batch_write_seconds", "One group's write", ["batch"], buckets=SECONDS)

WORKER_SLOTS = Gauge("outrider_worker_slots", "Attempts this process can run at once")
WORKER_BUSY = Gauge("outrider_worker_busy_slots", "Attempts this process runs now")
HEARTBEATS = Counter("outrider_heartbeats", "Beats of the worker's lease", ["outcome"])
CLAIM_SECONDS = Histogram("outrider_claim_seconds", "One claim", ["scan"], buckets=SECONDS)

MAINTENANCE_ROWS = Counter("outrider_maintenance_rows", "Rows moved or removed by maintenance", ["chore"])
MAINTENANCE_ERRORS = Counter(
    "outrider_maintenance_errors", "Chores that failed and will run again", ["chore"]
)
OUTBOX_ROWS = Gauge(
    "outrider_outbox_rows",
    "Unfinished jobs at the last sample, 100 000 in all at the most",
    ["preset", "status"],
)
OUTBOX_OLDEST = Gauge(
    "outrider_outbox_oldest_due_timestamp_seconds", "When the oldest due row became due; now when none is"
)
SAMPLED_AT = Gauge("outrider_sampled_timestamp_seconds", "When the sampler last looked")

PUBLISH_SECONDS = Histogram("outrider_publish_seconds", "One publish request", ["topic"], buckets=SECONDS)
PUBLISHED_ROWS = Counter("outrider_published_messages", "Messages that the broker has taken", ["topic"])
PUBLISH_ERRORS = Counter(
    "outrider_publish_errors", "Publish requests that failed, by reason", ["topic", "reason"]
)
BREAKER_OPEN = Gauge(
    "outrider_breaker_open",
    "1 while nothing goes to this topic; misconfigured: people must mend it",
    ["topic", "fault"],
)
WAKE_UPS_REFUSED = Counter("outrider_wake_ups_refused", "Wake-ups that the broker will never take")
EVENTS_REFUSED = Counter(
    "outrider_events_quarantined", "Events that the broker will never take, set aside", ["topic"]
)

MESSAGES = Counter("outrider_messages", "Messages that were received, by what was done with them", ["action"])
STREAM_STALLS = Counter(
    "outrider_stream_stalls", "Streams that brought nothing while published jobs grew old"
)
FALLBACK_CLAIMS = Counter(
    "outrider_fallback_claims", "Jobs claimed because no message had come for them", ["status"]
)
