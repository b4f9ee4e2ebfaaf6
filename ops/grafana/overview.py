"""Are jobs flowing; and if not, where do they stand?"""

from __future__ import annotations

from ops.grafana.board import Board, Row
from ops.grafana.panels import BYTES, PER_SECOND, SECONDS, SHARE, above, below, graph, number
from ops.grafana.promql import WINDOW, age, of_role, quantile, rate, sampled, total

LEFT = """1 - sum_over_time(slo:outrider_errors:rate2m[28d]) / sum_over_time(slo:outrider_events:rate2m[28d])
/ slo:outrider_error_budget:ratio"""
FIRING = """sum by (alertname, severity) (ALERTS{alertname=~"Outrider.+", alertstate="firing"})"""
PUBLISHED = "outrider_published_messages_total"
STAGE = "outrider_job_stage_seconds"
STARTS = "changes(process_start_time_seconds[30m]) and on (job, instance) outrider_build_info"
READY = 'status="ready"'
CLAIM = 'stage="claim"'
RECORD = 'stage="record"'

OBJECTIVES = Row(
    "Objectives",
    [
        number(
            "Error budget left",
            "What 28 days have left of what each objective allows. Below 0 it is broken. Without Pub/Sub there is no "
            "objective for the outbox.",
            {"{{slo}}": LEFT},
            unit=SHARE,
            limits=[(0, "red"), (0.001, "orange"), (0.25, "green")],
            alerts=[
                "OutriderAvailabilityBurnsSlowly",
                "OutriderSubmitBurnsSlowly",
                "OutriderStartBurnsSlowly",
            ],
        ),
        graph(
            "Burn rate over an hour",
            "1 spends the budget exactly in its 28 days; over 14.4 somebody is woken.",
            {"{{slo}}": "slo:outrider_burn:rate1h"},
            limits=above(1, 14.4),
            alerts=[
                "OutriderAvailabilityBurnsFast",
                "OutriderSubmitBurnsFast",
                "OutriderStartBurnsFast",
                "OutriderOutboxBurnsFast",
            ],
        ),
        graph(
            "Alerts that fire",
            "Each alert of ops/prometheus/alerts.yml that fires. Its section in the runbooks says what to do.",
            {"{{severity}} {{alertname}}": FIRING},
            stacked=True,
        ),
    ],
)

FLOW = Row(
    "Flow: accept → outbox → broker → claim → run → record",
    [
        number(
            "Accepted",
            "Jobs accepted a second, over HTTP.",
            {"": rate("outrider_jobs_enqueued_total")},
            unit=PER_SECOND,
            alerts=["OutriderNoWeb"],
        ),
        number(
            "Due in the outbox",
            "Jobs that are due and have not been published or claimed.",
            {"": f"sum({sampled('outrider_outbox_rows', 'preset, status', READY)})"},
            alerts=["OutriderQueueStuck", "OutriderOutboxStalled", "OutriderDatabaseAway"],
        ),
        number(
            "Published",
            "Messages that Pub/Sub has taken a second. Nothing without Pub/Sub, where workers claim from the outbox.",
            {"": rate(PUBLISHED)},
            unit=PER_SECOND,
            alerts=["OutriderOutboxStalled", "OutriderRelayStale"],
        ),
        number(
            "Claimed",
            "Attempts claimed a second.",
            {"": rate(f"{STAGE}_count", where=CLAIM)},
            unit=PER_SECOND,
            alerts=["OutriderNoWorkers"],
        ),
        number(
            "Slots busy",
            "The share of the workers' slots that run an attempt now.",
            {"": f"{total('outrider_worker_busy_slots')} / {total('outrider_worker_slots')}"},
            unit=SHARE,
            limits=above(0.8, 1),
            alerts=["OutriderWorkersSaturated"],
        ),
        number(
            "Recorded",
            "Outcomes written a second.",
            {"": rate(f"{STAGE}_count", where=RECORD)},
            unit=PER_SECOND,
            alerts=["OutriderRecordSlow"],
        ),
    ],
    height=5,
)

TIMES = Row(
    "Where the time goes",
    [
        graph(
            "Stages of a job, 95 of 100",
            "From ready to published, from ready or published to claimed, the run, and from its end to the committed "
            "outcome.",
            {"{{stage}}": quantile(0.95, STAGE, "stage")},
            unit=SECONDS,
            alerts=["OutriderRecordSlow"],
        ),
        graph(
            "Wait until the start",
            "From due to the attempt's start: 99 of 100 within 30 s is the objective.",
            {
                "half": quantile(0.5, "outrider_job_wait_seconds"),
                "99 of 100": quantile(0.99, "outrider_job_wait_seconds"),
            },
            unit=SECONDS,
            limits=above(5, 30),
            alerts=["OutriderStartBurnsFast", "OutriderStartBurnsSlowly"],
        ),
        graph(
            "From accepted to completed",
            "Whole jobs, pauses between retries included.",
            {
                "half": quantile(0.5, "outrider_job_seconds"),
                "99 of 100": quantile(0.99, "outrider_job_seconds"),
            },
            unit=SECONDS,
        ),
    ],
)

