"""Does what has to be published leave the outbox; and does maintenance run?"""

from __future__ import annotations

from ops.grafana.board import Board, Row
from ops.grafana.panels import NONE_AT_ALL, PER_SECOND, SECONDS, above, below, graph, number
from ops.grafana.promql import age, mean, quantile, rate, sampled

STATE = Row(
    "State",
    [
        number(
            "Relays",
            "Relays that are scraped. One is enough, two survive a restart.",
            {"": 'count(outrider_build_info{role="relay"})'},
            limits=below(1),
            alerts=["OutriderNoRelay"],
        ),
        number(
            "Breaker open",
            "1 while nothing goes out. Passing: Pub/Sub is away. Misconfigured: a topic or a right is missing.",
            {"{{topic}} {{fault}}": sampled("outrider_breaker_open", "topic, fault")},
            limits=NONE_AT_ALL,
            alerts=["OutriderBreakerMisconfigured", "OutriderOutboxStalled"],
        ),
        number(
            "Last look for rows",
            "How long ago a relay looked for rows of the topic, or held back behind its open breaker.",
            {"{{topic}}": age("outrider_relay_cycled_timestamp_seconds", "topic")},
            unit=SECONDS,
            limits=above(30, 60),
            alerts=["OutriderRelayStale"],
        ),
        number(
            "Set aside",
            "Messages that Pub/Sub refused for good, kept for people to look at.",
            {"{{topic}}": sampled("outrider_outbox_events", "topic", 'state="quarantined"')},
            limits=NONE_AT_ALL,
            alerts=["OutriderQuarantineNotEmpty"],
        ),
    ],
    height=5,
)

OUTBOX = Row(
    "Outbox",
    [
        graph(
            "From ready to published, 99 of 100",
            "For how long jobs wait to be published: 5 s for 999 of 1000 is the objective.",
            {"jobs": quantile(0.99, "outrider_job_stage_seconds", where='stage="publish"')},
            unit=SECONDS,
            limits=above(1, 5),
            alerts=["OutriderOutboxBurnsFast", "OutriderOutboxBurnsSlowly"],
        ),
        graph(
            "Jobs",
            "Unfinished jobs by status. Large numbers are lower bounds.",
            {"{{status}}": f"sum by (status) ({sampled('outrider_outbox_rows', 'preset, status')})"},
            stacked=True,
            alerts=["OutriderOutboxStalled", "OutriderQueueStuck"],
        ),
        graph(
            "Results and dead letters to publish",
            "Messages that wait for the relay.",
            {"{{topic}}": sampled("outrider_outbox_events", "topic", 'state="pending"')},
            alerts=["OutriderOutboxStalled"],
        ),
        graph(
            "Age of the oldest message",
            "Since when the oldest result or dead letter waits. Some seconds are the sampler's own, and the scrape's.",
            {"{{topic}}": age("outrider_outbox_events_oldest_timestamp_seconds", "topic")},
            unit=SECONDS,
            limits=above(60, 120),
            alerts=["OutriderOutboxStalled"],
        ),
    ],
)

PUBLISHING = Row(
    "Publishing",
    [
        graph(
            "Messages taken",
            "Messages a second that Pub/Sub has taken.",
            {"{{topic}}": rate("outrider_published_messages_total", "topic")},
            unit=PER_SECOND,
        ),
        graph(
            "One request, 99 of 100",
            "How long Pub/Sub takes for a publish request.",
            {"{{topic}}": quantile(0.99, "outrider_publish_seconds", "topic")},
            unit=SECONDS,
            limits=above(1, 5),
            alerts=["OutriderOutboxBurnsFast"],
        ),
        graph(
            "Messages of one request",
            "The mean. Near 500 the relay is as busy as it can be: start another.",
            {"{{topic}}": mean("outrider_publish_rows", "topic")},
        ),
        graph(
            "Requests that failed",
            "A second, by what Pub/Sub answered.",
            {"{{topic}} {{reason}}": rate("outrider_publish_errors_total", "topic, reason")},
            unit=PER_SECOND,
            alerts=["OutriderOutboxStalled", "OutriderBreakerMisconfigured"],
        ),
    ],
)

DELIVERY = Row(
    "Delivery",
    [
        graph(
            "Messages received",
            "A second, by what was done with them. Late: its job was claimed, waiting or done already.",
            {"{{action}}": rate("outrider_messages_total", "action")},
            unit=PER_SECOND,
            stacked=True,
        ),
        graph(
            "Claims without a message",
            "Jobs that workers found in the outbox. Ready: not published. Published: not delivered.",
            {"{{status}}": rate("outrider_fallback_claims_total", "status")},
            unit=PER_SECOND,
            alerts=["OutriderFallbackActive"],
        ),
        graph(
            "Refused for good",
            "Messages a second that Pub/Sub will never take. A job whose wake-up is refused runs all the same.",
            {
                "wake-ups": rate("outrider_wake_ups_refused_total"),
                "{{topic}}": rate("outrider_events_quarantined_total", "topic"),
            },
            unit=PER_SECOND,
            alerts=["OutriderQuarantineNotEmpty"],
        ),
        graph(
            "Silent streams, lost acknowledgements",
            "A second: streams that brought nothing while published jobs grew old, by worker; and messages whose "
            "acknowledgement Pub/Sub did not take, which come again.",
            {
                "{{instance}}": rate("outrider_stream_stalls_total", "instance"),
                "not acknowledged": rate("outrider_messages_unacknowledged_total"),
            },
            unit=PER_SECOND,
            alerts=["OutriderStreamStalls"],
        ),
    ],
)

MAINTENANCE = Row(
    "Maintenance",
    [
        graph(
            "Rows",
            "Rows a second that each task moved or removed.",
            {"{{task}}": rate("outrider_maintenance_rows_total", "task")},
            unit=PER_SECOND,
        ),
        graph(
            "Last done",
            "How long ago a task was last done by any relay; some are done once a minute.",
            {"{{task}}": age("outrider_maintenance_cycled_timestamp_seconds", "task")},
            unit=SECONDS,
            alerts=["OutriderMaintenanceStopped"],
        ),
        graph(
            "Failures",
            "Tasks a second that failed; each runs again.",
            {"{{task}}": rate("outrider_maintenance_errors_total", "task")},
            unit=PER_SECOND,
            alerts=["OutriderMaintenanceFails"],
        ),
        graph(
            "Taken back from dead workers",
            "Attempts a second.",
            {"{{preset}}": rate("outrider_attempts_total", "preset", 'outcome="lost"')},
            unit=PER_SECOND,
            alerts=["OutriderAttemptsLapse"],
        ),
        graph(
            "Age of the last sample",
            "How old the figures of the database are.",
            {"{{instance}}": "time() - outrider_sampled_timestamp_seconds"},
            unit=SECONDS,
            limits=above(30, 60),
            alerts=["OutriderDatabaseAway", "OutriderSamplerStale"],
        ),
    ],
)

BOARD = Board(
    "outrider-relay",
    "Outrider: relay and outbox",
    "What waits to be published, what keeps it, and what maintenance does.",
    [STATE, OUTBOX, PUBLISHING, DELIVERY, MAINTENANCE],
)
