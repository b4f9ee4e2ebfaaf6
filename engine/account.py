"""What a worker tells of its attempts: metrics, one log line each, and the execution metadata of the result."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

import structlog

from engine.errors import LeaseLost
from engine.executor import Execution
from engine.metrics import ATTEMPTS, JOBS_FINISHED, RUN_SECONDS, WAIT_SECONDS
from engine.model import Cancelled, Completed, Failed, JobState, Outcome, Retry
from engine.outcome import describe, label

T = TypeVar("T")

RESULTS = {Completed: JobState.COMPLETED, Failed: JobState.FAILED, Cancelled: JobState.CANCELLED}


class Account:
    """Counts by preset, with every labelled child looked up once: an unbound lookup costs 7 µs."""

    def __init__(self) -> None:
        self._tallies = _Made(_Tally)
        self._log = structlog.get_logger().bind()  # now, for the lazy proxy binds anew at each line
        self._telling = self._log.is_enabled_for(logging.INFO)

    def ended(self, execution: Execution) -> str:
        """Count a run, and give the metadata to keep with its result, as JSON text."""
        attempt = execution.claimed
        ran = time.monotonic() - execution.started
        waited = max((attempt.started_at - attempt.due_at).total_seconds(), 0.0)
        tally = self._tallies[attempt.job.preset]
        tally.waited(waited)
        tally.ran(ran)
        return f'{{"run_seconds":{ran:.6f},"wait_seconds":{waited:.6f}}}'

    def recorded(self, execution: Execution, outcome: Outcome | Exception) -> None:
        """Count and log an attempt whose outcome is in the database, or, with an exception, never will be."""
        tally = self._tallies[execution.claimed.job.preset]
        if isinstance(outcome, Exception):
            tally.attempts["lost"].inc()
            refused = None if isinstance(outcome, LeaseLost) else f"{type(outcome).__name__}: {outcome}"
            _log(self._log.warning, execution, "lost", refused)
            return
        name = label(outcome)
        tally.attempts[name].inc()
        if state := RESULTS.get(type(outcome)):
            tally.finished[state].inc()
        if self._telling:
            _log(self._log.info, execution, name, _error(outcome))


def _log(log_at: Callable[..., None], execution: Execution, outcome: str, error: str | None) -> None:
    log_at(
        "attempt.ended",
        job_id=execution.claimed.job.id,
        preset=execution.claimed.job.preset,
        attempt=execution.attempt,
        outcome=outcome,
        seconds=round(time.monotonic() - execution.started, 6),
        error=error,
        traceparent=execution.claimed.job.traceparent,
    )


def _error(outcome: Outcome) -> str | None:
    if not isinstance(outcome, Retry | Failed):
        return None
    known = describe(outcome.error)
    return f"{known.type}: {known.message}"[:500]


class _Tally:
    """The metrics of one preset."""

    def __init__(self, preset: str) -> None:
        self.waited = WAIT_SECONDS.labels(preset).observe
        self.ran = RUN_SECONDS.labels(preset).observe
        self.attempts = _Made(lambda outcome: ATTEMPTS.labels(preset, outcome))
        self.finished = _Made(lambda state: JOBS_FINISHED.labels(preset, state))


class _Made(dict[str, T]):
    """Makes what is missing."""

    def __init__(self, make: Callable[[str], T]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, key: str) -> T:
        made = self[key] = self._make(key)
        return made
