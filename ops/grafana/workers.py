"""The workers, their load, and the outcomes of attempts."""

from __future__ import annotations

from ops.grafana.board import Board, Row
from ops.grafana.panels import NONE_AT_ALL, PER_SECOND, SECONDS, SHARE, above, below, graph, number
from ops.grafana.promql import mean, quantile, rate, sampled, total

BUSY = "outrider_worker_busy_slots"
SLOTS = "outrider_worker_slots"
STATEMENT = "outrider_database_statement_seconds"
CLAIMS = 'statement=~"claim.*"'

FLEET = Row(
    "Fleet",
    [
        number(
            "Workers alive",
            "Workers with a lease, by preset.",
            {"{{preset}}": sampled("outrider_workers_alive", "preset")},
            limits=below(1),
            alerts=["OutriderNoWorkers", "OutriderNoWorkerForPreset"],
        ),
        number(
            "Slots alive",
            "How many attempts the live workers can run at once, by preset.",
            {"{{preset}}": sampled("outrider_slots_alive", "preset")},
            limits=below(1),
            alerts=["OutriderNoWorkerForPreset"],
        ),
        number(
            "Slots busy",
            "The share of all slots that run an attempt now.",
            {"": f"{total(BUSY)} / {total(SLOTS)}"},
            unit=SHARE,
            limits=above(0.8, 1),
            alerts=["OutriderWorkersSaturated"],
        ),
        number(
            "Leases lost in an hour",
            "How often workers lost their lease, because they renewed it too late.",
            {"": "sum(increase(outrider_leases_lost_total[1h]))"},
            limits=NONE_AT_ALL,
            alerts=["OutriderLeasesLost"],
        ),
    ],
    height=5,
)

LOAD = Row(
    "Load",
    [
        graph(
            "Busy slots",
            "Running attempts, by worker process.",
            {"{{instance}}": f"{total(BUSY, 'instance')} and on (instance) {total(SLOTS, 'instance')} > 0"},
            stacked=True,
            alerts=["OutriderWorkersSaturated"],
        ),
        graph(
            "Due jobs by preset",
            "Jobs that could run now. Large numbers are lower bounds.",
            {
                "{{preset}}": "sum by (preset) ("
                + sampled("outrider_outbox_rows", "preset, status", 'status=~"ready|published"')
                + ")"
            },
            stacked=True,
            alerts=["OutriderQueueStuck", "OutriderNoWorkerForPreset"],
        ),
        graph(
            "Wait until the start, 95 of 100",
            "The time from due to the attempt's start, by preset.",
            {"{{preset}}": quantile(0.95, "outrider_job_wait_seconds", "preset")},
            unit=SECONDS,
            limits=above(5, 30),
            alerts=["OutriderStartBurnsFast", "OutriderPresetLate"],
        ),
    ],
)

ATTEMPTS = Row(
    "Attempts",
    [
        graph(
            "Ended by outcome",
            "Attempts a second. Lost: the lease of a dead worker lapsed. Released: the job is queued again, and the "
            "attempt does not count, as at a stop.",
            {"{{outcome}}": rate("outrider_attempts_total", "outcome")},
            unit=PER_SECOND,
            stacked=True,
            alerts=["OutriderRetryStorm", "OutriderLeasesLost"],
        ),
        graph(
            "Ended by preset",
            "Attempts a second.",
            {"{{preset}}": rate("outrider_attempts_total", "preset")},
            unit=PER_SECOND,
            stacked=True,
        ),
        graph(
            "Run, half",
            "How long the median attempt runs, by preset.",
            {"{{preset}}": quantile(0.5, "outrider_attempt_run_seconds", "preset")},
            unit=SECONDS,
        ),
        graph(
            "Run, 99 of 100",
            "How long the slowest hundredth runs at least, by preset.",
            {"{{preset}}": quantile(0.99, "outrider_attempt_run_seconds", "preset")},
            unit=SECONDS,
        ),
    ],
)

