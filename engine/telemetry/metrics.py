"""Every metric of the project, on prometheus-client's default registry. Labels come from closed sets.

`preset` is limited by the configuration, and `topic` is jobs, results or dead-letters; no label ever holds a job, an
owner or an error's text. A counter is raised only after the counted change has committed, so that the sums over all
processes never exceed the database's counts. A counter is shown at 0 before its first event, because rate() and
increase() see only what comes after the first scrape of a series.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Info

from engine.telemetry import instruments
from engine.telemetry.instruments import Histogram, Level, Moment

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 3600)
ROWS = (1, 2, 5, 10, 25, 50, 100, 250, 500)

# HTTP: web.
HTTP_SECONDS = Histogram(
    "outrider_http_request_seconds",
    "Requests by route and status",
    ["route", "method", "status"],
    buckets=SECONDS,
)
HTTP_ANSWERS = instruments.Counter(
    "outrider_http_answers", "Answers by class of status, 2xx to 5xx, without probes", ["class"]
)
HTTP_IN_FLIGHT = Level("outrider_http_requests_in_flight", "Requests being answered")
HTTP_CONNECTIONS = Gauge(
    "outrider_http_connections", "Open connections of a server: api or admin", ["server"]
)
CONNECTIONS_CLOSED = Counter(
    "outrider_http_connections_closed",
    "Connections closed by bounds, by reason: refused for want of room, replaced by a newcomer, late with a whole head",
    ["server", "reason"],
)
SSE_CONNECTIONS = Gauge("outrider_sse_connections", "Open event streams")
WAITING = Gauge(
    "outrider_http_waiting",
    "Waiting items of a web process: submissions and reads wait for their group, watches for a change of a job, "
    "lists for their turn or their rows",
    ["what"],
)
AUTH_FAILURES = Counter(
    "outrider_auth_failures", "Refused tokens, by reason: missing, invalid, scope", ["reason"]
)
IDEMPOTENCY = Counter(
    "outrider_idempotency_keys", "Requests with an idempotency key, by outcome", ["outcome"]
)
JWKS_FETCHED_AT = Moment(
    "outrider_jwks_fetched_timestamp_seconds",
    "When the issuer's keys were last fetched, or the process started; absent if a secret verifies the tokens",
)

# Jobs: shown by the process that makes the move.
JOBS_ENQUEUED = instruments.Counter("outrider_jobs_enqueued", "Jobs accepted over HTTP", ["preset"])
JOBS_FINISHED = instruments.Counter(
    "outrider_jobs_finished",
    "Results written, by state, without those written by commands",
    ["preset", "state"],
)
JOBS_REDRIVEN = Counter("outrider_jobs_redriven", "Jobs redriven over HTTP", ["preset"])
DEAD_LETTERS = Counter(
    "outrider_dead_letters",
    "Jobs that failed for good, by reason: failed, timeout, lapsed",
    ["preset", "reason"],
)
ATTEMPTS = instruments.Counter(
    "outrider_attempts",
    "Attempts ended, by outcome: completed, retry, failed, timeout, cancelled, snoozed, released, unreadable, or lost "
    "to a lapse",
    ["preset", "outcome"],
)
OUTCOMES_DROPPED = Counter(
    "outrider_outcomes_dropped",
    "Outcomes that were not written, because their attempt was no longer the current one",
    ["preset"],
)
WAIT_SECONDS = Histogram(
    "outrider_job_wait_seconds", "Seconds from due to the attempt's start", ["preset"], buckets=SECONDS
)
RUN_SECONDS = Histogram(
    "outrider_attempt_run_seconds", "Seconds that an attempt ran", ["preset"], buckets=SECONDS
)
JOB_SECONDS = Histogram(
    "outrider_job_seconds",
    "Seconds from accepted to completed, including all delays and the time before a redrive",
    ["preset"],
    buckets=SECONDS,
)
STAGE_SECONDS = Histogram(
    "outrider_job_stage_seconds",
    "Seconds: publish (ready to published), claim (ready or published to claimed), run, record (ended to written)",
    ["stage"],
    buckets=SECONDS,
)
BATCH_ROWS = Histogram("outrider_batch_rows", "Items written together", ["batch"], buckets=ROWS)
BATCH_SECONDS = Histogram(
    "outrider_batch_write_seconds", "Seconds to write one group", ["batch"], buckets=SECONDS
)

# Workers.
WORKER_SLOTS = Gauge("outrider_worker_slots", "Attempts this process can run at once")
CHILDREN = Gauge("outrider_children", "Living children of this process, which run attempts of their own")
CHILDREN_ENDED = Counter(
    "outrider_children_ended",
    "Children that ended: dismissed or stopped by their worker, or by themselves, by an exit or a signal",
    ["how"],
)
for _how in ("dismissed", "stopped", "exit", "signal"):
    CHILDREN_ENDED.labels(_how)
WORKER_BUSY = Gauge("outrider_worker_busy_slots", "Attempts this process runs now")
HEARTBEATS = Counter("outrider_heartbeats", "Heartbeats of the worker's lease, by outcome", ["outcome"])
LEASES_LOST = Counter("outrider_leases_lost", "Leases that this worker has lost")
CLAIM_SECONDS = Histogram(
    "outrider_claim_seconds",
    "Seconds of one claim from the outbox without Pub/Sub, onward from the last (cursor) or from the start (sweep)",
    ["scan"],
    buckets=SECONDS,
)
MESSAGES = Counter(
    "outrider_messages",
    "Messages received, by action: claimed, late, undecodable, released",
    ["action"],
)
UNACKNOWLEDGED = Counter(
    "outrider_messages_unacknowledged",
    "Messages that come again, because Pub/Sub did not accept the acknowledgement",
)
STREAM_STALLS = Counter(
    "outrider_stream_stalls", "Streams that delivered nothing while published jobs grew old"
)
FALLBACK_CLAIMS = Counter(
    "outrider_fallback_claims",
    "Jobs claimed from the outbox because no message had come for them",
    ["status"],
)

# The relay.
PUBLISH_SECONDS = Histogram(
    "outrider_publish_seconds", "Seconds of one publish request", ["topic"], buckets=SECONDS
)
PUBLISH_ROWS = Histogram("outrider_publish_rows", "Messages of one publish request", ["topic"], buckets=ROWS)
PUBLISHED_ROWS = Counter("outrider_published_messages", "Messages that the broker has accepted", ["topic"])
PUBLISH_ERRORS = Counter(
    "outrider_publish_errors", "Publish requests that failed, by reason", ["topic", "reason"]
)
BREAKER_OPEN = Gauge(
    "outrider_breaker_open",
    "1 while nothing is published to this topic; an operator must fix the fault misconfigured",
    ["topic", "fault"],
)
RELAY_CYCLED_AT = Moment(
    "outrider_relay_cycled_timestamp_seconds",
    "When the relay last looked for rows, or waited for the broker",
    ["topic"],
)
WAKE_UPS_REFUSED = Counter("outrider_wake_ups_refused", "Wake-ups that the broker will never accept")
EVENTS_QUARANTINED = Counter(
    "outrider_events_quarantined", "Events quarantined because the broker will never accept them", ["topic"]
)
EVENTS_SET_BACK = Counter(
    "outrider_events_set_back",
    "Events that failed alone and wait behind the others for their next try",
    ["topic"],
)

# Maintenance: the relay's tasks, and the sampler's view of the database. Every relay shows the same figures.
MAINTENANCE_ROWS = Counter("outrider_maintenance_rows", "Rows moved or removed by maintenance", ["task"])
MAINTENANCE_CYCLED_AT = Moment(
    "outrider_maintenance_cycled_timestamp_seconds",
    "When a task last succeeded, or the process started",
    ["task"],
)
MAINTENANCE_ERRORS = Counter("outrider_maintenance_errors", "Tasks that failed and will run again", ["task"])
OUTBOX_ROWS = Gauge(
    "outrider_outbox_rows",
    "Unfinished jobs at the last sample; at most 50 000 are counted of each status, and of each priority of ready jobs",
    ["preset", "status"],
)
OUTBOX_OLDEST = Moment(
    "outrider_outbox_oldest_due_timestamp_seconds",
    "When the oldest due row of a preset became due; now if none is due",
    ["preset"],
)
EVENTS_ROWS = Gauge(
    "outrider_outbox_events",
    "Events at the last sample: pending, of these set_back, or quarantined",
    ["topic", "state"],
)
EVENTS_OLDEST = Moment(
    "outrider_outbox_events_oldest_timestamp_seconds",
    "When the oldest pending event was written; now if none is pending",
    ["topic"],
)
WORKERS_ALIVE = Gauge("outrider_workers_alive", "Workers with a lease, by preset", ["preset"])
SLOTS_ALIVE = Gauge("outrider_slots_alive", "The slots of workers with a lease, by preset", ["preset"])
SAMPLED_AT = Moment(
    "outrider_sampled_timestamp_seconds", "When the sampler last read the database, or the process started"
)
XMIN_AGE_SECONDS = Gauge(
    "outrider_database_oldest_transaction_seconds",
    "The age of the oldest open transaction, which holds vacuum back",
)
XMIN_AGE_TRANSACTIONS = Gauge(
    "outrider_database_oldest_xmin_transactions",
    "The age of the oldest snapshot that vacuum must respect, in transactions, including those of replication slots",
)
DEAD_TUPLES = Gauge("outrider_database_dead_tuples", "Dead rows of a hot table", ["table"])
TABLE_BYTES = Gauge("outrider_database_table_bytes", "Bytes of a table with its indexes", ["table"])

# Supervisors.
PROCESSES = Gauge("outrider_processes", "Living processes that this supervisor started")
PROCESSES_ENDED = Counter(
    "outrider_processes_ended", "Processes of this supervisor that ended before the stop"
)
PROCESSES_SILENT = Gauge(
    "outrider_processes_silent",
    "Processes whose metrics are missing here, because they did not answer the supervisor",
)

# Every process.
STATEMENT_SECONDS = Histogram(
    "outrider_database_statement_seconds", "Seconds of a statement, by name", ["statement"], buckets=SECONDS
)
POOL_CONNECTIONS = Gauge(
    "outrider_database_pool_connections",
    "Connections of a pool that are open or idle, and requests waiting for a connection",
    ["pool", "state"],
)
LOOP_LAG_SECONDS = Histogram(
    "outrider_event_loop_lag_seconds", "Seconds by which the event loop runs a timer late", buckets=SECONDS
)
LOOP_BLOCKED = Counter(
    "outrider_loop_blocked", "Times that something kept the event loop from turning for a second or longer"
)
LOOP_FAULTS = Counter(
    "outrider_loop_faults", "Endless loops that failed unexpectedly and were started again, by loop", ["loop"]
)
BUILD = Info("outrider_build", "The version, role and transport of the process")
CONFIG = Info("outrider_config", "The settings that should be equal in a fleet")
