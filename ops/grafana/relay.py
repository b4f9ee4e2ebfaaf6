"""Whether jobs and events leave the outbox, and whether maintenance runs."""

from __future__ import annotations

from ops.grafana.board import Board, Row
from ops.grafana.panels import NONE_AT_ALL, PER_SECOND, SECONDS, above, below, graph, number
from ops.grafana.promql import age, mean, quantile, rate, sampled

STATE = Row(
    "State",
    [
        number(
            "Relays",
            "Scraped relays. One is enough; two survive a restart.",
            {"": 'count(outrider_build_info{role="relay"})'},
            limits=below(1),
            alerts=["OutriderNoRelay"],
        ),
        number(
            "Breaker open",
            "1 while nothing is published. Passing: Pub/Sub is away. Misconfigured: a topic or a right is missing.",
            {"{{topic}} {{fault}}": sampled("outrider_breaker_open", "topic, fault")},
            limits=NONE_AT_ALL,
            alerts=["OutriderBreakerMisconfigured", "OutriderOutboxStalled"],
        ),
        number(
            "Last look for rows",
            "How long ago a relay looked for rows of the topic, or waited for its open breaker.",
            {"{{topic}}": age("outrider_relay_cycled_timestamp_seconds", "topic")},
            unit=SECONDS,
            limits=above(30, 60),
            alerts=["OutriderRelayStale"],
        ),
        number(
            "Quarantined",
            "Messages that Pub/Sub refused for good. They are kept until somebody handles them.",
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
            "How long jobs wait to be published. The objective is 999 of 1000 within 5 s.",
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
            "Messages that wait for the relay. Set back: those of them that alone could not be published.",
            {
                "{{topic}}": sampled("outrider_outbox_events", "topic", 'state="pending"'),
                "{{topic}}: set back": sampled("outrider_outbox_events", "topic", 'state="set_back"'),
            },
            alerts=["OutriderOutboxStalled"],
        ),
        graph(
            "Age of the oldest message",
            "How long the oldest result or dead letter has waited. The sampler and the scrape add some seconds.",
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
            "Messages accepted",
            "Messages a second that Pub/Sub has accepted.",
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
            "The mean number of messages. Near 500 the relay is saturated: start another relay.",
            {"{{topic}}": mean("outrider_publish_rows", "topic")},
        ),
        graph(
            "Requests that failed",
            "Requests a second, by Pub/Sub's answer.",
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
            "Messages a second by action. Late: the job was already claimed, waiting or done.",
            {"{{action}}": rate("outrider_messages_total", "action")},
            unit=PER_SECOND,
            stacked=True,
        ),
        graph(
            "Claims without a message",
            "Jobs a second that workers found in the outbox. Ready: not published. Published: not delivered.",
            {"{{status}}": rate("outrider_fallback_claims_total", "status")},
            unit=PER_SECOND,
            alerts=["OutriderFallbackActive"],
        ),
        graph(
            "Refused, or set back",
            "Messages a second that Pub/Sub will never accept, or that wait behind the others for another try. A job "
            "whose wake-up is refused still runs.",
            {
                "wake-ups": rate("outrider_wake_ups_refused_total"),
                "{{topic}}": rate("outrider_events_quarantined_total", "topic"),
                "{{topic}}: set back": rate("outrider_events_set_back_total", "topic"),
            },
            unit=PER_SECOND,
            alerts=["OutriderQuarantineNotEmpty"],
        ),
        graph(
            "Silent streams, lost acknowledgements",
            "A second. By worker: streams that brought no message while published jobs grew old. Not acknowledged: "
            "messages whose acknowledgement Pub/Sub did not accept. They are delivered again.",
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
            "Rows a second that each periodic task moved or removed.",
            {"{{task}}": rate("outrider_maintenance_rows_total", "task")},
            unit=PER_SECOND,
        ),
        graph(
            "Last done",
            "How long ago any relay last ran each periodic task. Some tasks run once a minute.",
            {"{{task}}": age("outrider_maintenance_cycled_timestamp_seconds", "task")},
            unit=SECONDS,
            alerts=["OutriderMaintenanceStopped"],
        ),
        graph(
            "Failures",
            "Failed runs of tasks a second. Each task runs again.",
            {"{{task}}": rate("outrider_maintenance_errors_total", "task")},
            unit=PER_SECOND,
            alerts=["OutriderMaintenanceFails"],
        ),
        graph(
            "Lapsed attempts",
            "Attempts a second that lapsed with the lease of a dead worker.",
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
    "Jobs and events that wait to be published, what delays them, and maintenance.",
    [STATE, OUTBOX, PUBLISHING, DELIVERY, MAINTENANCE],
)