HANDLING = Row(
    "Claiming and recording",
    [
        graph(
            "Claims a second",
            "By statement. claim: looks for due jobs in the outbox. claim named: takes the jobs that messages name. "
            "claim published: takes the jobs whose message did not come.",
            {"{{statement}}": rate(f"{STATEMENT}_count", "statement", CLAIMS)},
            unit=PER_SECOND,
        ),
        graph(
            "One claim, 99 of 100",
            "How long one claim takes. It grows with dead rows at the head of the queue.",
            {"{{statement}}": quantile(0.99, STATEMENT, "statement", CLAIMS)},
            unit=SECONDS,
            limits=above(0.1, 1),
            alerts=["OutriderBloat", "OutriderXminHeldBack"],
        ),
        graph(
            "Outcomes written together",
            "The mean number of outcomes in one write.",
            {"rows": mean("outrider_batch_rows", where='batch="record"')},
        ),
        graph(
            "One write, 99 of 100",
            "How long it takes to commit a group of outcomes.",
            {"write": quantile(0.99, "outrider_batch_write_seconds", where='batch="record"')},
            unit=SECONDS,
            limits=above(0.25, 1),
            alerts=["OutriderRecordSlow"],
        ),
    ],
)

HEALTH = Row(
    "Health",
    [
        graph(
            "Heartbeats",
            "Heartbeats a second. Failed: the database did not answer. Gone: the lease had lapsed.",
            {"{{outcome}}": rate("outrider_heartbeats_total", "outcome")},
            unit=PER_SECOND,
            alerts=["OutriderLeasesLost"],
        ),
        graph(
            "Leases lost, outcomes dropped",
            "A second. Leases: lost by their workers. Outcomes: not written, because the attempt had lapsed.",
            {
                "leases": rate("outrider_leases_lost_total"),
                "outcomes": rate("outrider_outcomes_dropped_total"),
            },
            unit=PER_SECOND,
            alerts=["OutriderLeasesLost", "OutriderAttemptsLapse"],
        ),
        graph(
            "Event loop lag, 99 of 100",
            "How late timers run, by process. A pipeline that blocks the event loop shows here.",
            {"{{instance}}": quantile(0.99, "outrider_event_loop_lag_seconds", "instance")},
            unit=SECONDS,
            limits=above(0.1, 1),
            alerts=["OutriderLeasesLost"],
        ),
        graph(
            "Event loop blocked",
            "How often in five minutes something kept the event loop from turning for a second, by process.",
            {"{{instance}}": "sum by (instance) (increase(outrider_loop_blocked_total[5m]))"},
            alerts=["OutriderLoopBlocked"],
        ),
        graph(
            "Processes under supervisors",
            "Living processes of each supervisor, those that it started again in half an hour, and those that do not "
            "show their metrics.",
            {
                "living {{instance}}": "sum by (instance) (outrider_processes) > 0",
                "started again {{instance}}": "sum by (instance) (increase(outrider_processes_ended_total[30m])) > 0",
                "silent {{instance}}": "sum by (instance) (outrider_processes_silent) > 0",
            },
            alerts=["OutriderRestarts"],
        ),
    ],
)

CHILDREN = Row(
    "Attempts in processes",
    [
        graph(
            "Children",
            "Living processes that run attempts, by worker.",
            {"{{instance}}": f"{total('outrider_children', 'instance')} > 0"},
            stacked=True,
        ),
        graph(
            "Children that ended",
            "A second. Dismissed: replaced after its attempts. Stopped: with an attempt that was ended. Exit, signal: "
            "by itself, with its attempt.",
            {"{{how}}": rate("outrider_children_ended_total", "how")},
            unit=PER_SECOND,
            alerts=["OutriderChildrenDie"],
        ),
    ],
)

BOARD = Board(
    "outrider-workers",
    "Outrider: workers",
    "The workers, their load, and the outcomes of attempts.",
    [FLEET, LOAD, ATTEMPTS, CHILDREN, HANDLING, HEALTH],
)
