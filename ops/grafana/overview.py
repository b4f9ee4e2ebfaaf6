"""Whether jobs flow, and where they wait if they do not."""

from __future__ import annotations

from ops.grafana.board import Board, Row
from ops.grafana.panels import BYTES, PER_SECOND, SECONDS, SHARE, above, below, graph, number
from ops.grafana.promql import WINDOW, age, of_role, quantile, rate, sampled, total

LEFT = """1 - sum_over_time(slo:outrider_errors:rate2m[28d]) / sum_over_time(slo:outrider_events:rate2m[28d])
/ slo:outrider_error_budget:ratio"""
FIRING = """sum by (alertname, severity) (ALERTS{alertname=~"Outrider.+", alertstate="firing"})"""
PUBLISHED = "outrider_published_messages_total"
STAGE = "outrider_job_stage_seconds"
STARTS = "changes(process_start_time_seconds[30m]) and on (job, instance, process) outrider_build_info"
READY = 'status="ready"'
CLAIM = 'stage="claim"'
RECORD = 'stage="record"'

OBJECTIVES = Row(
    "Objectives",
    [
        number(
            "Error budget left",
            "The share of each objective's error budget that is left of 28 days. Below 0 the objective is missed. "
            "Without Pub/Sub there is no objective for the outbox.",
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
            "At 1 the budget lasts exactly 28 days. Above 14.4 an alert pages.",
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
            "Firing alerts of ops/prometheus/alerts.yml. Each has a section in the runbooks, which says what to do.",
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
            "Messages a second that Pub/Sub has accepted. Empty without Pub/Sub, where workers claim from the outbox.",
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
            "Publish: from ready to published. Claim: from ready or published to claimed. Run: the attempt. Record: "
            "from the end of the run to the committed outcome.",
            {"{{stage}}": quantile(0.95, STAGE, "stage")},
            unit=SECONDS,
            alerts=["OutriderRecordSlow"],
        ),
        graph(
            "Wait until the start",
            "The time from due to the attempt's start. The objective is 99 of 100 within 30 s.",
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
            "The time of whole jobs, including pauses between retries.",
            {
                "half": quantile(0.5, "outrider_job_seconds"),
                "99 of 100": quantile(0.99, "outrider_job_seconds"),
            },
            unit=SECONDS,
        ),
    ],
)

QUEUE = Row(
    "Unfinished jobs",
    [
        graph(
            "Unfinished jobs",
            "Waiting: due later, or waits for a retry. Ready: due. Published: a message names the job. Leased: "
            "running. Large numbers are lower bounds.",
            {"{{status}}": f"sum by (status) ({sampled('outrider_outbox_rows', 'preset, status')})"},
            stacked=True,
            alerts=["OutriderQueueStuck", "OutriderNoWorkerForPreset"],
        ),
        graph(
            "Unfinished jobs by preset",
            "The unfinished jobs of each preset. Large numbers are lower bounds.",
            {"{{preset}}": f"sum by (preset) ({sampled('outrider_outbox_rows', 'preset, status')})"},
            stacked=True,
            alerts=["OutriderNoWorkerForPreset"],
        ),
        graph(
            "Age of the oldest due job",
            "How long the oldest due job of each preset has waited for a claim. The sampler and the scrape add some "
            "seconds.",
            {"{{preset}}": age("outrider_outbox_oldest_due_timestamp_seconds", "preset")},
            unit=SECONDS,
            limits=above(120, 300),
            alerts=["OutriderQueueStuck", "OutriderPresetLate", "OutriderWorkersSaturated"],
        ),
    ],
)

ENDS = Row(
    "Results",
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
            "Attempts a second by outcome. Lost: the lease of a dead worker lapsed.",
            {"{{outcome}}": rate("outrider_attempts_total", "outcome")},
            unit=PER_SECOND,
            stacked=True,
            alerts=["OutriderRetryStorm", "OutriderLeasesLost"],
        ),
        graph(
            "Dead letters",
            "Jobs a second that failed for good, by preset and reason. Presets without dead letters are left out.",
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
            "Scraped processes, by role.",
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
            "Processes by lease seconds and slots. In a fleet with different lease times, leases lapse after different "
            "times.",
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
    "Resources",
    [
        graph(
            "Resident memory",
            "The memory of each process, with its role.",
            {"{{role}} {{instance}} {{process}}": of_role("process_resident_memory_bytes")},
            unit=BYTES,
            alerts=["OutriderRestarts", "OutriderAttemptsLapse"],
        ),
        graph(
            "CPU",
            "CPU seconds a second of each process. An event loop can use one core at most.",
            {"{{role}} {{instance}} {{process}}": of_role(f"rate(process_cpu_seconds_total[{WINDOW}])")},
            limits=above(0.8, 1),
            alerts=["OutriderSubmitBurnsFast"],
        ),
        graph(
            "Starts",
            "How often each process has started again in half an hour.",
            {"{{job}} {{instance}} {{process}}": STARTS},
            limits=above(1, 4),
            alerts=["OutriderRestarts", "OutriderProcessDown"],
        ),
        graph(
            "Faults of loops",
            "How often a loop of a process failed unexpectedly in a quarter of an hour, and went on.",
            {"{{job}} {{loop}}": "sum by (job, loop) (increase(outrider_loop_faults_total[15m]))"},
            limits=above(1, 4),
            alerts=["OutriderLoopFails"],
        ),
    ],
)

BOARD = Board(
    "outrider-overview",
    "Outrider: overview",
    "Objectives, and the path of a job from accepted to recorded.",
    [OBJECTIVES, FLOW, TIMES, QUEUE, ENDS, PROCESSES, RESOURCES],
)
