"""Reports a worker's attempts: metrics, one log line per attempt, and the execution metadata of the result."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

import structlog

from engine.errors import LeaseLost
from engine.model import Cancelled, Completed, Failed, JobState, Outcome, Retry, Unreadable
from engine.telemetry import traceparent, tracing
from engine.telemetry.metrics import (
    ATTEMPTS,
    DEAD_LETTERS,
    JOB_SECONDS,
    JOBS_FINISHED,
    OUTCOMES_DROPPED,
    RUN_SECONDS,
    STAGE_SECONDS,
    WAIT_SECONDS,
)
from engine.telemetry.spans import OFF
from engine.telemetry.throughput import Throughput
from worker.execution import Execution
from worker.outcome import describe, label

RESULTS = {Completed: JobState.COMPLETED, Failed: JobState.FAILED, Cancelled: JobState.CANCELLED}
OUTCOMES = ("completed", "retry", "failed", "timeout", "cancelled", "snoozed", "released", "unreadable")
REASONS = ("failed", "timeout")


class AttemptMetrics:
    """Counts attempts by preset. Every labelled child is looked up once, because a lookup costs 7 µs."""

    def __init__(self, presets: Iterable[str]) -> None:
        self.throughput = Throughput()
        self._tallies = {preset: _Tally(preset) for preset in presets}
        self._claimed, self._ran, self._recorded = (
            STAGE_SECONDS.labels(stage).observe for stage in ("claim", "run", "record")
        )
        # Bound once, because the lazy proxy binds again at each line.
        self._log = structlog.get_logger().bind()
        self._logs_info = self._log.is_enabled_for(logging.INFO)

    def started(self, executions: Iterable[Execution]) -> None:
        """Count how long starting jobs have waited: since the job was due, and since the job could be claimed."""
        for execution in executions:
            attempt = execution.attempt
            at, job = attempt.started_at, attempt.job
            execution.waited = waited = max((at - attempt.due_at).total_seconds(), 0.0)
            self._tallies[job.preset].waited(waited, job.traceparent)
            self._claimed(max((at - attempt.ready_at).total_seconds(), 0.0))

    def ended(self, execution: Execution) -> str:
        """Count a run. Returns the execution metadata of the result as JSON text; durations are in seconds."""
        job = execution.attempt.job
        ran = execution.ended_at - execution.started
        self._tallies[job.preset].ran(ran, job.traceparent)
        self._ran(ran)
        return f'{{"run_seconds":{ran:.6f},"wait_seconds":{execution.waited:.6f}}}'

    def recorded(self, execution: Execution, outcome: Outcome) -> None:
        """Count and log an attempt whose outcome is in the database."""
        attempt = execution.attempt
        job = attempt.job
        tally = self._tallies[job.preset]
        name = label(outcome)
        tally.attempts[name]()
        self.throughput.count(job.preset)
        now = time.monotonic()
        self._recorded(now - execution.ended_at)
        if state := RESULTS.get(type(outcome)):
            tally.finished[state]()
            if state is JobState.FAILED:
                tally.dead_letters[name]()
            elif state is JobState.COMPLETED:
                # Creation and claim are times of the database's clock. This process's clock measures from the claim on.
                age = (attempt.started_at - job.created_at).total_seconds()
                tally.completed(age + now - execution.started, job.traceparent)
        if execution.span is not OFF:
            tracing.ended(execution.span, name, _error(outcome))
        if isinstance(outcome, Failed):
            _log(self._log.warning, execution, name, _error(outcome))
        elif self._logs_info:
            _log(self._log.info, execution, name, _error(outcome))

    def dropped(self, execution: Execution, error: Exception) -> None:
        """Count and log an attempt whose outcome will never be in the database.

        How the attempt ended is counted by the process that lapses or releases the attempt.
        """
        self._tallies[execution.attempt.job.preset].dropped()
        refused = None if isinstance(error, LeaseLost) else f"{type(error).__name__}: {error}"
        tracing.ended(execution.span, "lost", refused or LeaseLost.__name__)
        _log(self._log.warning, execution, "lost", refused)

    def released(self, preset: str, state: JobState) -> None:
        """Count an attempt that was leased to this worker, was not running here, and has been released."""
        cancelled = state is JobState.CANCELLED
        tally = self._tallies[preset]
        tally.attempts["cancelled" if cancelled else "released"]()
        if cancelled:
            tally.finished[state]()


def _log(log_at: Callable[..., None], execution: Execution, outcome: str, error: str | None) -> None:
    log_at(
        "attempt.ended",
        job_id=execution.attempt.job.id,
        preset=execution.attempt.job.preset,
        attempt=execution.number,
        outcome=outcome,
        seconds=round(time.monotonic() - execution.started, 6),
        error=error,
        **traceparent.ids(execution.attempt.job.traceparent, execution.span),
    )


def _error(outcome: Outcome) -> str | None:
    if not isinstance(outcome, Retry | Failed | Unreadable):
        return None
    known = describe(outcome.error)
    return f"{known.type}: {known.message}"[:500]


class _Tally:
    """The metrics of one preset."""

    def __init__(self, preset: str) -> None:
        self.waited = WAIT_SECONDS.labels(preset).traced
        self.ran = RUN_SECONDS.labels(preset).traced
        self.completed = JOB_SECONDS.labels(preset).traced
        self.dropped = OUTCOMES_DROPPED.labels(preset).inc
        self.attempts = {outcome: ATTEMPTS.labels(preset, outcome).inc for outcome in OUTCOMES}
        self.finished = {state: JOBS_FINISHED.labels(preset, state).inc for state in RESULTS.values()}
        self.dead_letters = {reason: DEAD_LETTERS.labels(preset, reason).inc for reason in REASONS}