QUEUE = Row(
    "What is unfinished",
    [
        graph(
            "Unfinished jobs",
            "Waiting: due later or again. Ready: due. Published: a message names it. Leased: runs. Large numbers "
            "are lower bounds.",
            {"{{status}}": f"sum by (status) ({sampled('outrider_outbox_rows', 'preset, status')})"},
            stacked=True,
            alerts=["OutriderQueueStuck", "OutriderNoWorkerForPreset"],
        ),
        graph(
            "Unfinished jobs by preset",
            "The same by what is to be run.",
            {"{{preset}}": f"sum by (preset) ({sampled('outrider_outbox_rows', 'preset, status')})"},
            stacked=True,
            alerts=["OutriderNoWorkerForPreset"],
        ),
        graph(
            "Age of the oldest due job",
            "For how long the oldest due job of each preset has not been claimed; some seconds are the sampler's and "
            "the scrape's.",
            {"{{preset}}": age("outrider_outbox_oldest_due_timestamp_seconds", "preset")},
            unit=SECONDS,
            limits=above(120, 300),
            alerts=["OutriderQueueStuck", "OutriderPresetLate", "OutriderWorkersSaturated"],
        ),
    ],
)

ENDS = Row(
    "What came of it",
    [
        graph(
            "Jobs ended",
            "Results written a second, by state.",
            {"{{state}}": rate("outrider_jobs_finished_total", "state")},
            unit=PER_SECOND,
            stacked=True,
            alerts=["OutriderJobsFail"],
        ),
        graph(
            "Attempts ended",
            "Attempts a second by outcome. Lost: taken back from a dead worker.",
            {"{{outcome}}": rate("outrider_attempts_total", "outcome")},
            unit=PER_SECOND,
            stacked=True,
            alerts=["OutriderRetryStorm", "OutriderLeasesLost"],
        ),
        graph(
            "Dead letters",
            "Jobs that failed for good a second, by preset and reason; presets of which none did are left out.",
            {"{{preset}} {{reason}}": f"{rate('outrider_dead_letters_total', 'preset, reason')} > 0"},
            unit=PER_SECOND,
            alerts=["OutriderDeadLetters"],
        ),
    ],
)

PROCESSES = Row(
    "Processes",
    [
        number(
            "Processes",
            "Processes that are scraped, by role.",
            {"{{role}}": "count by (role) (outrider_build_info)"},
            limits=below(1),
            alerts=["OutriderNoWeb", "OutriderNoRelay", "OutriderNoWorkers", "OutriderProcessDown"],
        ),
        number(
            "Versions",
            "Processes by version and transport: one of each, except during an upgrade.",
            {"{{version}} {{transport}}": "count by (version, transport) (outrider_build_info)"},
        ),
        number(
            "Leases and slots",
            "Processes by lease seconds and slots. A fleet with several kinds of leases takes jobs back at several "
            "paces.",
            {
                "lease {{lease_seconds}} s, {{worker_concurrency}} slots": (
                    "count by (lease_seconds, worker_concurrency) (outrider_config_info)"
                )
            },
        ),
    ],
    height=5,
)

RESOURCES = Row(
    "What they take",
    [
        graph(
            "Resident memory",
            "Of each process, with its role.",
            {"{{role}} {{instance}}": of_role("process_resident_memory_bytes")},
            unit=BYTES,
            alerts=["OutriderRestarts", "OutriderAttemptsLapse"],
        ),
        graph(
            "CPU",
            "Seconds a second, of each process. One core is all that its event loop can use.",
            {"{{role}} {{instance}}": of_role(f"rate(process_cpu_seconds_total[{WINDOW}])")},
            limits=above(0.8, 1),
            alerts=["OutriderSubmitBurnsFast"],
        ),
        graph(
            "Starts",
            "How often a process has begun anew in half an hour.",
            {"{{job}} {{instance}}": STARTS},
            limits=above(1, 4),
            alerts=["OutriderRestarts", "OutriderProcessDown"],
        ),
    ],
)

BOARD = Board(
    "outrider-overview",
    "Outrider: overview",
    "Objectives, and the way of a job from accepted to recorded.",
    [OBJECTIVES, FLOW, TIMES, QUEUE, ENDS, PROCESSES, RESOURCES],
)
